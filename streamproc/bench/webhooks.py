"""Payouts as the bank's signed webhooks, over HTTP to `streamproc serve`, at little cost for who sends them."""

import asyncio
import hmac
from types import TracebackType
from typing import Final, Self

import msgspec

from streamproc.domain.events import PayoutObserved
from streamproc.errors import JobFailed

SIGNED_WITH: Final = "bench-only"
"""Of the servers that the bench starts; they end with it."""
CONNECTIONS: Final = 128
"""Webhooks on their way at once. `serve` puts into one append what comes together; the bank has many senders too."""
ANSWER_MAX_S: Final = 30.0
TRIES_MAX: Final = 2
"""The server closes idle connections, perhaps right when one is used again; the bank delivers again too."""
PATH: Final = "/webhooks/razorpay"
HOST: Final = "127.0.0.1"


def body(event: PayoutObserved) -> bytes:
    """What the bank sends of a payout, so that `serve` comes to this very event but for its time."""
    entity = {"entity": "payout", **msgspec.to_builtins(event.facts)}
    return msgspec.json.encode(
        {
            "entity": "event",
            "account_id": event.account,
            "event": event.bank_event,
            "contains": ["payout"],
            "payload": {"payout": {"entity": entity}},
            "created_at": event.facts.created_at,
        }
    )


def request(event: PayoutObserved, port: int) -> bytes:
    """The whole request, signed."""
    said = body(event)
    signature = hmac.digest(SIGNED_WITH.encode(), said, "sha256").hex()
    return (
        f"POST {PATH} HTTP/1.1\r\nhost: {HOST}:{port}\r\ncontent-type: application/json\r\n"
        f"x-razorpay-event-id: {event.delivery}\r\nx-razorpay-signature: {signature}\r\n"
        f"content-length: {len(said)}\r\n\r\n"
    ).encode() + said


class _Line(asyncio.Protocol):
    """A keep-alive connection with at most one webhook on its way."""

    def __init__(self) -> None:
        self._transport: asyncio.Transport | None = None
        self._heard = b""
        self._answer: asyncio.Future[int] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport  # type: ignore[assignment]  # uvloop's own is no subclass

    @property
    def is_open(self) -> bool:
        return self._transport is not None and not self._transport.is_closing()

    async def ask(self, said: bytes) -> int:
        """The answer's status. Raises ConnectionError where the connection ends before it."""
        assert self._transport is not None
        self._heard, self._answer = b"", asyncio.get_running_loop().create_future()
        self._transport.write(said)
        return await self._answer

    def data_received(self, data: bytes) -> None:
        self._heard += data
        head, found, rest = self._heard.partition(b"\r\n\r\n")
        if not found or self._answer is None or self._answer.done():
            return
        _, _, length = head.lower().partition(b"content-length: ")
        if len(rest) >= int(length.partition(b"\r\n")[0]):
            self._answer.set_result(int(head[9:12]))

    def connection_lost(self, exc: Exception | None) -> None:
        if self._answer is not None and not self._answer.done():
            self._answer.set_exception(ConnectionError("the connection ended before the answer"))

    def close(self) -> None:
        if self._transport is not None:
            self._transport.abort()


class Webhooks:
    """Delivers requests, as many at once as there are connections."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._free: asyncio.LifoQueue[_Line | None] = asyncio.LifoQueue()

    async def __aenter__(self) -> Self:
        for _ in range(CONNECTIONS):
            self._free.put_nowait(None)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, problem: BaseException | None, trace: TracebackType | None
    ) -> None:
        while not self._free.empty():
            if (line := self._free.get_nowait()) is not None:
                line.close()

    async def deliver(self, said: bytes) -> None:
        """Returns when it was answered 200. Raises JobFailed where it is not, or not within ANSWER_MAX_S."""
        line = await self._free.get()
        try:
            async with asyncio.timeout(ANSWER_MAX_S):
                for _ in range(TRIES_MAX):
                    try:
                        if line is None or not line.is_open:
                            line = await self._connected()
                        status = await line.ask(said)
                        break
                    except OSError as problem:
                        lost: OSError = problem
                else:
                    raise JobFailed(f"a webhook found no answer at port {self._port}: {lost}") from lost
        except TimeoutError as problem:
            raise JobFailed(f"a webhook was not answered within {ANSWER_MAX_S:g} s") from problem
        finally:
            self._free.put_nowait(line)
        if status != 200:
            raise JobFailed(f"a webhook was answered {status}; it must be 200")

    async def _connected(self) -> _Line:
        _, line = await asyncio.get_running_loop().create_connection(_Line, HOST, self._port)
        return line
