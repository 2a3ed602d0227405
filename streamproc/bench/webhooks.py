"""Send payouts as signed webhooks of the bank over HTTP to `streamproc serve`, with little CPU in the sender."""

import asyncio
import hmac
from types import TracebackType
from typing import Final, Self

import msgspec

from streamproc.domain.events import PayoutObserved
from streamproc.errors import JobFailed

SIGNED_WITH: Final = "bench-only"
"""Webhook secret of the servers that the benchmark starts and ends."""
CONNECTIONS: Final = 128
"""Webhooks under way at once. The bank has many senders too, and `serve` appends together what arrives together."""
ANSWER_MAX_S: Final = 30.0
TRIES_MAX: Final = 2
"""The server may close an idle connection just when it is used again. The bank delivers again too."""
PATH: Final = "/webhooks/razorpay"
HOST: Final = "127.0.0.1"


def body(event: PayoutObserved) -> bytes:
    """The bank's webhook for a payout. `serve` makes this same event of it, except for its time."""
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
    """The whole signed request."""
    sent = body(event)
    signature = hmac.digest(SIGNED_WITH.encode(), sent, "sha256").hex()
    return (
        f"POST {PATH} HTTP/1.1\r\nhost: {HOST}:{port}\r\ncontent-type: application/json\r\n"
        f"x-razorpay-event-id: {event.delivery}\r\nx-razorpay-signature: {signature}\r\n"
        f"content-length: {len(sent)}\r\n\r\n"
    ).encode() + sent


class _Connection(asyncio.Protocol):
    """A keep-alive connection with at most one webhook under way."""

    def __init__(self) -> None:
        self._transport: asyncio.Transport | None = None
        self._received = b""
        self._answer: asyncio.Future[int] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport  # type: ignore[assignment]  # uvloop's transport is no subclass

    @property
    def is_open(self) -> bool:
        return self._transport is not None and not self._transport.is_closing()

    async def send(self, webhook: bytes) -> int:
        """Status of the answer. Raises ConnectionError if the connection ends before it."""
        assert self._transport is not None
        self._received, self._answer = b"", asyncio.get_running_loop().create_future()
        self._transport.write(webhook)
        return await self._answer

    def data_received(self, data: bytes) -> None:
        self._received += data
        head, found, rest = self._received.partition(b"\r\n\r\n")
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
    """Delivers requests on up to CONNECTIONS connections at once."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._free: asyncio.LifoQueue[_Connection | None] = asyncio.LifoQueue()

    async def __aenter__(self) -> Self:
        for _ in range(CONNECTIONS):
            self._free.put_nowait(None)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, problem: BaseException | None, trace: TracebackType | None
    ) -> None:
        while not self._free.empty():
            if (connection := self._free.get_nowait()) is not None:
                connection.close()

    async def deliver(self, webhook: bytes) -> None:
        """Deliver one webhook. Raises JobFailed unless it is answered 200 within ANSWER_MAX_S."""
        connection = await self._free.get()
        try:
            async with asyncio.timeout(ANSWER_MAX_S):
                for _ in range(TRIES_MAX):
                    try:
                        if connection is None or not connection.is_open:
                            connection = await self._connected()
                        status = await connection.send(webhook)
                        break
                    except OSError as problem:
                        lost: OSError = problem
                else:
                    raise JobFailed(f"a webhook got no answer from port {self._port}: {lost}") from lost
        except TimeoutError as problem:
            raise JobFailed(f"a webhook was not answered within {ANSWER_MAX_S:g} s") from problem
        finally:
            self._free.put_nowait(connection)
        if status != 200:
            raise JobFailed(f"a webhook was answered {status}; it must be 200")

    async def _connected(self) -> _Connection:
        _, connection = await asyncio.get_running_loop().create_connection(_Connection, HOST, self._port)
        return connection
