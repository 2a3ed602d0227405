"""The slow lane of a consumer: entries that may wait, handled one at a time and in order, beside all others.

People are told at a message a second. A stage leaves there what may wait for that (`Later`), so that what comes after
it in the log need not. Nothing is kept of it but ids: the entries stay pending with the consumer, which renews its
claims on them, so whoever takes over what a dead consumer had in hand takes these over too.
"""

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager

from redis.asyncio import Redis

from streamproc.errors import LogUnavailable
from streamproc.log.batch import Handler
from streamproc.log.claims import Claims
from streamproc.log.upkeep import Upkeep
from streamproc.log.work import Work

ENTRIES_MAX = 10_000
"""Entries that wait: at a message a second more than two hours of them. What comes when so many wait is handled in the
pass that reads it, as in a group without a slow lane."""
FINISH_S = 5.0
"""A consumer that stops goes on with these for so long. What still waits then stays pending, and is taken over."""


class SlowLane:
    """The slow lane of one consumer. `handler` is its own, since handlers have one batch at a time."""

    def __init__(self, handler: Handler, upkeep: Upkeep, claims: Claims) -> None:
        self._handler, self._upkeep, self._claims = handler, upkeep, claims
        self._order: deque[tuple[bytes, bool]] = deque()
        self._ids: set[bytes] = set()
        """Those in `_order`, and the one in hand."""
        self._came = asyncio.Event()
        self._end_s: float | None = None
        """When it ends at the latest (monotonic clock), once the consumer stops."""
        self._since_s: float | None = None
        self._task: asyncio.Task[None] | None = None

    @property
    def has_room(self) -> bool:
        """Whether it runs and takes more entries."""
        return self._task is not None and len(self._order) < ENTRIES_MAX

    @property
    def tasks(self) -> set[asyncio.Task[None]]:
        """Its task, which ends early only by a failure; none in a group without a slow lane."""
        return set() if self._task is None else {self._task}

    def __contains__(self, entry: bytes) -> bool:
        return entry in self._ids

    def in_hand_s(self, now_s: float) -> float:
        """For how long one entry has been in hand; `now_s` by the loop's clock."""
        return 0.0 if self._since_s is None else now_s - self._since_s

    def add(self, works: Iterable[Work]) -> None:
        """Entries that may wait, in the order in which they are handled."""
        for work in works:
            if work.entry not in self._ids:
                self._ids.add(work.entry)
                self._order.append((work.entry, work.taken))
        self._came.set()

    @asynccontextmanager
    async def running(self, client: Redis) -> AsyncIterator[None]:
        """Handle entries over `client`, beginning with none: what Redis said before may not hold any more."""
        self._order.clear()
        self._ids.clear()
        self._end_s = None
        self._handler.forget()
        clock = asyncio.get_running_loop().time
        self._task = task = asyncio.create_task(self._run(client))
        try:
            yield
        except LogUnavailable:
            # Of another connection. What is under way is finished all the same: cut off, it may be told twice.
            self._end_s = clock()
            self._came.set()
            await asyncio.gather(task, return_exceptions=True)
            raise
        finally:
            self._task = None
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def finish(self) -> None:
        """Go on until nothing waits, for FINISH_S at most, and end. Raises what the task raised."""
        self._end_s = asyncio.get_running_loop().time() + FINISH_S
        self._came.set()
        if self._task is not None:
            await self._task

    async def _run(self, client: Redis) -> None:
        clock = asyncio.get_running_loop().time
        while self._end_s is None or (self._order and clock() < self._end_s):
            if self._order:
                await self._handle_next(client)
            else:
                self._came.clear()
                await self._came.wait()

    async def _handle_next(self, client: Redis) -> None:
        entry, taken = self._order.popleft()
        self._since_s = asyncio.get_running_loop().time()
        try:
            # Others may have it by now, as after a pause of this process; then nothing is left of it here.
            for part in await self._upkeep.take_up_again(client, [entry]):
                await self._handler.handle(client, part, taken=taken)
            await self._handler.acknowledge(client)
        finally:
            self._since_s = None
        self._ids.discard(entry)
        self._claims.done([entry])
