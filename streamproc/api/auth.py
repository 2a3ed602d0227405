"""Who is asking: a bearer token, whether it is good, what its scope allows, and how often it asks.

Nothing is kept in memory, so a revocation counts for the next request, and all processes keep a token's rate together.
Who is refused by name is in the log (`access.refused`, bounded). A token that nobody knows is only counted: whoever
sends made-up ones must not be able to write.
"""

import asyncio
import logging
import math
from collections.abc import Callable
from typing import Literal, NoReturn, Protocol, TypeAlias

from starlette.requests import Request

from streamproc.api.answers import Refusal
from streamproc.api.operations import Operation
from streamproc.domain.tokens import SECRET, Token, digest_of
from streamproc.ingress.refusals import Seldom

LOOK_S_MAX = 10.0
"""For everything that is looked up to answer one request."""
_log = logging.getLogger(__name__)


Clock: TypeAlias = Callable[[], int]
"""µs since 1970 by Redis's clock."""


class Tokens(Protocol):
    """Where tokens are known (streamproc/operate/gateway.py). Raises LogUnavailable."""

    async def token(self, digest: str) -> Token | None:
        """The token with this hash, whether it still opens anything or not."""
        ...

    async def request_wait_us(self, token: str, *, per_min: int) -> int:
        """Take a request of this token's rate: 0, or the µs until there is one."""
        ...


class Noted(Protocol):
    """Where refusals are written (streamproc/ingress/refusals.py); returns at once and never fails."""

    def note(
        self, *, channel: Literal["slack", "api"], subject: str, what: str, problem: str, payout: str = ""
    ) -> None:
        """Somebody was refused."""
        ...


class Doorkeeper:
    """Admits requests. `now_us` is Redis's clock; `per_min` requests of a token in any minute, 0: any number."""

    def __init__(self, tokens: Tokens, now_us: Clock, refusals: Noted, *, per_min: int = 0) -> None:
        self._tokens = tokens
        self._now_us = now_us
        self._refusals = refusals
        self._per_min = per_min
        self._unknown = Seldom(_log, "requests with a token that nobody knows")

    async def admitted(self, request: Request, operation: Operation) -> Token:
        """The request's token, which may do this. Raises Refusal: 401, 403, 429."""
        assert operation.action is not None
        token = await self._known(request)
        if token is None:
            _no_token()
        if not token.opens(self._now_us()):
            self.note(token, operation, request, "revoked token" if token.revoked_at else "expired token")
            _no_token()
        if self._per_min:
            await self._within_rate(token)
        if not token.may(operation.action):
            self.note(token, operation, request, f"scope {token.scope} does not allow it")
            raise Refusal(403, f"a token of scope {token.scope} may not do this")
        return token

    def note(self, token: Token, operation: Operation, request: Request, problem: str) -> None:
        """A token that we know was refused: that is in the log."""
        self._refusals.note(
            channel="api",
            subject=token.name,
            what=f"{operation.method} {operation.path}",
            problem=problem,
            payout=str(request.path_params.get("payout", "")),
        )

    async def _known(self, request: Request) -> Token | None:
        given = request.headers.getlist("authorization")
        scheme, _, secret = (given[0] if len(given) == 1 else "").partition(" ")
        secret = secret.strip()
        token = None
        if scheme.lower() == "bearer" and SECRET.fullmatch(secret):
            async with asyncio.timeout(LOOK_S_MAX):
                token = await self._tokens.token(digest_of(secret))
        if token is None and given:
            self._unknown.say()
        return token

    async def _within_rate(self, token: Token) -> None:
        async with asyncio.timeout(LOOK_S_MAX):
            wait_us = await self._tokens.request_wait_us(token.name, per_min=self._per_min)
        if wait_us:
            wait_s = math.ceil(wait_us / 1_000_000)
            raise Refusal(
                429, f"token {token.name} may ask {self._per_min} times a minute; ask again in {wait_s} s",
                {"retry-after": str(wait_s)},
            )  # fmt: skip


def _no_token() -> NoReturn:
    raise Refusal(
        401, "a bearer token is needed that is known, not expired and not revoked",
        {"www-authenticate": "Bearer"},
    )  # fmt: skip


def sees(token: Token, *, account: str, agent: str) -> bool:
    """Whether what belongs to this agent of this account may be shown to the token."""
    return token.may("read all") or (account, agent) == (token.account, token.agent)
