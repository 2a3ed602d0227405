"""`/v1/payouts`: an agent asks for a payout, and sees what became of it. Answers are problems (RFC 9457) or JSON.

    202 taken, or taken before under the same key      401 no good token     403 its scope does not allow it
    404 no such payout, or another agent's             408 413 415 400 body  409 the key was used for another body
    422 fields, each with its problem                  503 log or archive away: ask again, under the same key

Nothing is decided here: what is asked for is appended to the log, once, and the governance chain decides.
"""

import asyncio
import logging
import re
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Protocol

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from streamproc.clients.json_text import NotJson, decode_json, names_are_unique
from streamproc.clients.razorpay_entities import id_or_empty
from streamproc.domain.events import Event, PayoutRequested
from streamproc.domain.intent import intent_id
from streamproc.domain.intent_rules import Wanted, read_request
from streamproc.domain.payouts import PayoutRecord, fold
from streamproc.domain.shown import event_json, payout_json
from streamproc.domain.tokens import SECRET, Action, Token, digest_of
from streamproc.errors import JobFailed, LogBroken, LogUnavailable, TryAgain
from streamproc.ingress.body import BODY_READ_S_MAX, TooLarge, read_body
from streamproc.ingress.door import Door
from streamproc.ingress.problems import PROBLEM_JSON, problem_body
from streamproc.ingress.translate import request_key
from streamproc.log.stream import Append

APPEND_S_MAX = 10.0
"""An agent waits longer than the bank does; then it hears 503 and asks again under the same key."""
LOOK_S_MAX = 10.0
"""For everything that is looked up to answer one request."""
RETRY_AFTER_S = 5
KEY_CHARS_MAX = 128

_KEY = re.compile(rf"[\x21-\x7e]{{1,{KEY_CHARS_MAX}}}")
_JSON = "application/json"
_log = logging.getLogger(__name__)


class Gateway(Protocol):
    """What these routes need to know (streamproc/operate/gateway.py). Raises LogUnavailable, or TryAgain where
    only the archive would know and is away."""

    async def token(self, digest: str) -> Token | None:
        """The token with this hash."""
        ...

    async def record(self, payout: str) -> PayoutRecord | None:
        """A payout, also one that no worker has looked at yet."""
        ...

    async def history(self, payout: str) -> tuple[Sequence[tuple[str, Event]], list[str]]:
        """A payout's events with their ids, and what may be missing."""
        ...


class _Refusal(Exception):
    """The request ends with a problem."""

    def __init__(self, status: int, detail: str, headers: dict[str, str] | None = None, **more: Any) -> None:
        super().__init__(detail)
        self.status, self.detail, self.headers, self.more = status, detail, headers or {}, more

    def response(self) -> Response:
        """As it is sent."""
        body = problem_body(self.status, self.detail, **self.more)
        return Response(body, self.status, self.headers, media_type=PROBLEM_JSON.decode("ascii"))


class Payouts:
    """The routes. `body_bytes_max` limits a request's body."""

    def __init__(self, producer: Door, gateway: Gateway, *, body_bytes_max: int) -> None:
        self._producer = producer
        self._gateway = gateway
        self._body_bytes_max = body_bytes_max

    @property
    def routes(self) -> list[Route]:
        """Where each is."""
        return [
            Route("/v1/payouts", self._answered(self._submit), methods=["POST"]),
            Route("/v1/payouts/{payout}", self._answered(self._show), methods=["GET"]),
            Route("/v1/payouts/{payout}/events", self._answered(self._events), methods=["GET"]),
        ]

    def _answered(
        self, handler: Callable[[Request], Awaitable[Response]]
    ) -> Callable[[Request], Awaitable[Response]]:
        async def answered(request: Request) -> Response:
            try:
                return await handler(request)
            except _Refusal as refusal:
                return refusal.response()
            except (LogUnavailable, LogBroken, TryAgain, JobFailed, TimeoutError) as problem:
                _log.warning("a request was not answered: %s", str(problem) or type(problem).__name__)
                what = "the archive" if isinstance(problem, TryAgain) else "the log"
                return _Refusal(
                    503,
                    f"{what} cannot be asked now; ask again, with the same Idempotency-Key where there was one",
                    {"retry-after": str(RETRY_AFTER_S)},
                ).response()

        return answered

    async def _allowed(self, request: Request, action: Action) -> Token:
        """The request's token, which may do this. Nothing is kept in memory, so a revocation counts at once."""
        given = request.headers.getlist("authorization")
        scheme, _, secret = (given[0] if len(given) == 1 else "").partition(" ")
        token = None
        if scheme.lower() == "bearer" and SECRET.fullmatch(secret.strip()):
            async with asyncio.timeout(LOOK_S_MAX):
                token = await self._gateway.token(digest_of(secret.strip()))
        if token is None or not token.opens(self._producer.now_us()):
            raise _Refusal(
                401, "a bearer token is needed that is known, not expired and not revoked",
                {"www-authenticate": "Bearer"},
            )  # fmt: skip
        if not token.may(action):
            raise _Refusal(403, f"a token of scope {token.scope} may not do this")
        return token

    # ---- asking for a payout ----

    async def _submit(self, request: Request) -> Response:
        token = await self._allowed(request, "request")
        key = _key_of(request)
        wanted = _wanted(await self._body(request))
        payout = intent_id(token.account, token.agent, key)
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
                # The same key at the same moment: whoever was first is in the log.
                known = await self._gateway.record(payout)
                if known is None:
                    raise LogUnavailable(f"entry {appended.entry} has left the log")
                return _taken(_same(known, wanted))
        made = fold([event])
        assert made is not None
        return _taken(made)

    async def _body(self, request: Request) -> bytes:
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind != _JSON:
            raise _Refusal(415, f"content-type must be {_JSON}")
        try:
            async with asyncio.timeout(BODY_READ_S_MAX):
                body = await read_body(request.scope, request.receive, self._body_bytes_max)
        except TimeoutError:
            detail = f"the body did not arrive within {BODY_READ_S_MAX:g} s"
            raise _Refusal(408, detail, {"connection": "close"}) from None
        except TooLarge:
            detail = f"the body is over {self._body_bytes_max} bytes"
            raise _Refusal(413, detail, {"connection": "close"}) from None
        if body is None:
            raise _Refusal(400, "the sender has gone")
        return body

    # ---- looking at one ----

    async def _show(self, request: Request) -> Response:
        return _json(200, payout_json(await self._visible(request)))

    async def _events(self, request: Request) -> Response:
        record = await self._visible(request)
        async with asyncio.timeout(LOOK_S_MAX):
            found, notes = await self._gateway.history(record.payout)
        return _json(200, {"items": [event_json(name, event) for name, event in found], "notes": notes})

    async def _visible(self, request: Request) -> PayoutRecord:
        """The payout, if this token may see it. Another agent's is as if it were not there."""
        token = await self._allowed(request, "read own")
        payout = id_or_empty(request.path_params["payout"])
        record = None
        if payout:
            async with asyncio.timeout(LOOK_S_MAX):
                record = await self._gateway.record(payout)
        if record is not None and not token.may("read all"):
            record = record if (record.account, record.agent) == (token.account, token.agent) else None
        if record is None:
            raise _Refusal(404, "there is no such payout")
        return record


def _key_of(request: Request) -> str:
    keys = request.headers.getlist("idempotency-key")
    if len(keys) != 1 or not _KEY.fullmatch(keys[0]):
        problem = f"must be there once: 1 to {KEY_CHARS_MAX} visible ASCII characters, new for each payout"
        raise _Refusal(
            422, "the header Idempotency-Key is missing or wrong",
            errors=[{"field": "Idempotency-Key", "problem": problem}],
        )  # fmt: skip
    return keys[0]


def _wanted(body: bytes) -> Wanted:
    try:
        decoded = decode_json(body)
        found = read_request(decoded) if isinstance(decoded, dict) else None
    except NotJson as problem:
        raise _Refusal(400, f"the body is no request: {problem}") from problem
    except ValueError as problem:  # an integer of thousands of digits
        raise _Refusal(400, "the body is no request: it holds a number too long to write") from problem
    if found is None:
        raise _Refusal(400, "the body is no request: it is not a JSON object")
    if not names_are_unique(body):
        raise _Refusal(400, "the body is no request: it names a field twice")
    if isinstance(found, list):
        raise _Refusal(
            422, f"{len(found)} problems with the request", errors=[msgspec.to_builtins(one) for one in found]
        )
    return found


def _same(known: PayoutRecord, wanted: Wanted) -> PayoutRecord:
    """The payout that this key made before, if it was asked for with the same body."""
    if known.intent is None:
        raise _Refusal(
            409,
            f"the bank has a payout under the reference {known.payout} that nobody asked for here; use another key",
        )
    if known.intent.digest != wanted.intent.digest:
        raise _Refusal(
            409,
            f"this Idempotency-Key was used with another body, for payout {known.payout}; use another key",
        )
    return known


def _taken(record: PayoutRecord) -> Response:
    return _json(202, payout_json(record), {"location": f"/v1/payouts/{record.payout}"})


def _json(status: int, value: object, headers: dict[str, str] | None = None) -> Response:
    return Response(msgspec.json.encode(value), status, headers, media_type=_JSON)
