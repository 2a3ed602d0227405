"""The HTTP server of every role: uvicorn, with less work per request and with limits that it has not.

uvicorn's protocol reads and answers. `connection.py` limits what a client may send and how long it may take,
`connection_limit.py` how many clients there may be, and `gathering.py` sends an answer in one piece.
"""

import asyncio
import logging
import socket
from functools import partial
from typing import Any

import uvicorn

from streamproc.api.connection import Protocol, Times
from streamproc.api.connection_limit import ConnectionLimit, connections_max
from streamproc.ingress.problems import Asgi
from streamproc.ingress.refusals import ThrottledWarning

log = logging.getLogger(__name__)


def _is_no_cancellation(record: logging.LogRecord) -> bool:
    """Leaves out the traceback of a request that was cancelled when the drain was over: uvicorn has said how many."""
    return not (record.exc_info and isinstance(record.exc_info[1], asyncio.CancelledError))


logging.getLogger("uvicorn.error").addFilter(_is_no_cancellation)


def server_of(app: Asgi, *, host: str, port: int, drain_s: float) -> uvicorn.Server:
    """A server, not yet listening. When it stops, requests in progress have `drain_s` seconds."""
    refused = ThrottledWarning(
        log, "connections closed over what is no request, or whose head is too long or too slow"
    )
    most = connections_max()
    limit = ConnectionLimit(
        most, ThrottledWarning(log, f"connections closed to make room, since {most} were open")
    )
    times = Times()
    protocol: Any = partial(Protocol, times=times, limit=limit, refused=refused)
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
        timeout_keep_alive=int(times.idle.after_s),
        timeout_graceful_shutdown=drain_s,  # type: ignore[arg-type]  # only waited for
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
