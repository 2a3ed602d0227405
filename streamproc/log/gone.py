"""Entries whose consumer is gone: they need not wait for the claim time, since the server knows who is connected.

A consumer's connections bear its name (roster.py). A process that dies loses them at once, and who then has entries in
hand and no connection will not finish them. Only a host that vanishes without a word, or a process that hangs, is
waited for.

It is safe to be wrong, since whoever commits first wins; it only costs work done twice. So a consumer is believed gone
when it was missing for a while, by one who finds itself in the list: behind a proxy names mean nothing.

Which of the entries may be what killed its worker is not asked here (upkeep.py): that it waits for the claim time would
make all wait whose holders were killed three times in a row, and helps nobody.
"""

import asyncio
from typing import NamedTuple

from redis.asyncio import Redis

from streamproc.log.connection import named_errors
from streamproc.log.names import Names
from streamproc.log.roster import Roster
from streamproc.log.scripts import Script

LOOK_S = 1.0
"""Between two looks at who has entries in hand."""
IDLE_MS = 1000
"""An entry that was handed out, or a consumer that asked for more, so lately is not looked at."""
MISSING_S = 1.5
"""A consumer without a connection for so long is gone: two looks find it missing. A lost connection is back sooner."""
CALLED_S = 12.0
"""The same where entries are calls to others: what a dead caller asked for may be under way for 10 s, a call's longest,
and who asks the bank again meanwhile may be refused what is being done."""
ENTRIES_MAX = 256
"""Entries that are taken over at one look, where nothing else is said."""

_take_from = Script("take_from", "checks")


class _Missed(NamedTuple):
    """Since when somebody has no connection, by the list that said so, and when we noticed (monotonic clock, s)."""

    since_s: float
    clock_s: float


class Gone:
    """One consumer's eye on the others of its group."""

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
        """`entries_max` are taken over at one look, of all that are gone: as many as are surely done in the claim time,
        or others would take them over in turn. `roster` is that of the process."""
        self._names, self._group, self._me = names, group, consumer
        self._entries_max, self._missing_s = entries_max, missing_s
        self._roster = roster or Roster()
        self._missing: dict[str, _Missed] = {}

    async def take(self, client: Redis, now_s: float) -> list[bytes]:
        """Ids of entries in the hands of consumers that are gone, now in ours; that is no delivery yet.

        `now_s` is a monotonic clock's.
        """
        idle, clock_s = await self._idle(client), asyncio.get_running_loop().time()
        self._missing = {name: missed for name, missed in self._missing.items() if name in idle}
        if not idle:
            return []
        look = await self._roster.look(client, self._me, [self._me, *idle], now_s)
        if self._me not in look.here:
            if look.at_s is not None:
                self._missing.clear()
            return []
        self._missing = {name: missed for name, missed in self._missing.items() if name not in look.here}
        if look.at_s is None:
            return []
        # Who was heard of since all were listed may be connected since.
        quiet_ms = IDLE_MS + max(0.0, now_s - look.at_s) * 1000
        taken: list[bytes] = []
        for name, idle_ms in idle.items():
            if name in look.here or idle_ms < quiet_ms:
                continue
            missed = self._missing.get(name)
            if missed is None or idle_ms < (clock_s - missed.clock_s) * 1000:  # it was back meanwhile
                missed = self._missing[name] = _Missed(look.at_s, clock_s)
            if look.at_s - missed.since_s >= self._missing_s and len(taken) < self._entries_max:
                taken += await self._take_from(client, name, idle_ms, self._entries_max - len(taken))
        return taken

    async def _idle(self, client: Redis) -> dict[str, int]:
        """Who has entries in hand and was not heard of lately, and for how long (ms)."""
        with named_errors():
            rows = await client.xinfo_consumers(self._names.log, self._group)
        idle = {row["name"].decode(): int(row["idle"]) for row in rows if row["pending"]}
        return {name: idle_ms for name, idle_ms in idle.items() if idle_ms >= IDLE_MS and name != self._me}

    async def _take_from(self, client: Redis, name: str, idle_ms: int, most: int) -> list[bytes]:
        args = [self._group, self._me, name, idle_ms, IDLE_MS, most]
        return list(await _take_from(client, [self._names.log], args))
