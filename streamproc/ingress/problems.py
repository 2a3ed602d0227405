"""RFC 9457 problem details, as raw ASGI messages: what producers answer when they say no."""

from collections.abc import Awaitable, Callable, MutableMapping, Sequence
from http import HTTPStatus
from typing import Any, TypeAlias

import msgspec

Message: TypeAlias = MutableMapping[str, Any]  # ASGI's own type
Scope: TypeAlias = MutableMapping[str, Any]
Receive: TypeAlias = Callable[[], Awaitable[Message]]
Send: TypeAlias = Callable[[Message], Awaitable[None]]
Asgi: TypeAlias = Callable[[Scope, Receive, Send], Awaitable[None]]
Header: TypeAlias = tuple[bytes, bytes]

PROBLEM_JSON = b"application/problem+json"


def problem_body(status: int, detail: str, **more: object) -> bytes:
    """The body of a problem; `detail` is for the caller's eyes and holds no secret. `more`: extension members."""
    title = HTTPStatus(status).phrase
    said: dict[str, object] = {"type": "about:blank", "title": title, "status": status, "detail": detail}
    return msgspec.json.encode(said | more)


async def send_problem(send: Send, status: int, detail: str, headers: Sequence[Header] = ()) -> None:
    """Answer with a problem."""
    await send_body(send, status, problem_body(status, detail), PROBLEM_JSON, headers)


async def send_body(
    send: Send, status: int, body: bytes, content_type: bytes, headers: Sequence[Header] = ()
) -> None:
    """One whole response."""
    length = str(len(body)).encode("ascii")
    all_headers = [(b"content-type", content_type), (b"content-length", length), *headers]
    await send({"type": "http.response.start", "status": status, "headers": all_headers})
    await send({"type": "http.response.body", "body": body})
