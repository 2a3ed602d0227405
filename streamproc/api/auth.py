"""Who is asking: checks a bearer token, what its scope allows, and how often it asks.

Nothing is kept in memory, so a revocation counts for the next request, and for one whose body is still on its way. All
processes share a token's rate. The refusal of a known token is recorded in the log (`access.refused`, bounded). An
unknown token is only counted: made-up ones must not be able to fill the log.
"""

import asyncio
import logging
import math
from collections.abc import Callable
from typing import NoReturn, Protocol

from starlette.requests import Request

from streamproc.api.answers import Refusal, away
from streamproc.api.operations import Operation
from streamproc.domain.tokens import SECRET, Token, digest_of
from streamproc.errors import LogUnavailable
from streamproc.ingress.body import bearer
from streamproc.ingress.refusals import Refusals, ThrottledWarning

LOOK_S_MAX = 10.0
"""For all look-ups of one request."""
READS_A_CHANGE = 10
"""Reads that a token has for each request that may change something: each entry in the log is looked at again and again
until it is decided, and a look costs no room in the log."""
log = logging.getLogger(__name__)


class Tokens(Protocol):
    """Looks tokens up (streamproc/operate/gateway.py). Raises LogUnavailable."""

    async def token(self, digest: str) -> Token | None:
        """The token with this hash, revoked and expired ones too."""
        ...

    async def request_wait_us(self, token: str, *, per_min: int, reads: bool) -> int:
        """Count a request against this token's rate of reads or of changes: 0 if it may go on, else the µs until one
        may."""
        ...


class AccessControl:
    """Admits requests. `now_us` is Redis's clock; `per_min`: requests of a token in any minute that may change
    something, 0 for no limit. It may read READS_A_CHANGE times as often, counted by itself."""

    def __init__(
        self, tokens: Tokens, now_us: Callable[[], int], refusals: Refusals, *, per_min: int = 0
    ) -> None:
        self._tokens = tokens
        self._now_us = now_us
        self._refusals = refusals
        self._per_min = per_min
        self._unknown = ThrottledWarning(log, "requests with a token that nobody knows")
        self._unasked = ThrottledWarning(
            log, "requests not answered, since their token could not be looked up"
        )

    async def admitted(self, request: Request, operation: Operation) -> Token:
        """The request's token, if it may do this. Raises Refusal: 401, 403, 429, and 503 where it cannot be looked up:
        anybody can ask, so that is logged seldom."""
        assert operation.action is not None
        token = await self.good(request, operation)
        if self._per_min:
            await self._within_rate(token, reads=operation.method == "GET")
        if not token.may(operation.action):
            self.note(token, operation, request, f"scope {token.scope} does not allow it")
            raise Refusal(403, f"a token of scope {token.scope} may not do this")
        return token

    async def good(self, request: Request, operation: Operation) -> Token:
        """The request's token, if it is good at this moment; not counted against its rate. Raises Refusal: 401."""
        token = await self._known(request)
        if token is None:
            _no_token()
        if not token.opens(self._now_us()):
            self.note(token, operation, request, "revoked token" if token.revoked_at else "expired token")
            _no_token()
        return token

    def note(self, token: Token, operation: Operation, request: Request, problem: str) -> None:
        """Record that a known token was refused."""
        self._refusals.note(
            channel="api",
            subject=token.name,
            what=f"{operation.method} {operation.path}",
            problem=problem,
            payout=str(request.path_params.get("payout", "")),
        )

    async def _known(self, request: Request) -> Token | None:
        secret, token = bearer(request.scope), None
        if SECRET.fullmatch(secret):
            try:
                async with asyncio.timeout(LOOK_S_MAX):
                    token = await self._tokens.token(digest_of(secret))
            except (LogUnavailable, TimeoutError) as trouble:
                self._unasked.count(str(trouble) or type(trouble).__name__)
                raise away("the log") from trouble
        if token is None and "authorization" in request.headers:
            self._unknown.count()
        return token

    async def _within_rate(self, token: Token, *, reads: bool) -> None:
        per_min = self._per_min * READS_A_CHANGE if reads else self._per_min
        async with asyncio.timeout(LOOK_S_MAX):
            wait_us = await self._tokens.request_wait_us(token.name, per_min=per_min, reads=reads)
        if wait_us:
            wait_s, what = math.ceil(wait_us / 1_000_000), "read" if reads else "ask for something"
            raise Refusal(
                429, f"token {token.name} may {what} {per_min} times a minute; ask again in {wait_s} s",
                {"retry-after": str(wait_s)},
            )  # fmt: skip


def _no_token() -> NoReturn:
    raise Refusal(
        401, "a bearer token is needed that is known, not expired and not revoked",
        {"www-authenticate": "Bearer"},
    )  # fmt: skip


def sees(token: Token, *, account: str, agent: str) -> bool:
    """Whether the token may see what belongs to this agent of this account."""
    return token.may("read all") or (account, agent) == (token.account, token.agent)
