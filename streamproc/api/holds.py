"""`/v1/holds`: what waits for a person, and a person's answer. The token says who answers.

Every answer is recorded first; then the review stage decides whether it counts, and the response says so. 202: recorded
but not handled yet. 409: it was decided before, with by whom and when.
"""

from collections.abc import Callable
from hashlib import sha256
from secrets import token_hex
from typing import Annotated, Protocol

from msgspec import Meta, Struct
from starlette.responses import Response

from streamproc.api.answers import RETRY_AFTER_S, Refusal, json_answer, wrong_field
from streamproc.api.operations import Call, Number, Operation, Says, Text
from streamproc.api.payouts import KEY, KEY_CHARS_MAX, PAYOUT_ID, Gateway, visible
from streamproc.api.shapes import HoldPage, Recorded
from streamproc.domain.attribution import WHY_CHARS_MAX
from streamproc.domain.events import ReviewSubmitted
from streamproc.domain.holds import (
    Action,
    Answered,
    HeldPage,
    NotCounted,
    NotHandled,
    Outcome,
    Position,
    position_at,
)
from streamproc.domain.payouts import PayoutRecord
from streamproc.domain.plain import clean
from streamproc.domain.policy_fields import IDENTIFIER
from streamproc.domain.shown import hold_json, iso

PAGE_MAX = 500
"""Holds in one answer, some 1 kB each: more than a person looks at."""
PAGE = 100
NO_REASON = "no reason given"
"""Recorded for an approval without a reason; a rejection must have one."""

_KEY = Text(
    "Idempotency-Key",
    f"1 to {KEY_CHARS_MAX} visible ASCII characters; the same key for the same payout is the same answer",
    KEY,
    where="header",
)


class Approval(Struct, frozen=True, forbid_unknown_fields=True):
    """Why, for the audit; `by`, where it is there, must be who the token says."""

    reason: Annotated[str, Meta(min_length=1, max_length=WHY_CHARS_MAX, pattern=r"\S")] | None = None
    by: str | None = None


class Rejection(Struct, frozen=True, forbid_unknown_fields=True):
    """Why, for the audit; `by`, where it is there, must be who the token says."""

    reason: Annotated[str, Meta(min_length=1, max_length=WHY_CHARS_MAX, pattern=r"\S")]
    by: str | None = None


class HoldService(Protocol):
    """What these routes need (streamproc/operate/hold_service.py). Raises LogUnavailable or TimeoutError."""

    async def page(self, *, after: Position | None, limit: int, account: str, agent: str) -> HeldPage:
        """Holds after a position, of one account and agent if these are given."""
        ...

    async def answered(self, account: str, answer: ReviewSubmitted, key: str) -> Answered:
        """Record an answer, once per key, and wait for its outcome."""
        ...


def hold_operations(service: HoldService, gateway: Gateway, now_us: Callable[[], int]) -> list[Operation]:
    """The routes."""
    holds = _Holds(service, gateway, now_us)
    listing = (
        Number("limit", "how many", 1, PAGE_MAX, PAGE),
        Text("after", "the `next` of another answer", r"[A-Za-z0-9_-]{1,200}"),
        Text("agent", "an agent's id", IDENTIFIER.pattern),
    )
    answer = (PAYOUT_ID, _KEY)
    says = {
        200: Says("It counted; `needed` more approvals are wanted where `decision` is null", Outcome),
        202: Says("Recorded, and not handled yet", Recorded, {"Location": "Where it will show"}),
        403: Says("Not this token, or not this person: not a reviewer, or the one who asked for the payout"),
        409: Says(
            "It was decided before: `decision`, `decided_by`, `decided_at`; or the key was used otherwise"
        ),
    }
    return [
        Operation(
            method="GET", path="/v1/holds", name="listHolds", summary="Payouts that wait, the longest first",
            action="read own", reads=listing, handle=holds.page, says={200: Says("A page", HoldPage)},
        ),
        Operation(
            method="POST", path="/v1/holds/{payout}/approve", name="approveHold",
            summary="Approve a held payout; what may have changed since is checked again", action="review",
            reads=answer, body=Approval, body_required=False, handle=holds.approve, says=says,
        ),
        Operation(
            method="POST", path="/v1/holds/{payout}/reject", name="rejectHold",
            summary="Reject a held payout; its budget is free again", action="review",
            reads=answer, body=Rejection, handle=holds.reject, says=says,
        ),
    ]  # fmt: skip


class _Holds:
    """The handlers."""

    def __init__(self, service: HoldService, gateway: Gateway, now_us: Callable[[], int]) -> None:
        self._service = service
        self._gateway = gateway
        self._now_us = now_us

    async def page(self, call: Call) -> Response:
        token, agent, account = call.token, call.text("agent"), ""
        if not token.may("read all"):
            if agent not in ("", token.agent):
                return json_answer(200, {"items": [], "next": None, "notes": []})
            agent, account = token.agent, token.account
        page = await self._service.page(
            after=_after(call.text("after")), limit=call.number("limit"), account=account, agent=agent
        )
        shown = {
            "items": [hold_json(record) for record in page.items],
            "next": None if page.next is None else page.next.cursor(),
            "notes": [page.note] if page.note else [],
        }
        return json_answer(200, shown)

    async def approve(self, call: Call) -> Response:
        return await self._answer(call, "approve", call.body.reason or NO_REASON)

    async def reject(self, call: Call) -> Response:
        return await self._answer(call, "reject", call.body.reason)

    async def _answer(self, call: Call, action: Action, why: str) -> Response:
        token = call.token
        if call.body.by not in (None, token.person):
            raise Refusal(403, f"`by` must be this token's owner, {token.person}")
        record = await visible(call, self._gateway)
        answer = ReviewSubmitted(
            at=self._now_us(),
            payout=record.payout,
            by=token.person,
            action=action,
            why=clean(why.strip(), WHY_CHARS_MAX),
            channel=token.channel,
        )
        key = _append_key(token.name, record.payout, call.text("Idempotency-Key") or token_hex(16))
        found = await self._service.answered(record.account, answer, key)
        match found:
            case Outcome():
                return json_answer(200, found)
            case NotHandled():
                said = {"payout": found.payout, "entry": found.entry, "detail": found.problem}
                return json_answer(202, said, {"location": f"/v1/payouts/{found.payout}"})
        raise await self._refusal(found)

    async def _refusal(self, found: NotCounted) -> Refusal:
        match found.kind:
            case "unknown":
                return Refusal(404, "there is no such payout")
            case "forbidden":
                return Refusal(403, found.problem)
            case "unavailable":
                return Refusal(503, found.problem, {"retry-after": str(RETRY_AFTER_S)})
        record = await self._gateway.record(found.payout)
        return Refusal(409, found.problem, None, **_decided(record))


def _after(cursor: str) -> Position | None:
    try:
        return position_at(cursor) if cursor else None
    except ValueError as problem:
        raise wrong_field("after", str(problem)) from problem


def _append_key(token: str, payout: str, key: str) -> str:
    """The key by which the log recognizes an answer: a hash, since the caller's own may be long, and is not shown."""
    return "review:api:" + sha256(f"{token}\0{payout}\0{key}".encode()).hexdigest()


def _decided(record: PayoutRecord | None) -> dict[str, str | None]:
    if record is None or record.decision in (None, "HELD"):
        return {}
    last = record.reviews[-1] if record.reviews else None
    by_review = last is not None and last.at == record.decided_at
    return {
        "decision": record.decision,
        "reason": record.reason,
        "decided_by": last.by if last is not None and by_review else None,
        "decided_at": iso(record.decided_at),
    }
