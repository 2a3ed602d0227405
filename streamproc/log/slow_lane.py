"""The slow lane of a consumer: entries that may wait, handled one at a time and in order, beside all others.

People are told at a message a second. A stage leaves there what may wait for that (`LeaveToSlowLane`), so that what
comes after it in the log need not. Nothing is kept of it but ids: the entries stay pending with the consumer, which
renews its claims on them, so whoever takes over what a dead consumer had in hand takes these over too. To wait is no
delivery: an entry counts as delivered when its turn comes. What waited when its consumer died is not opened before
that: so each death that it causes afterwards is counted against it, wherever it caused the first.
"""

import asyncio
from collections import OrderedDict
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, nullcontext

from redis.asyncio import Redis

from streamproc.errors import LogUnavailable
from streamproc.log.batch import Handler
from streamproc.log.claims import Claims, TakenUp, not_begun
from streamproc.log.quarantine import Quarantine
from streamproc.log.upkeep import SUSPECT_DELIVERIES, Upkeep, too_often
from streamproc.log.work import LeaveToSlowLane, Work

ENTRIES_MAX = 10_000
"""Entries that wait: at a message a second more than two hours of them. What comes when so many wait is put off."""
FULL_S = 600.0
"""For how long that is put off. All come back in their order, and those that find room wait again."""
FINISH_S = 5.0
"""A consumer that stops goes on with these for so long. What still waits then stays pending, and is taken over."""
AT_ONCE_MAX = 3
"""Slow lanes of one process that have an entry in hand, of however many partitions. Each waits for its turn at Slack,
which gives one a second, or one in two while alerts overtake: so the last of them waits for less than the 8 s after
which a message is put off, if this process alone tells people."""
SAY_S = 5.0
"""How often the log says at most that what waits is put off: while Slack is away, that is each of them every few
seconds."""


class Turns(asyncio.Semaphore):
    """Shared by the slow lanes of a process, which have their turns in order, `at_once` of them together."""

    def __init__(self, at_once: int) -> None:
        super().__init__(at_once)
        self.quarantine = Quarantine()
        """Of the whole process, whether its groups have slow lanes or not."""
        self._all = max(1, at_once)
        self._asking = asyncio.Lock()
        """Held by the next in order until it has what it wants: so no two wait for what the other has."""

    @asynccontextmanager
    async def turn(self, *, alone: bool) -> AsyncIterator[None]:
        """Have a turn, beside no other and in the quarantine if `alone`."""
        taken = 0
        try:
            async with self._asking:
                while taken < (self._all if alone else 1):
                    await self.acquire()
                    taken += 1
            # In this order: payouts that wait in the quarantine do not wait for turns at Slack as well.
            async with self.quarantine.turn() if alone else nullcontext():
                yield
        finally:
            for _ in range(taken):
                self.release()


class SlowLane:
    """The slow lane of one consumer. `handler` is its own, since handlers have one batch at a time."""

    def __init__(self, handler: Handler, upkeep: Upkeep, claims: Claims, turns: Turns) -> None:
        self._handler, self._upkeep, self._claims, self._turns = handler, upkeep, claims, turns
        handler.is_slow_lane = True
        self._soon: OrderedDict[bytes, bool] = OrderedDict()
        self._waiting: OrderedDict[bytes, bool] = OrderedDict()
        """Ids, each with whether it was taken (`Work.taken`), in order. Those in `_soon` have every second turn."""
        self._soon_was_last = False
        self._suspects: set[bytes] = set()
        """Of what waited with one who died: what was in hand at several deaths, and has its turn alone. Else what is in
        hand in another lane would be cut off each time, and held to be the killer."""
        self._given_back: set[bytes] = set()
        """Of what waited when the connection was lost: to take these up again is no delivery, so none is taken back."""
        self._in_hand: bytes | None = None
        self._came = asyncio.Event()
        self._end_s: float | None = None
        """When it ends at the latest (monotonic clock), once the consumer stops."""
        self._since_s: float | None = None
        self._task: asyncio.Task[None] | None = None

    @property
    def has_room(self) -> bool:
        """Whether it runs and takes more entries."""
        return self.is_running and self.room > 0

    @property
    def is_running(self) -> bool:
        """Whether entries may be left to it at all; not in a group without a slow lane."""
        return self._task is not None

    @property
    def room(self) -> int:
        """How many more entries may wait."""
        return max(0, ENTRIES_MAX - len(self))

    def __len__(self) -> int:
        """Entries that wait."""
        return len(self._soon) + len(self._waiting)

    @property
    def tasks(self) -> set[asyncio.Task[None]]:
        """Its task, which ends early only by a failure; none in a group without a slow lane."""
        return set() if self._task is None else {self._task}

    def __contains__(self, entry: bytes) -> bool:
        return entry == self._in_hand or entry in self._soon or entry in self._waiting

    def in_hand_s(self, now_s: float) -> float:
        """For how long one entry has been in hand; `now_s` by the loop's clock."""
        return 0.0 if self._since_s is None else now_s - self._since_s

    async def add(self, client: Redis, works: Sequence[Work]) -> None:
        """Entries that may wait, in the order in which they are handled.

        One that is in hand waits again: it was put off, perhaps, and came back before the answer to that.
        """
        if not works:
            return
        names, group, me = self._upkeep.names, self._upkeep.group, self._upkeep.name
        soon = {work.entry: isinstance(work.problem, LeaveToSlowLane) and work.problem.soon for work in works}
        asked_s = asyncio.get_running_loop().time()
        delivered = {entry: is_soon for entry, is_soon in soon.items() if entry not in self._given_back}
        await not_begun(client, names, group, me, delivered)
        self._given_back.difference_update(soon)
        for work in works:
            self._put(work.entry, soon=soon[work.entry], taken=work.taken)
        # Once more: of one that was in hand, the end of that may have let go of the claim meanwhile.
        self._claims.add(soon, asked_s)
        self._came.set()

    def resume(self, waited: Sequence[TakenUp]) -> None:
        """Entries that waited in the slow lane of another consumer, and are claimed for this one."""
        for up in waited:
            self._put(up.id, soon=up.soon, taken=True)
            if up.deliveries >= SUSPECT_DELIVERIES:
                self._suspects.add(up.id)
        self._came.set()

    def _put(self, entry: bytes, *, soon: bool, taken: bool) -> None:
        queue, other = (self._soon, self._waiting) if soon else (self._waiting, self._soon)
        was_taken = other.pop(entry, False) or queue.get(entry, False)
        queue[entry] = was_taken or taken

    @asynccontextmanager
    async def running(self, client: Redis) -> AsyncIterator[None]:
        """Handle entries over `client`, beginning with none: what Redis said before may not hold any more."""
        self._given_back = {*self._soon, *self._waiting}
        for queue in (self._soon, self._waiting, self._suspects):
            queue.clear()
        self._end_s = None
        self._handler.forget()
        clock = asyncio.get_running_loop().time
        self._task = task = asyncio.create_task(self._run(client))
        try:
            yield
        except LogUnavailable:
            # Of another connection. What is under way is finished all the same: cut off, it may be told twice.
            self._end_s = clock()
            if self._in_hand is not None:
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
            await asyncio.wait({self._task}, timeout=FINISH_S)
            if self._task.done() or self._in_hand is not None:
                await self._task

    def _goes_on(self) -> bool:
        clock = asyncio.get_running_loop().time
        return self._end_s is None or (len(self) > 0 and clock() < self._end_s)

    async def _run(self, client: Redis) -> None:
        while self._goes_on():
            if len(self):
                alone = self._next_is_suspect()
                async with self._turns.turn(alone=alone):
                    # What is next may have changed meanwhile.
                    if self._goes_on() and (alone or not self._next_is_suspect()):
                        await self._handle_next(client)
            else:
                self._came.clear()
                await self._came.wait()

    def _soon_is_next(self) -> bool:
        return bool(self._soon) and not (self._soon_was_last and self._waiting)

    def _next_is_suspect(self) -> bool:
        queue = self._soon if self._soon_is_next() else self._waiting
        return next(iter(queue), b"") in self._suspects

    async def _handle_next(self, client: Redis) -> None:
        self._soon_was_last = self._soon_is_next()
        entry, taken = (self._soon if self._soon_was_last else self._waiting).popitem(last=False)
        self._suspects.discard(entry)
        self._in_hand, self._since_s = entry, asyncio.get_running_loop().time()
        try:
            # Others may have it by now, as after a pause of this process; then nothing is left of it here.
            for up in await self._upkeep.take_up(client, [entry]):
                if up.entry is not None and (why := too_often(up.deliveries)):
                    await self._handler.dead_letter(client, up.entry, why)
                elif up.entry is not None:
                    await self._handler.handle(client, [up.entry], taken=taken)
            await self._handler.acknowledge(client)
        finally:
            self._in_hand = self._since_s = None
        if entry not in self:
            self._claims.done([entry])
