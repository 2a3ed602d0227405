"""Reading a request: its body within a limit and a time, and headers that say one thing. Raw ASGI."""

import asyncio
import contextlib
from collections.abc import Callable
from typing import Final

from streamproc.ingress.deadline import Deadlines
from streamproc.ingress.problems import Header, Receive, Scope, Send, send_problem

BODY_READ_S_MAX = 10.0
"""A sender slower than this holds a connection for nothing; the bank itself gives up after 5 s."""
CLOSE: Final[Header] = (b"connection", b"close")
"""What is left of the body is not read any more."""
REST_BYTES_MAX = 4 * 1024 * 1024
"""Of a body over the limit so much more is read and thrown away. A connection that is closed over unread bytes is
reset, and its sender may never see why it was refused."""
REST_READ_S_MAX = 0.5
"""And for so long: what has come by then is what an honest sender had on its way."""


class TooLarge(Exception):
    """The body is over the limit."""


async def read_body(scope: Scope, receive: Receive, bytes_max: int) -> bytes | None:
    """The whole body, or None when the sender has gone. Raises TooLarge; nothing over the limit is kept."""
    announced = header(scope, b"content-length") or b""
    if announced.isdigit() and int(announced[:20]) > bytes_max:
        if header(scope, b"expect") is None:  # who waits to be told to go on has sent nothing
            await _throw_away(receive)
        raise TooLarge
    body = bytearray()
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            return None
        body += message.get("body", b"")
        if len(body) > bytes_max:
            body.clear()
            if message.get("more_body", False):
                await _throw_away(receive)
            raise TooLarge
        if not message.get("more_body", False):
            return bytes(body)


async def _throw_away(receive: Receive) -> None:
    read = 0
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(REST_READ_S_MAX):
            while read <= REST_BYTES_MAX:
                message = await receive()
                read += len(message.get("body", b""))
                if message["type"] == "http.disconnect" or not message.get("more_body", False):
                    return


async def posted_body(
    scope: Scope,
    receive: Receive,
    send: Send,
    *,
    other_method: str,
    within: Deadlines,
    bytes_max: int,
    too_large: Callable[[str], None] | None = None,
) -> bytes | None:
    """The body of what was posted. None: the sender has gone, or was answered 405, 408 or 413 here.

    `other_method` is said to any other method; `too_large` hears what is said of a body over the limit.
    """
    if scope["method"] != "POST":
        await send_problem(send, 405, other_method, [(b"allow", b"POST")])
        return None
    try:
        with within.within():
            return await read_body(scope, receive, bytes_max)
    except TimeoutError:
        await send_problem(send, 408, f"the body did not arrive within {within.after_s:g} s", [CLOSE])
    except TooLarge:
        detail = f"the body is over {bytes_max} bytes"
        if too_large is not None:
            too_large(detail)
        await send_problem(send, 413, detail, [CLOSE])
    return None


def header(scope: Scope, name: bytes) -> bytes | None:
    """The header's value; None if it is absent, or there twice and so says nothing."""
    values: list[bytes] = [value for key, value in scope["headers"] if key == name]
    return values[0] if len(values) == 1 else None


def bearer(scope: Scope) -> str:
    """The token that the request bears, which may be any text; empty if there is none."""
    scheme, _, token = (header(scope, b"authorization") or b"").partition(b" ")
    return token.strip().decode("latin-1") if scheme.lower() == b"bearer" else ""
