"""Entries of a consumer that are handled apart, in its turns in the quarantine: each may be what kills its workers."""

import asyncio
from collections import deque
from collections.abc import Collection, Sequence

from redis.asyncio import Redis

from streamproc.log.claims import ANY, Claims, TakenUp
from streamproc.log.quarantine import Place, Quarantine
from streamproc.log.upkeep import Upkeep

WAIT_MAX_S = 600.0
"""Claims on what waits for the quarantine for longer are not renewed any more: whoever has the turn hangs, or too many
come first. Others take it over; what they have not taken when the turn comes is handled all the same."""


class Suspects:
    """Of one consumer, and its place in the quarantine, while there are any."""

    def __init__(self, upkeep: Upkeep, claims: Claims, quarantine: Quarantine) -> None:
        self._upkeep, self._claims, self._quarantine = upkeep, claims, quarantine
        self._waiting: deque[list[bytes]] = deque()
        """Ids, in the parts in which they are handled."""
        self._unbegun: set[bytes] = set()
        """Claimed from others, and not taken up yet: to do so is a delivery, also if the connection is lost before."""
        self.place: Place | None = None
        self._placed_s = 0.0
        """Since when (monotonic clock)."""

    def __len__(self) -> int:
        """Parts that wait."""
        return len(self._waiting)

    def __contains__(self, entry: bytes) -> bool:
        """Whether it was claimed from others to be handled apart, and has not had its turn."""
        return entry in self._unbegun

    def claimed(self, parts: Sequence[list[bytes]], since_s: float) -> None:
        """These were claimed from others to be handled apart, at `since_s` (monotonic clock) at the earliest."""
        entries = [entry for part in parts for entry in part]
        self._unbegun.update(entries)
        self._claims.add(entries, since_s)

    def add(self, parts: Sequence[list[bytes]]) -> None:
        """Handle these apart, part by part."""
        self._waiting += parts

    def forget(self) -> None:
        """The connection was lost: what is still pending with us is added anew."""
        self._waiting.clear()

    def add_again(self, entries: Collection[bytes]) -> None:
        """Those that are pending with us after a lost connection. What this process had in hand before, and survived,
        is delivered no further time when its turn comes."""
        self._unbegun.intersection_update(entries)
        self.add([[entry] for entry in entries])

    @property
    def places(self) -> set[Place]:
        """The place in the quarantine, if there is one."""
        return set() if self.place is None else {self.place}

    def join_quarantine(self) -> Place:
        """Take the last place."""
        self._placed_s = asyncio.get_running_loop().time()
        place = self.place = self._quarantine.join()
        return place

    def leave_quarantine(self) -> None:
        """Give up the place, if there is one."""
        if self.place is not None:
            self._quarantine.leave(self.place)
            self.place = None

    def let_go(self, behind: Sequence[TakenUp]) -> None:
        """Renew no claim on what waits for too long; neither on what waits `behind` that."""
        if self.place is not None and asyncio.get_running_loop().time() - self._placed_s >= WAIT_MAX_S:
            self._claims.done(entry for part in self._waiting for entry in part)
            self._claims.done(up.id for up in behind)

    async def take_up_next(self, client: Redis) -> tuple[list[bytes], list[TakenUp]]:
        """The next part, and those of it that are still pending with us, taken up."""
        part, asked_s = self._waiting.popleft(), asyncio.get_running_loop().time()
        most = None if self._unbegun.isdisjoint(part) else ANY
        taken = await self._upkeep.take_up(client, part, most=most)
        self._unbegun.difference_update(part)
        self._claims.add(part, asked_s)  # it may have been let go
        return part, taken
