"""`GET /metrics` in the route table: OpenMetrics with exemplars, or Prometheus's older text.

    200 the page     401 no good token     405 any other method than GET or HEAD     503 ask later

It needs STREAMPROC_METRICS_TOKEN, which is compared here and so works while Redis is away, or a token of the API that
may read everything. Loopback needs a token too: behind a proxy on the same machine every caller is loopback. The route
checks tokens itself, since that one is not the API's: no rate limit, and no audit of refusals.
"""

import asyncio
import hmac
import logging
from collections.abc import Awaitable, Callable
from time import perf_counter
from typing import TypeAlias

from prometheus_client.exposition import choose_encoder

from streamproc.api.operations import Operation, Says
from streamproc.api.route_names import METHODS, route_of
from streamproc.domain.tokens import SECRET, Token, digest_of
from streamproc.errors import StreamprocError
from streamproc.ingress.body import bearer
from streamproc.ingress.problems import Asgi, Header, Message, Receive, Scope, Send, send_body, send_problem
from streamproc.telemetry.exposure import Page, Shown
from streamproc.telemetry.metrics import Meters

PAGE_S_MAX = 8.0
"""Less than Prometheus waits by default (10 s), so that it gets a 503 instead of nothing."""
TOKEN_S_MAX = 2.0
PATH = "/metrics"
MEDIA = ("text/plain", "application/openmetrics-text")
RETRY: Header = (b"retry-after", b"5")
PLAIN: tuple[Header, ...] = ((b"cache-control", b"no-store"), (b"x-content-type-options", b"nosniff"))

KnownToken: TypeAlias = Callable[[str], Awaitable[Token | None]]
"""Looks up the API's token with this hash; may raise while Redis is away."""

log = logging.getLogger(__name__)


class Timed:
    """Passes requests on to `app` and counts them by the route's template, never by the path."""

    def __init__(self, app: Asgi, meters: Meters) -> None:
        self._app, self._meters = app, meters

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        begun, status = perf_counter(), 0

        def noted(message: Message) -> Awaitable[None]:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            return send(message)

        try:
            await self._app(scope, receive, noted)
        finally:
            method = scope["method"] if scope["method"] in METHODS else "other"
            # 0: the client went away before there was an answer.
            self._meters.http_seconds.labels(method, route_of(scope), str(status)).observe(
                perf_counter() - begun
            )


class Metrics:
    """Answers every request with the page, or with why not."""

    def __init__(
        self,
        page: Callable[[], Awaitable[Page]],
        *,
        secret: str,
        token: KnownToken,
        now_us: Callable[[], int],
    ) -> None:
        self._page = page
        self._secret, self._token, self._now_us = secret.encode(), token, now_us
        self._turn = asyncio.Lock()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        if scope["method"] not in ("GET", "HEAD"):
            await send_problem(send, 405, "metrics are read by GET", (*PLAIN, (b"allow", b"GET, HEAD")))
            return
        try:
            allowed = await self._allowed(scope)
        except (StreamprocError, TimeoutError) as problem:
            why = str(problem) or f"no answer within {TOKEN_S_MAX:g} s"
            log.warning("the token of a request for %s cannot be looked up: %s", PATH, why)
            await send_problem(send, 503, f"the token cannot be looked up: {why}", (*PLAIN, RETRY))
            return
        if not allowed:
            detail = (
                "STREAMPROC_METRICS_TOKEN, or a token that may read everything, is needed as a bearer token"
            )
            await send_problem(send, 401, detail, (*PLAIN, (b"www-authenticate", b"Bearer")))
        else:
            await self._show(scope, send)

    async def _allowed(self, scope: Scope) -> bool:
        secret = bearer(scope)
        if self._secret and hmac.compare_digest(secret.encode("latin-1"), self._secret):
            return True
        if not SECRET.fullmatch(secret):
            return False
        async with asyncio.timeout(TOKEN_S_MAX):
            token = await self._token(digest_of(secret))
        return token is not None and token.opens(self._now_us()) and token.may("read all")

    async def _show(self, scope: Scope, send: Send) -> None:
        accepts = b",".join(value for name, value in scope["headers"] if name == b"accept").decode("latin-1")
        encode, kind = choose_encoder(accepts)
        try:
            # One at a time: several scrapers together must not query the stores together.
            async with asyncio.timeout(PAGE_S_MAX), self._turn:
                body = encode(Shown(await self._page()))
        except TimeoutError:
            detail = f"the page was not there within {PAGE_S_MAX:g} s"
            await send_problem(send, 503, detail, (*PLAIN, RETRY))
            return
        await send_body(send, 200, body, kind.encode(), PLAIN)


def metrics_operation(page: Metrics) -> Operation:
    """The metrics' route. `action` is what a token of the API must be allowed."""
    return Operation(
        method="GET", path=PATH, name="showMetrics", summary="What every process here counts, and what the stores hold",
        action="read all", raw=page,
        says={
            200: Says("The page, in the format that `Accept` asks for", {"type": "string"}, media=MEDIA),
            401: Says(
                "Neither STREAMPROC_METRICS_TOKEN nor a token that may read everything",
                headers={"WWW-Authenticate": "Bearer"},
            ),
            503: Says(
                "The page was not there in time, or the token cannot be looked up",
                headers={"Retry-After": "Seconds"},
            ),
        },
    )  # fmt: skip
