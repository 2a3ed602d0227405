"""The HTTP server of every role: uvicorn, with less work per request.

uvicorn's protocol reads and answers. We give it a transport that sends an answer's head and body at once, which uvicorn
writes one by one, and a loop whose timers for idle connections cost next to nothing.
"""

import asyncio
import socket
from collections.abc import Callable
from functools import partial
from typing import Any, Final, cast

import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.server import ServerState

from streamproc.ingress.deadline import Deadline, Deadlines
from streamproc.ingress.problems import Asgi

KEEP_ALIVE_S: Final = 5
"""An idle connection is closed after this: uvicorn's own default, with which proxies and the bank can deal."""
HELD_BYTES_MAX: Final = 64 * 1024
"""Most bytes gathered in one step of the loop; more is sent at once, so that back-pressure of a slow reader works."""


class Gathering:
    """A transport that sends in one piece whatever is written within one step of the loop."""

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None:
        self._transport, self._loop = transport, loop
        self._held: list[bytes] = []
        self._bytes = 0

    def write(self, data: bytes) -> None:
        """Send at the end of this step of the loop, or earlier."""
        if not self._held:
            self._loop.call_soon(self._flush)
        self._held.append(data)
        self._bytes += len(data)
        if self._bytes > HELD_BYTES_MAX:
            self._flush()

    def _flush(self) -> None:
        held, self._held, self._bytes = self._held, [], 0
        if held and not self._transport.is_closing():  # a client that has gone needs no answer
            self._transport.write(b"".join(held))

    def close(self) -> None:
        """Close after everything is sent."""
        self._flush()
        self._transport.close()

    def is_closing(self) -> bool:
        """Whether it is closed, or will be."""
        return self._transport.is_closing()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)


class _IdleTimers:
    """What uvicorn's protocol uses of the loop: tasks, and after each answer a timer that closes an idle connection."""

    def __init__(self, loop: asyncio.AbstractEventLoop, idle: Deadlines) -> None:
        self.create_task = loop.create_task
        self._loop, self._idle = loop, idle

    def call_later(self, after_s: float, back: Callable[[], None]) -> Deadline | asyncio.TimerHandle:
        """A timer; those of uvicorn's keep-alive are all alike, and share one."""
        if after_s == self._idle.after_s:
            return self._idle.call(back, self._loop)
        return self._loop.call_later(after_s, back)


class Protocol(HttpToolsProtocol):
    """uvicorn's own protocol, over a gathering transport and with cheap timers."""

    def __init__(
        self,
        config: uvicorn.Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
        *,
        idle: Deadlines,
    ) -> None:
        self._real_loop = _loop or asyncio.get_running_loop()
        timers: Any = _IdleTimers(self._real_loop, idle)
        super().__init__(config, server_state, app_state, timers)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """A client is connected."""
        gathering: Any = Gathering(cast("asyncio.Transport", transport), self._real_loop)
        super().connection_made(gathering)


def server_of(app: Asgi, *, host: str, port: int, drain_s: int) -> uvicorn.Server:
    """A server, not yet listening. When it stops, requests in progress have `drain_s` seconds."""
    protocol: Any = partial(Protocol, idle=Deadlines(KEEP_ALIVE_S))
    config = uvicorn.Config(
        app,
        host=host,
        port=port,
        http=protocol,
        ws="none",
        interface="asgi3",
        log_config=None,
        access_log=False,
        lifespan="off",
        server_header=False,
        proxy_headers=False,  # the client's address is not used
        timeout_keep_alive=KEEP_ALIVE_S,
        timeout_graceful_shutdown=drain_s,
    )
    return uvicorn.Server(config)


async def serve_until(stopping: asyncio.Event, server: uvicorn.Server, sockets: list[socket.socket]) -> None:
    """Serve on these sockets until `stopping`, then finish the requests in progress."""
    server.install_signal_handlers = lambda: None  # type: ignore[attr-defined]  # older uvicorn; ours set `stopping`
    serving = asyncio.create_task(server._serve(sockets), name="http")
    waiting = asyncio.create_task(stopping.wait())
    await asyncio.wait({serving, waiting}, return_when=asyncio.FIRST_COMPLETED)
    server.should_exit = True
    waiting.cancel()
    await serving
