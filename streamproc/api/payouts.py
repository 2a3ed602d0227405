"""`/v1/payouts`: an agent asks for a payout, and sees its outcome.

Nothing is decided here: the request is appended to the log, once, and the governance chain decides.
"""

import asyncio
from collections.abc import Sequence
from typing import Any, Protocol

import msgspec
from starlette.responses import Response

from streamproc.api.answers import Refusal, json_answer, wrong_fields
from streamproc.api.auth import LOOK_S_MAX, sees
from streamproc.api.operations import Call, Operation, Says, Text
from streamproc.api.shapes import ORDER, Payout, Story
from streamproc.domain.deliveries import request_key
from streamproc.domain.events import Event, PayoutRequested
from streamproc.domain.intent import intent_id
from streamproc.domain.intent_rules import Wanted, read_request
from streamproc.domain.payouts import PayoutRecord, fold
from streamproc.domain.shown import event_json, for_its_agent, payout_json
from streamproc.errors import LogUnavailable
from streamproc.log.stream import Append, Producer

APPEND_S_MAX = 10.0
"""Longer than the bank would wait for a webhook's answer. Then the agent gets 503 and asks again under the same key."""
KEY_CHARS_MAX = 128
KEY_USED = "urn:problem-type:streamproc:key-used"
NO_REQUEST = "urn:problem-type:streamproc:payout-without-request"
"""Types of the two 409, since a program does something else with each: see docs/agents.md."""

PAYOUT_ID = Text("payout", "a payout's id, ours or the bank's", r"[A-Za-z0-9_]{1,64}", where="path")
KEY = rf"[\x21-\x7e]{{1,{KEY_CHARS_MAX}}}"
_KEY = Text(
    "Idempotency-Key",
    f"1 to {KEY_CHARS_MAX} visible ASCII characters, new for each payout",
    KEY,
    where="header",
    required=True,
)


class Gateway(Protocol):
    """Looks payouts up (streamproc/operate/gateway.py). Raises LogUnavailable, or TryAgain if only the archive would
    know and is away."""

    async def record(self, payout: str) -> PayoutRecord | None:
        """A payout by our id, even if no worker has handled it yet."""
        ...

    async def shown(self, payout: str) -> PayoutRecord | None:
        """The same, or an intent by the bank's id."""
        ...

    async def history(self, payout: str) -> tuple[Sequence[tuple[str, Event]], list[str]]:
        """A payout's events with their ids, and what may be missing."""
        ...


def payout_operations(producer: Producer, gateway: Gateway) -> list[Operation]:
    """The routes."""
    payouts = _Payouts(producer, gateway)
    taken = Says(
        "Taken, or taken before under the same key and body; it is decided next",
        Payout,
        {"Location": "Where it is shown"},
    )
    return [
        Operation(
            method="POST", path="/v1/payouts", name="requestPayout", summary="Ask for a payout",
            action="request", reads=(_KEY,), body=ORDER, handle=payouts.submit,
            says={202: taken, 409: Says(f"{KEY_USED}: with another body. {NO_REQUEST}: the bank has its reference")},
        ),
        Operation(
            method="GET", path="/v1/payouts/{payout}", name="showPayout", summary="What became of a payout",
            action="read own", reads=(PAYOUT_ID,), handle=payouts.show,
            says={200: Says("The payout", Payout)},
        ),
        Operation(
            method="GET", path="/v1/payouts/{payout}/events", name="listPayoutEvents",
            summary="A payout's events, in log order", action="read own", reads=(PAYOUT_ID,),
            handle=payouts.events,
            says={200: Says("The first events, nearly always all; `notes` say if there are more", Story)},
        ),
    ]  # fmt: skip


async def visible(call: Call, gateway: Gateway) -> PayoutRecord:
    """The path's payout, if this token may see it; another agent's is 404, as if it did not exist."""
    async with asyncio.timeout(LOOK_S_MAX):
        record = await gateway.shown(call.text("payout"))
    if record is None or not sees(call.token, account=record.account, agent=record.agent):
        raise Refusal(404, "there is no such payout")
    return record


class _Payouts:
    """The handlers."""

    def __init__(self, producer: Producer, gateway: Gateway) -> None:
        self._producer = producer
        self._gateway = gateway

    async def submit(self, call: Call) -> Response:
        token, wanted = call.token, _wanted(call.body)
        payout = intent_id(token.account, token.agent, call.text("Idempotency-Key"))
        async with asyncio.timeout(LOOK_S_MAX):
            known = await self._gateway.record(payout)
        if known is not None:
            return _taken(_same(known, wanted))
        event = PayoutRequested(
            at=self._producer.now_us(),
            payout=payout,
            account=token.account,
            agent=token.agent,
            token=token.name,
            amount=wanted.amount,
            currency=wanted.currency,
            vendor_url=wanted.vendor_url,
            intent=wanted.intent,
        )
        async with asyncio.timeout(APPEND_S_MAX):
            appended = await self._producer.append(Append(token.account, (request_key(payout),), (event,)))
            if not appended.new:
                # The same key at the same moment: the first request is in the log.
                known = await self._gateway.record(payout)
                if known is None:
                    raise LogUnavailable(f"entry {appended.entry} has left the log")
                return _taken(_same(known, wanted))
        made = fold([event])
        assert made is not None
        return _taken(made)

    async def show(self, call: Call) -> Response:
        shown = payout_json(await visible(call, self._gateway))
        return json_answer(200, shown if call.token.may("read all") else for_its_agent(shown))

    async def events(self, call: Call) -> Response:
        record = await visible(call, self._gateway)
        async with asyncio.timeout(LOOK_S_MAX):
            found, notes = await self._gateway.history(record.payout)
        items = [event_json(name, event) for name, event in found]
        if not call.token.may("read all"):
            items = [item | {"data": for_its_agent(item["data"])} for item in items]
        return json_answer(200, {"items": items, "notes": notes})


def _wanted(body: dict[str, Any]) -> Wanted:
    found = read_request(body)
    if isinstance(found, list):
        raise wrong_fields([msgspec.to_builtins(one) for one in found])
    return found


def _same(known: PayoutRecord, wanted: Wanted) -> PayoutRecord:
    """The payout made under this key before. Raises Refusal if it was asked for with another body."""
    if known.intent is None:
        raise Refusal(
            409,
            type=NO_REQUEST,
            title="Payout without a known request",
            detail=f"the bank has a payout under the reference {known.payout}, and no request for it is known here: it"
            " may be this very payment. A person must look at it before the same is asked for under another key",
        )
    if known.intent.digest != wanted.intent.digest:
        raise Refusal(
            409,
            type=KEY_USED,
            title="Idempotency-Key used for another body",
            detail=f"this Idempotency-Key was used with another body, for payout {known.payout}; use another key",
        )
    return known


def _taken(record: PayoutRecord) -> Response:
    return json_answer(202, for_its_agent(payout_json(record)), {"location": f"/v1/payouts/{record.payout}"})
