"""Who is asking: a bearer token, whether it is good, and what its scope allows. Nothing is kept in memory, so that a
revocation counts for the next request."""

import asyncio
from collections.abc import Callable
from typing import Protocol

from starlette.requests import Request

from streamproc.api.answers import Refusal
from streamproc.domain.tokens import SECRET, Action, Token, digest_of

LOOK_S_MAX = 10.0
"""For everything that is looked up to answer one request."""


class Tokens(Protocol):
    """Where tokens are known (streamproc/operate/gateway.py). Raises LogUnavailable."""

    async def token(self, digest: str) -> Token | None:
        """The token with this hash, whether it still opens anything or not."""
        ...


class Doorkeeper:
    """Admits requests. `now_us` is Redis's clock."""

    def __init__(self, tokens: Tokens, now_us: Callable[[], int]) -> None:
        self._tokens = tokens
        self._now_us = now_us

    async def admitted(self, request: Request, action: Action) -> Token:
        """The request's token, which may do this. Raises Refusal: 401, 403."""
        token = await self._known(request)
        if token is None or not token.opens(self._now_us()):
            raise Refusal(
                401, "a bearer token is needed that is known, not expired and not revoked",
                {"www-authenticate": "Bearer"},
            )  # fmt: skip
        if not token.may(action):
            raise Refusal(403, f"a token of scope {token.scope} may not do this")
        return token

    async def _known(self, request: Request) -> Token | None:
        given = request.headers.getlist("authorization")
        scheme, _, secret = (given[0] if len(given) == 1 else "").partition(" ")
        secret = secret.strip()
        if scheme.lower() != "bearer" or not SECRET.fullmatch(secret):
            return None
        async with asyncio.timeout(LOOK_S_MAX):
            return await self._tokens.token(digest_of(secret))


def sees(token: Token, *, account: str, agent: str) -> bool:
    """Whether what belongs to this agent of this account may be shown to the token."""
    return token.may("read all") or (account, agent) == (token.account, token.agent)
