"""Entries whose consumer is gone: found by its missing connections, long before the claim time.

A consumer's connections bear its name (roster.py). A process that dies loses them at once, and a consumer that has
entries pending and no connection will not finish them. Only for a host that vanishes without closing connections, or a
process that hangs, the claim time is waited for.

To be wrong is safe, since whoever commits first wins; it only costs work done twice. So a consumer is taken for gone
when it was missing for a while, and only by one who finds itself in the list: behind a proxy names mean nothing.

Where the server's clock went back, as by a failover, a consumer that died before is idle for 0 ms until the clock has
come there again. So who is idle for 0 ms at two looks is looked for among the connections too.

Entries that may have killed their worker are claimed like the others (upkeep.py sorts them out): if suspects waited for
the claim time, so would every entry whose holders were killed three times in a row for other reasons.
"""

import asyncio
from typing import NamedTuple

from redis.asyncio import Redis

from streamproc.log.connection import named_errors
from streamproc.log.names import Names
from streamproc.log.roster import Roster
from streamproc.log.script import Script

LOOK_S = 1.0
"""Interval between looks for consumers that are gone."""
IDLE_MS = 1000
"""Entries delivered, or consumers heard of, more lately than this are left alone."""
MISSING_S = 1.5
"""A consumer without a connection for so long is gone: two looks find it missing. Reconnecting is faster than that."""
CALLED_S = 12.0
"""The same where entries are outside calls. A call of a dead worker may be under way for 10 s, the longest that one
takes; asked again meanwhile, the bank may refuse what is being done."""
ENTRIES_MAX = 256
"""Entries claimed at one look, by default."""

_take_from = Script("take_from", "checks")


class _Missed(NamedTuple):
    """Since when a consumer has no connection, by the list that showed it, and when we noticed (monotonic clock, s)."""

    since_s: float
    clock_s: float


class DeadConsumers:
    """Finds the consumers of one group that are gone, for one consumer of it."""

    def __init__(
        self,
        names: Names,
        group: str,
        consumer: str,
        *,
        entries_max: int = ENTRIES_MAX,
        missing_s: float = MISSING_S,
        roster: Roster | None = None,
    ) -> None:
        """`entries_max`: entries claimed at one look, of all that are gone; as many as are surely handled within the
        claim time, or others would claim them in turn. `roster` is shared by the process."""
        self._names, self._group, self._me = names, group, consumer
        self._entries_max, self._missing_s = entries_max, missing_s
        self._roster = roster or Roster()
        self._missing: dict[str, _Missed] = {}
        self._at_zero: set[str] = set()
        """Who was idle for 0 ms at the last look."""

    async def take(self, client: Redis, now_s: float) -> list[bytes]:
        """Claim entries of consumers that are gone; their ids. That counts as no delivery.

        `now_s`: a monotonic clock.
        """
        idle, clock_s = await self._idle(client), asyncio.get_running_loop().time()
        self._missing = {name: missed for name, missed in self._missing.items() if name in idle}
        if not idle:
            return []
        found = await self._roster.look(client, self._me, [self._me, *idle], now_s)
        if self._me not in found.here:
            if found.at_s is not None:
                self._missing.clear()
            return []
        self._missing = {name: missed for name, missed in self._missing.items() if name not in found.here}
        if found.at_s is None:
            return []
        # A consumer that was heard of after the list was made may have connected after it too.
        quiet_ms = IDLE_MS + max(0.0, now_s - found.at_s) * 1000
        taken: list[bytes] = []
        for name, idle_ms in idle.items():
            if name in found.here or 0 < idle_ms < quiet_ms:
                continue
            missed = self._missing.get(name)
            # It was back meanwhile.
            if missed is None or 0 < idle_ms < (clock_s - missed.clock_s) * 1000:
                missed = self._missing[name] = _Missed(found.at_s, clock_s)
            if found.at_s - missed.since_s >= self._missing_s and len(taken) < self._entries_max:
                taken += await self._take_from(client, name, idle_ms, self._entries_max - len(taken))
        return taken

    async def _idle(self, client: Redis) -> dict[str, int]:
        """Other consumers with pending entries that were not heard of lately, and for how long (ms)."""
        with named_errors():
            rows = await client.xinfo_consumers(self._names.log, self._group)
        idle = {row["name"].decode(): int(row["idle"]) for row in rows if row["pending"]}
        before, self._at_zero = self._at_zero, {name for name, idle_ms in idle.items() if not idle_ms}
        is_quiet = {
            name: idle_ms >= IDLE_MS or name in before & self._at_zero for name, idle_ms in idle.items()
        }
        return {name: idle_ms for name, idle_ms in idle.items() if is_quiet[name] and name != self._me}

    async def _take_from(self, client: Redis, name: str, idle_ms: int, most: int) -> list[bytes]:
        held_ms = IDLE_MS if idle_ms else 0  # its entries were delivered later than now, too
        args = [self._group, self._me, name, idle_ms, held_ms, most]
        return list(await _take_from(client, [self._names.log], args))
