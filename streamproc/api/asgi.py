"""The HTTP application: the route table inside Starlette, with what every answer carries."""

import asyncio
from collections.abc import Awaitable, Sequence
from typing import Any, Final, Literal, get_args

import msgspec
from msgspec import Struct
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp

from streamproc.api.answers import JSON, json_answer, problem
from streamproc.api.auth import Doorkeeper
from streamproc.api.health import ALIVE, Check, Ready
from streamproc.api.openapi import document
from streamproc.api.operations import Call, Method, Operation, Says
from streamproc.api.route_names import ROUTE, template_of
from streamproc.api.routing import routes_of
from streamproc.ingress.problems import Header, Message, Receive, Scope, Send, send_problem
from streamproc.ingress.razorpay_webhook import RazorpayWebhook

FAILED = "the request failed here; the reason is in the log"
READY_S_MAX = 3.0
"""Longest wait for all checks; after that the answer is 503."""

SECURITY_HEADERS: Final[tuple[Header, ...]] = (
    (b"x-content-type-options", b"nosniff"),
    (b"content-security-policy", b"default-src 'none'; frame-ancestors 'none'"),
    (b"x-frame-options", b"DENY"),
    (b"referrer-policy", b"no-referrer"),
    (b"strict-transport-security", b"max-age=31536000"),
    (b"cache-control", b"no-store"),
)
_SECURITY_NAMES: Final = frozenset(name for name, _ in SECURITY_HEADERS)


class Alive(Struct, frozen=True):
    """The process answers."""

    status: Literal["alive"]


class Readiness(Struct, frozen=True):
    """Each dependency by name."""

    status: Literal["ready", "not ready"]
    checks: list[Check]


class Taken(Struct, frozen=True):
    """The outcome of a webhook."""

    status: Literal["accepted", "duplicate", "ignored"]
    entry: str


def create_app(
    webhook: RazorpayWebhook,
    *,
    body_bytes_max: int,
    ready: Ready,
    operations: Sequence[Operation] = (),
    doorkeeper: Doorkeeper | None = None,
    cors_origins: Sequence[str] = (),
) -> "SecurityHeaders":
    """The ASGI application: `operations`, and the bank's webhook and health, which need no token.

    Only pages of `cors_origins` may call it from a browser.
    """
    delivery = _webhook(webhook)
    table = [delivery, *_health(ready), *operations]
    table.append(_openapi(table))
    app = Starlette(
        routes=routes_of(table, doorkeeper, body_bytes_max=body_bytes_max),
        exception_handlers={HTTPException: _refused, Exception: _failed},
        middleware=_cors(cors_origins, table),
    )
    app.router.redirect_slashes = False  # a redirected POST would lose its body
    return SecurityHeaders(WebhooksFirst(delivery.path, webhook, app))


def _cors(origins: Sequence[str], table: Sequence[Operation]) -> list[Middleware]:
    """CORS for pages of these origins only. No cookies: a page sends its token itself."""
    if not origins:
        return []
    read = {one.name for operation in table for one in operation.reads if one.where == "header"}
    return [
        Middleware(
            CORSMiddleware,
            allow_origins=list(origins),
            allow_methods=get_args(Method),
            allow_headers=["Authorization", "Content-Type", *sorted(read)],
            expose_headers=["ETag", "Location", "Retry-After"],
        )
    ]


def _webhook(webhook: RazorpayWebhook) -> Operation:
    return Operation(
        method="POST", path="/webhooks/razorpay", name="deliverWebhook", summary="The bank tells of a payout",
        action=None, raw=webhook,
        says={
            200: Says("It is in the log, or need not be", Taken),
            400: Says("Signed, but no payload"),
            401: Says("`X-Razorpay-Signature` is missing or is not this body's"),
            408: Says("The body did not arrive in time"),
            413: Says("The body is over the limit"),
            503: Says("The log cannot be written now; deliver again", headers={"Retry-After": "Seconds"}),
        },
    )  # fmt: skip


def _health(ready: Ready) -> list[Operation]:
    # Requests that come meanwhile share one answer: they need no token, and must not make the dependencies look slow.
    probe: asyncio.Task[list[Check]] | None = None

    async def alive(_call: Call) -> Response:
        return Response(ALIVE, media_type=JSON)

    async def readyz(_call: Call) -> Response:
        nonlocal probe
        if probe is None or probe.done():
            probe = asyncio.create_task(_asked(ready), name="readyz")
        return _readiness(await asyncio.shield(probe))

    return [
        Operation(
            method="GET", path="/healthz", name="isAlive", summary="The process is alive; nothing else is asked",
            action=None, handle=alive, says={200: Says("Alive", Alive)},
        ),
        Operation(
            method="GET", path="/readyz", name="isReady", summary="Each dependency, asked now",
            action=None, handle=readyz,
            says={200: Says("Ready", Readiness), 503: Says("Not ready", Readiness)},
        ),
    ]  # fmt: skip


def _openapi(table: Sequence[Operation]) -> Operation:
    async def openapi(_call: Call) -> Response:
        return Response(described, media_type=JSON)

    operation = Operation(
        method="GET", path="/openapi.json", name="showOpenapi", summary="This document",
        action=None, handle=openapi, says={200: Says("The document", {"type": "object"})},
    )  # fmt: skip
    described = msgspec.json.encode(document([*table, operation]))
    return operation


class WebhooksFirst:
    """Passes the bank's webhooks straight to their application: looking through all routes first costs a quarter more.

    An exception of the application becomes a 500 here.
    """

    def __init__(self, path: str, application: ASGIApp, others: ASGIApp) -> None:
        self._path, self._application, self._others = path, application, others

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on."""
        if scope["type"] != "http" or scope["path"] != self._path:
            await self._others(scope, receive, send)
            return
        scope[ROUTE] = template_of(self._path)
        begun = False

        def noted(message: Message) -> Awaitable[None]:
            nonlocal begun
            begun = True
            return send(message)

        try:
            await self._application(scope, receive, noted)
        except Exception:
            if not begun:
                await send_problem(send, 500, FAILED)
            raise


class SecurityHeaders:
    """Adds SECURITY_HEADERS to every response that does not set them itself."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        def send_with_headers(message: Message) -> Awaitable[None]:
            if message["type"] == "http.response.start":
                headers = message["headers"]
                there = _SECURITY_NAMES.intersection([name for name, _ in headers])
                missing = (
                    [one for one in SECURITY_HEADERS if one[0] not in there] if there else SECURITY_HEADERS
                )
                message = {**message, "headers": [*headers, *missing]}
            return send(message)

        await self._app(scope, receive, send_with_headers)


async def _asked(ready: Ready) -> list[Check]:
    try:
        async with asyncio.timeout(READY_S_MAX):
            return await ready()
    except TimeoutError:
        return [Check("ready", False, f"no answer within {READY_S_MAX:g} s")]


def _readiness(checks: list[Check]) -> Response:
    is_ready = all(check.ok or not check.required for check in checks)
    said: dict[str, Any] = {"status": "ready" if is_ready else "not ready", "checks": checks}
    return json_answer(200 if is_ready else 503, said)


async def _refused(request: Request, error: Exception) -> Response:
    if not isinstance(error, HTTPException):
        return await _failed(request, error)
    detail = "there is nothing at this path" if error.status_code == 404 else error.detail
    return problem(error.status_code, detail, error.headers)


async def _failed(_request: Request, _error: Exception) -> Response:
    return problem(500, FAILED)
