"""Reading a request: its body within a limit and a time, and headers that say one thing. Raw ASGI."""

from streamproc.ingress.problems import Receive, Scope

BODY_READ_S_MAX = 10.0
"""A sender slower than this holds a connection for nothing; the bank itself gives up after 5 s."""


class TooLarge(Exception):
    """The body is over the limit."""


async def read_body(scope: Scope, receive: Receive, bytes_max: int) -> bytes | None:
    """The whole body, or None when the sender has gone. Raises TooLarge as soon as that is known."""
    announced = header(scope, b"content-length") or b""
    if announced.isdigit() and int(announced[:20]) > bytes_max:
        raise TooLarge
    body = bytearray()
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            return None
        body += message.get("body", b"")
        if len(body) > bytes_max:
            raise TooLarge
        if not message.get("more_body", False):
            return bytes(body)


def header(scope: Scope, name: bytes) -> bytes | None:
    """The header's value; None if it is absent, or there twice and so says nothing."""
    values: list[bytes] = [value for key, value in scope["headers"] if key == name]
    return values[0] if len(values) == 1 else None
