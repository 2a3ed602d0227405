"""The HTTP application: the route table inside Starlette, with what every answer carries."""

from collections.abc import Awaitable, Sequence
from typing import Final, get_args

import msgspec
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp

from streamproc.api.answers import JSON, problem
from streamproc.api.auth import AccessControl
from streamproc.api.health import Ready, health_operations
from streamproc.api.openapi import document
from streamproc.api.operations import Call, Method, Operation, Says
from streamproc.api.route_names import ROUTE, template_of
from streamproc.api.routing import routes_of
from streamproc.api.webhooks import razorpay_operation
from streamproc.ingress.problems import Header, Message, Receive, Scope, Send, send_problem
from streamproc.ingress.razorpay_webhook import RazorpayWebhook

FAILED = "the request failed here; the reason is in the log"

SECURITY_HEADERS: Final[tuple[Header, ...]] = (
    (b"x-content-type-options", b"nosniff"),
    (b"content-security-policy", b"default-src 'none'; frame-ancestors 'none'"),
    (b"x-frame-options", b"DENY"),
    (b"referrer-policy", b"no-referrer"),
    (b"strict-transport-security", b"max-age=31536000"),
    (b"cache-control", b"no-store"),
)
_SECURITY_NAMES: Final = frozenset(name for name, _ in SECURITY_HEADERS)


def create_app(
    webhook: RazorpayWebhook,
    *,
    body_bytes_max: int,
    ready: Ready,
    operations: Sequence[Operation] = (),
    access: AccessControl | None = None,
    cors_origins: Sequence[str] = (),
) -> "SecurityHeaders":
    """The ASGI application: `operations`, and the bank's webhook and health, which need no token.

    Only pages of `cors_origins` may call it from a browser.
    """
    delivery = razorpay_operation(webhook)
    table = [delivery, *health_operations(ready), *operations]
    table.append(_openapi(table))
    app = Starlette(
        routes=routes_of(table, access, body_bytes_max=body_bytes_max),
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


async def _refused(request: Request, error: Exception) -> Response:
    if not isinstance(error, HTTPException):
        return await _failed(request, error)
    detail = "there is nothing at this path" if error.status_code == 404 else error.detail
    return problem(error.status_code, detail, error.headers)


async def _failed(_request: Request, _error: Exception) -> Response:
    return problem(500, FAILED)
