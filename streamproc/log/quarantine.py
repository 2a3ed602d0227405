"""The quarantine of a process: entries that may be what kills their workers are handled one after the other there.

A process that dies of an entry takes along what its other consumers have in hand, and that is counted against those
entries as well. Handled at the same time in every life, an innocent entry of another partition or group would become a
dead letter together with the killer.
"""

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TypeAlias

Place: TypeAlias = asyncio.Future[None]
"""A place in the queue; done once its turn has come."""


class Quarantine:
    """Turns of the consumers of one process, first come, first served, one at a time. For one event loop."""

    def __init__(self) -> None:
        self._queue: deque[Place] = deque()
        """The first has its turn."""

    def join(self) -> Place:
        """Take the last place. Whoever does so leaves it again, whatever happens."""
        place = asyncio.get_running_loop().create_future()
        self._queue.append(place)
        self._serve()
        return place

    def leave(self, place: Place) -> None:
        """Give up a place, or end its turn."""
        self._queue.remove(place)
        place.cancel()
        self._serve()

    @asynccontextmanager
    async def turn(self) -> AsyncIterator[None]:
        """Wait for a turn and have it."""
        place = self.join()
        try:
            await place
            yield
        finally:
            self.leave(place)

    def _serve(self) -> None:
        if self._queue and not self._queue[0].done():
            self._queue[0].set_result(None)
