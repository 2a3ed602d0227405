"""The HTTP application: the bank's webhook as raw ASGI, payouts of agents, and health, inside Starlette."""

import asyncio
from collections.abc import Sequence
from typing import Final

import msgspec
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from streamproc.api.health import Check, Ready
from streamproc.api.payouts import Payouts
from streamproc.ingress.door import Door
from streamproc.ingress.problems import PROBLEM_JSON, Header, Message, Receive, Scope, Send, problem_body
from streamproc.ingress.razorpay_webhook import RazorpayWebhook
from streamproc.ingress.slack_review import PATH as SLACK_PATH
from streamproc.ingress.slack_review import NotConfigured, SlackReview

READY_S_MAX = 3.0
"""A probe that takes longer says as much as one that fails."""

SECURITY_HEADERS: Final[tuple[Header, ...]] = (
    (b"x-content-type-options", b"nosniff"),
    (b"content-security-policy", b"default-src 'none'; frame-ancestors 'none'"),
    (b"x-frame-options", b"DENY"),
    (b"referrer-policy", b"no-referrer"),
    (b"strict-transport-security", b"max-age=31536000"),
    (b"cache-control", b"no-store"),
)


def create_app(
    producer: Door,
    secrets: Sequence[str],
    *,
    body_bytes_max: int,
    fallback_account: str,
    ready: Ready,
    payouts: Payouts | None = None,
    slack: SlackReview | None = None,
) -> "SecurityHeaders":
    """The ASGI application. Raises ConfigError when no secret could verify a webhook."""
    webhook = RazorpayWebhook(
        producer, secrets, body_bytes_max=body_bytes_max, fallback_account=fallback_account
    )

    async def readyz(_request: Request) -> Response:
        return _readiness(await _asked(ready))

    app = Starlette(
        routes=[
            Route("/webhooks/razorpay", webhook),
            Route(SLACK_PATH, slack or NotConfigured()),
            Route("/healthz", _healthz, methods=["GET"]),
            Route("/readyz", readyz, methods=["GET"]),
            *(payouts.routes if payouts is not None else ()),
        ],
        exception_handlers={HTTPException: _refused, Exception: _failed},
    )
    app.router.redirect_slashes = False  # a redirected POST would lose its body
    return SecurityHeaders(app)


class SecurityHeaders:
    """Adds SECURITY_HEADERS to every response that does not set them itself."""

    def __init__(self, app: Starlette) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                present = {name for name, _ in message["headers"]}
                missing = [header for header in SECURITY_HEADERS if header[0] not in present]
                message = {**message, "headers": [*message["headers"], *missing]}
            await send(message)

        await self._app(scope, receive, send_with_headers)


async def _healthz(_request: Request) -> Response:
    """The process is alive; nothing else is asked."""
    return Response(b'{"status":"alive"}', media_type="application/json")


async def _asked(ready: Ready) -> list[Check]:
    try:
        async with asyncio.timeout(READY_S_MAX):
            return await ready()
    except TimeoutError:
        return [Check("ready", False, f"no answer within {READY_S_MAX:g} s")]


def _readiness(checks: list[Check]) -> Response:
    is_ready = all(check.ok or not check.required for check in checks)
    body = msgspec.json.encode({"status": "ready" if is_ready else "not ready", "checks": checks})
    return Response(body, status_code=200 if is_ready else 503, media_type="application/json")


async def _refused(request: Request, error: Exception) -> Response:
    if not isinstance(error, HTTPException):
        return await _failed(request, error)
    detail = "there is nothing at this path" if error.status_code == 404 else error.detail
    return _problem(error.status_code, detail, dict(error.headers or {}))


async def _failed(_request: Request, _error: Exception) -> Response:
    return _problem(500, "the request failed here; the reason is in the log", {})


def _problem(status: int, detail: str, headers: dict[str, str]) -> Response:
    return Response(
        problem_body(status, detail),
        status_code=status,
        headers=headers,
        media_type=PROBLEM_JSON.decode("ascii"),
    )
