"""An open-loop sender of webhooks in a process of its own: `python -m tests.faults.sender ORDER RESULT`.

Open loop: each webhook is due at a fixed time, whatever became of those before it, and its answer time is counted from
then. So if the server stands still for a second, a thousand webhooks are seen to wait, not one.

The sender uses little CPU, so that the cores are left to the product: keep-alive connections over plain transports, and
bodies that are made from a template and signed right before they are due.
"""

import asyncio
import hashlib
import hmac
import sys
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import cast

import msgspec
import uvloop
from msgspec import Struct

CONNECTIONS_MAX = 256
"""If all of them wait for answers, a webhook that is due waits for the next free one."""
ANSWER_MAX_S = 5.0
"""The bank waits so long for an answer, then closes the connection."""
TICK_S = 0.001
LOOK_S = 0.5
"""Interval of looking for answers that do not come."""
IDLE_MAX_S = 3.0
"""A connection that was idle for so long is not used again, since the server may be closing it right now."""
OUTCOME_AFTER_S = 3.0
"""Time from a payout's first webhook to the one that says that the bank has paid it."""
UNANSWERED = 0
PAYOUT, AGENT, VENDOR, STATUS = b"pout_PAYOUT00000000", b"AGENT", b"VENDOR", b"STATUS"
"""Placeholders in the template, which each body replaces."""


class Order(Struct, frozen=True, kw_only=True):
    """What to send. `bank`: webhooks for payouts that exist at the bank, spread evenly over the time."""

    port: int
    path: str
    secret: str
    rate: float
    """Payouts per second."""
    seconds: float
    template: bytes
    agents: int
    vendors: int
    outcomes: float = 0.0
    """Share of payouts for which a second webhook says that they were paid."""
    bank: list[tuple[str, bytes]] = []


class Sent(Struct, array_like=True):
    """One webhook: when it was due, sent and answered (s since the first was due), and the answer."""

    payout: str
    status: str
    due: float
    sent: float = 0.0
    answered: float = 0.0
    answer: int = UNANSWERED
    """HTTP status; UNANSWERED: the connection ended, or ANSWER_MAX_S passed."""


def payout_id(number: int) -> str:
    """The id of the n-th payout."""
    return f"pout_L{number:013d}"


def webhooks(order: Order) -> Iterator[tuple[float, str, str, bytes]]:
    """Everything to be sent, in the order in which it is due: due time, payout, its status, body."""
    total, every = int(order.rate * order.seconds), 0
    if order.bank:
        every = max(1, total // len(order.bank))
    bank, plain = iter(order.bank), 0
    later: deque[tuple[float, int]] = deque()
    for number in range(total):
        due = number / order.rate
        while later and later[0][0] <= due:
            at, paid = later.popleft()
            yield at, payout_id(paid), "processed", body_of(order, paid, "processed")
        if every and number % every == 0 and (known := next(bank, None)) is not None:
            yield due, known[0], "pending", known[1]
            continue
        yield due, payout_id(number), "queued", body_of(order, number, "queued")
        plain += 1
        if int(plain * order.outcomes) > int((plain - 1) * order.outcomes):
            later.append((due + OUTCOME_AFTER_S, number))
    for at, paid in later:
        yield at, payout_id(paid), "processed", body_of(order, paid, "processed")


def body_of(order: Order, number: int, status: str) -> bytes:
    """The body of the n-th payout's webhook."""
    body = order.template.replace(PAYOUT, payout_id(number).encode())
    body = body.replace(AGENT, b"agent-%d" % (number % order.agents))
    return body.replace(VENDOR, b"vendor-%d" % (number % order.vendors)).replace(STATUS, status.encode())


class Connection(asyncio.Protocol):
    """A keep-alive connection with at most one webhook under way."""

    def __init__(self, sender: "Sender") -> None:
        self._sender = sender
        self._received = b""
        self.transport: asyncio.Transport | None = None
        self.carries: Sent | None = None
        self.free_at = 0.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)  # uvloop's transport is no subclass
        self._sender.is_free(self)

    def send(self, sent: Sent, body: bytes) -> None:
        """Send a webhook. Its answer is recorded in `sent`."""
        assert self.transport is not None
        self.carries, self._received = sent, b""
        sent.sent = self._sender.now()
        self.transport.write(self._sender.request(sent, body))

    def data_received(self, data: bytes) -> None:
        self._received += data
        head, found, body = self._received.partition(b"\r\n\r\n")
        if not found or self.carries is None:
            return
        lower = head.lower()
        _, _, length = lower.partition(b"content-length: ")
        if len(body) < int(length.partition(b"\r\n")[0]):
            return
        sent, self.carries = self.carries, None
        sent.answered, sent.answer = self._sender.now(), int(head[9:12])
        if b"connection: close" in lower:
            self.close()
        else:
            self._sender.is_free(self)

    def connection_lost(self, exc: Exception | None) -> None:
        if self.carries is not None:
            self.carries.answered = self._sender.now()
            self.carries = None
        self._sender.is_gone(self)

    def close(self) -> None:
        """Close the connection; it is not used again."""
        if self.transport is not None:
            self.transport.abort()


class Sender:
    """Sends an order's webhooks when they are due."""

    def __init__(self, order: Order) -> None:
        self._order = order
        self._began = asyncio.get_running_loop().time()
        self._free: list[Connection] = []
        self._connections: set[Connection] = set()
        self._waiting: deque[tuple[Sent, bytes]] = deque()
        self._connecting: set[asyncio.Task[None]] = set()
        self.sent: list[Sent] = []

    def now(self) -> float:
        """Seconds since the start."""
        return asyncio.get_running_loop().time() - self._began

    def request(self, sent: Sent, body: bytes) -> bytes:
        """The whole signed request."""
        secret, event_id = self._order.secret.encode(), f"{sent.payout[5:]}-{sent.status}"
        return (
            f"POST {self._order.path} HTTP/1.1\r\nhost: 127.0.0.1:{self._order.port}\r\n"
            f"content-type: application/json\r\nx-razorpay-event-id: {event_id}\r\n"
            f"x-razorpay-signature: {hmac.digest(secret, body, hashlib.sha256).hex()}\r\n"
            f"content-length: {len(body)}\r\n\r\n"
        ).encode() + body

    async def run(self) -> None:
        """Send everything. Returns when each webhook was answered or given up."""
        looking = asyncio.create_task(self._give_up())
        try:
            for due, payout, status, body in webhooks(self._order):
                while (ahead := due - self.now()) > 0:
                    await asyncio.sleep(max(ahead, TICK_S))
                self._waiting.append((Sent(payout, status, due), body))
                self.sent.append(self._waiting[-1][0])
                self._dispatch()
            while self._waiting or any(connection.carries for connection in self._connections):
                self._dispatch()
                await asyncio.sleep(TICK_S)
        finally:
            looking.cancel()
            for connection in list(self._connections):
                connection.close()

    def _dispatch(self) -> None:
        while self._waiting and self._free:
            connection = self._free.pop()
            if connection.transport is None or connection.transport.is_closing():
                continue
            if self.now() - connection.free_at > IDLE_MAX_S:
                connection.close()
            else:
                connection.send(*self._waiting.popleft())
        if len(self._waiting) > len(self._connecting) and self._count() < CONNECTIONS_MAX:
            task = asyncio.create_task(self._connect())
            self._connecting.add(task)
            task.add_done_callback(self._connecting.discard)

    def _count(self) -> int:
        return len(self._connections) + len(self._connecting)

    async def _connect(self) -> None:
        try:
            async with asyncio.timeout(ANSWER_MAX_S):
                loop = asyncio.get_running_loop()
                await loop.create_connection(lambda: Connection(self), "127.0.0.1", self._order.port)
        except (OSError, TimeoutError):
            if self._waiting:  # nobody listens: the webhook counts as tried once and not delivered
                self._waiting.popleft()[0].answered = self.now()

    def is_free(self, connection: Connection) -> None:
        """A connection can carry the next webhook."""
        connection.free_at = self.now()
        self._connections.add(connection)
        self._free.append(connection)
        self._dispatch()

    def is_gone(self, connection: Connection) -> None:
        """A connection has ended."""
        self._connections.discard(connection)

    async def _give_up(self) -> None:
        while True:
            await asyncio.sleep(LOOK_S)
            late = self.now() - ANSWER_MAX_S
            for connection in [
                connection
                for connection in self._connections
                if connection.carries and connection.carries.sent < late
            ]:
                connection.close()


async def main(order: Order) -> list[Sent]:
    """Send an order. Returns all webhooks with their answers."""
    sender = Sender(order)
    await sender.run()
    return sender.sent


if __name__ == "__main__":
    given = msgspec.msgpack.decode(Path(sys.argv[1]).read_bytes(), type=Order)
    Path(sys.argv[2]).write_bytes(msgspec.msgpack.encode(uvloop.run(main(given))))
