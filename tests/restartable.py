"""Stores that tests stop, kill, and start again with the same data."""

import signal
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager

from streamproc.embedded import Store


class Restartable:
    """A store that a test stops, and starts again on the same port with the same data."""

    def __init__(self, start: Callable[[], AbstractAsyncContextManager[Store]]) -> None:
        self._start = start
        self._running = AsyncExitStack()
        self._store: Store | None = None

    @property
    def pid(self) -> int:
        """The pid of its process, while it runs."""
        return self._store.process.pid

    async def up(self) -> str:
        """Start it. Returns its URL."""
        self._store = None
        self._store = await self._running.enter_async_context(self._start())
        return self._store.url

    @property
    def alive(self) -> bool:
        """Whether it has been started and has not ended."""
        return self._store is not None and self._store.process.returncode is None

    async def down(self) -> None:
        """Stop it, if it runs."""
        await self._running.aclose()

    async def kill(self, how: signal.Signals = signal.SIGKILL) -> None:
        """Send a signal that ends it at once, and wait until it has ended."""
        assert self._store is not None, "it was never started"
        self._store.process.send_signal(how)
        await self._store.process.wait()
        await self.down()


@asynccontextmanager
async def restartable(start: Callable[[], AbstractAsyncContextManager[Store]]) -> AsyncIterator[Restartable]:
    """A store that is not running yet, and is stopped at the end."""
    store = Restartable(start)
    try:
        yield store
    finally:
        await store.down()
