"""A transport that sends an answer's head and body at once; uvicorn writes them one by one (ADR 29)."""

import asyncio
from collections.abc import Callable
from typing import Any, Final

HELD_BYTES_MAX: Final = 64 * 1024
"""Most bytes gathered in one step of the loop; more is sent at once, so that back-pressure of a slow reader works."""


def _ignored() -> None:
    """The callback of a transport whose closing nobody waits for."""


class Gathering:
    """A transport that sends in one piece whatever is written within one step of the loop.

    `closing` is called just before the transport is closed.
    """

    def __init__(
        self,
        transport: asyncio.Transport,
        loop: asyncio.AbstractEventLoop,
        closing: Callable[[], None] = _ignored,
    ) -> None:
        self._transport, self._loop, self._closing = transport, loop, closing
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
        if not self._transport.is_closing():
            self._closing()
        self._transport.close()

    def forget(self) -> None:
        """Drop the callback: its owner also holds this transport, and that would be a reference cycle."""
        self._closing = _ignored

    def is_closing(self) -> bool:
        """Whether it is closed, or will be."""
        return self._transport.is_closing()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)
