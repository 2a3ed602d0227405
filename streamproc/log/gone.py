"""Entries whose consumer is gone: they need not wait for the claim time, since the server knows who is connected.

A consumer's connections bear its name. A process that dies loses them at once, and who then has entries in hand and no
connection will not finish them. Only a host that vanishes without a word, or a process that hangs, is waited for.

It is safe to be wrong, since whoever commits first wins; it only costs work done twice. So a consumer is believed gone
when it was missing for a while, by one who finds itself in the list: behind a proxy names mean nothing. And an entry is
taken over so only while its deliveries have harmless reasons: one that may be what kills its workers waits for the
claim time.
"""

import logging
from typing import Any

from redis.asyncio import Redis
from redis.exceptions import ResponseError

from streamproc.log.connection import named_errors
from streamproc.log.names import Names
from streamproc.log.scripts import Raw

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
"""Entries of one consumer that are looked at in one look."""

log = logging.getLogger(__name__)


class Gone:
    """One consumer's eye on the others of its group."""

    def __init__(
        self,
        names: Names,
        group: str,
        consumer: str,
        *,
        deliveries_max: int,
        entries_max: int = ENTRIES_MAX,
        missing_s: float = MISSING_S,
    ) -> None:
        """`entries_max` are taken over at one look, of all that are gone: as many as are surely done in the claim time,
        or others would take them over in turn."""
        self._names, self._group, self._me = names, group, consumer
        self._deliveries_max, self._entries_max = deliveries_max, entries_max
        self._missing_s = missing_s
        self._missing: dict[str, float] = {}
        """Since when (our monotonic clock, s) each consumer is missing."""
        self._blind = False

    async def take(self, client: Redis, now_s: float) -> list[Raw]:
        """Entries in the hands of consumers that are gone, now in ours. `now_s` is a monotonic clock's."""
        if self._blind:
            return []
        idle = await self._idle(client)
        connected = await self._connected(client) if idle else frozenset[str]()
        if self._me not in connected:
            self._missing.clear()
            return []
        self._missing = {name: self._missing.get(name, now_s) for name in idle if name not in connected}
        taken: list[Raw] = []
        for name, since in self._missing.items():
            if now_s - since >= self._missing_s and len(taken) < self._entries_max:
                taken += await self._take_from(client, name, self._entries_max - len(taken))
        return taken

    async def _idle(self, client: Redis) -> list[str]:
        """Who has entries in hand and was not heard of lately."""
        with named_errors():
            rows = await client.xinfo_consumers(self._names.log, self._group)
        names = [row["name"].decode() for row in rows if row["pending"] and row["idle"] >= IDLE_MS]
        return [name for name in names if name != self._me]

    async def _connected(self, client: Redis) -> frozenset[str]:
        try:
            with named_errors():
                rows: list[dict[str, Any]] = await client.client_list(_type="normal")
        except ResponseError as problem:  # not everybody may ask
            log.warning(
                "the server does not say who is connected, so claims wait for their time: %s", problem
            )
            self._blind = True
            return frozenset()
        return frozenset(str(row.get("name", "")) for row in rows)

    async def _take_from(self, client: Redis, name: str, most: int) -> list[Raw]:
        key, group = self._names.log, self._group
        with named_errors():
            rows: list[dict[str, Any]] = await client.xpending_range(
                key, group, "-", "+", ENTRIES_MAX, name, idle=IDLE_MS
            )
            ids = [row["message_id"] for row in rows if row["times_delivered"] <= self._deliveries_max][:most]
            if not ids:
                return []
            # Who takes over at the same moment finds them handed out just now.
            claimed = await client.execute_command("XCLAIM", key, group, self._me, IDLE_MS, *ids)
        return [entry for entry in claimed if entry]
