"""MCP over HTTP: POST /mcp, a request and its answer as JSON, no session. Each caller brings its own token.

Tokens are for our API, of which this is another form: a token is sent on unchanged, to our API only, and kept nowhere.
The SDK guards against DNS rebinding by `Host` and `Origin`.
"""

import asyncio
import logging
from collections.abc import Sequence
from typing import Any, Final
from urllib.parse import urlsplit

from mcp.server import Server
from mcp.server.streamable_http_manager import StreamableHTTPSessionManager
from mcp.server.transport_security import TransportSecuritySettings

from streamproc.api.asgi import SecurityHeaders
from streamproc.api.health import ALIVE
from streamproc.api.listening import serve_until, server_of
from streamproc.clients.json_text import names_are_unique
from streamproc.domain.tokens import SECRET
from streamproc.ingress.body import BODY_READ_S_MAX, bearer, posted_body
from streamproc.ingress.deadline import Deadlines
from streamproc.ingress.problems import Asgi, Message, Receive, Scope, Send, send_body, send_problem
from streamproc.ingress.refusals import ThrottledWarning
from streamproc.mcp.server import REFUSED, Context
from streamproc.ports import bound
from streamproc.settings import PREFIX

PATH: Final = "/mcp"
REQUESTS_MAX: Final = 128
"""Requests at once: twice the calls, since listing tools and the like are requests too. Others get 503."""
RETRY_AFTER_S: Final = b"5"
_LOOPBACK: Final = ("127.0.0.1", "localhost", "[::1]")
_ANY_ADDRESS: Final = frozenset({"0.0.0.0", "::", ""})  # noqa: S104  # compared, not listened on
_WHO: Final = (
    "a bearer token is needed, from `streamproc token create`, that is known, not expired and not revoked"
)
FOREIGN: Final = frozenset({403, 421})
"""What the SDK says to a foreign `Origin` or `Host`."""
_SDK_GUARD: Final = logging.getLogger("mcp.server.transport_security")
log = logging.getLogger(__name__)


def token_of(context: Context) -> str:
    """The request's token; `Front` lets no request without one through."""
    assert context.request is not None
    return bearer(context.request.scope)


def allowed(host: str, public_url: str, more: Sequence[str]) -> TransportSecuritySettings:
    """The hosts that `Host` and `Origin` may name: loopback, our own, and those in `more`."""
    named = [urlsplit(public_url).netloc, *more] if public_url else list(more)
    if host not in _ANY_ADDRESS:
        named.append(f"[{host}]" if ":" in host else host)
    named = [one.lower() for one in named]  # clients send lower case
    hosts = [*_LOOPBACK, *named]
    return TransportSecuritySettings(
        enable_dns_rebinding_protection=True,
        allowed_hosts=[*hosts, *(f"{one}:*" for one in hosts)],
        allowed_origins=[f"http://{one}:*" for one in _LOOPBACK] + [f"https://{one}" for one in named],
    )


class Front:
    """Passes on to `mcp` a POST with a token and a body within the limit; answers 401 where the API does."""

    def __init__(self, mcp: Asgi, *, body_bytes_max: int) -> None:
        self._mcp = mcp
        self._bytes_max = body_bytes_max
        self._within = Deadlines(BODY_READ_S_MAX)
        self._in_hand = 0
        self._foreign = ThrottledWarning(
            log, "requests refused whose Host or Origin STREAMPROC_MCP_HOSTS does not name"
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        if scope["path"] == "/healthz" and scope["method"] in ("GET", "HEAD"):
            await send_body(send, 200, ALIVE, b"application/json")
        elif scope["path"] != PATH:
            await send_problem(send, 404, f"MCP is spoken at {PATH}")
        elif not SECRET.fullmatch(bearer(scope)):
            await _refuse(send)
        else:
            # Before counting, so that slow senders take no place.
            body = await self._body(scope, receive, send)
            if body is None:
                return
            if self._in_hand >= REQUESTS_MAX:
                detail = f"{self._in_hand} requests are in hand, the limit is {REQUESTS_MAX}"
                await send_problem(send, 503, detail, [(b"retry-after", RETRY_AFTER_S)])
                return
            self._in_hand += 1
            try:
                await self._pass_on(body, scope, receive, send)
            finally:
                self._in_hand -= 1

    async def _body(self, scope: Scope, receive: Receive, send: Send) -> bytes | None:
        """The message; None if the request was answered here."""
        body = await posted_body(
            scope,
            receive,
            send,
            other_method="MCP is POSTed: there are no sessions and no streams here",
            within=self._within,
            bytes_max=self._bytes_max,
        )
        if body is not None and _names_twice(body):
            await send_problem(send, 400, "the message names a field twice")
            return None
        return body

    async def _pass_on(self, body: bytes, scope: Scope, receive: Receive, send: Send) -> None:
        left = [body]

        async def replay() -> Message:
            if left:
                return {"type": "http.request", "body": left.pop(), "more_body": False}
            return await receive()

        async def unless_refused(message: Message) -> None:
            if message.get("status") in FOREIGN:
                self._foreign.count()
            if REFUSED not in scope:
                await send(message)

        await self._mcp(scope, replay, unless_refused)
        if REFUSED in scope:
            await _refuse(send)


def _names_twice(body: bytes) -> bool:
    """Whether a field is there twice: a proxy may check one value while we send the other. The API refuses it too."""
    try:
        return not names_are_unique(body)
    except (ValueError, RecursionError):  # the SDK reports that it is not JSON
        return False


async def _refuse(send: Send) -> None:
    await send_problem(send, 401, _WHO, [(b"www-authenticate", b"Bearer")])


async def serve_http(
    server: Server[Any],
    stopping: asyncio.Event,
    *,
    host: str,
    port: int,
    guard: TransportSecuritySettings,
    body_bytes_max: int,
    drain_s: float,
) -> None:
    """Listen until `stopping`; requests in progress then have `drain_s`. Raises ConfigError if the port is taken."""
    manager = StreamableHTTPSessionManager(
        server,
        json_response=True,
        stateless=True,
        security_settings=guard,
        max_request_body_size=body_bytes_max,
    )
    # It writes a line for each refusal, which needs no token; ours are seldom.
    _SDK_GUARD.setLevel(logging.ERROR)
    with bound(host, port, PREFIX, "MCP_PORT") as sockets:
        async with manager.run():
            front = SecurityHeaders(Front(manager.handle_request, body_bytes_max=body_bytes_max))
            listener = server_of(front, host=host, port=port, drain_s=drain_s)
            log.info("MCP is spoken at http://%s:%d%s", host, port, PATH)
            await serve_until(stopping, listener, sockets)
