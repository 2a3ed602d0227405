"""Which consumers are connected to a server, by the names of connections: one list for all consumers of a process.

To list all connections takes the server's one thread some 4 µs for each, which many workers that each did so every
second would make felt. So a consumer that is busy, at the bank maybe, is first looked up by the connection ids known of
it: a thirtieth of the cost at 600 connections. All are listed only if somebody is not found in this way.
"""

import logging
from collections.abc import Collection
from typing import Any

from msgspec import Struct
from redis.asyncio import Redis
from redis.exceptions import ResponseError

from streamproc.log.connection import CommandRefused, named_errors
from streamproc.log.nodes import is_cluster

LIST_S = 1.0
"""Least interval at which one process lists all connections."""
ROWS_PER_S = 1_000
"""Longer lists are made less often: so many rows a second, 4 ms of the server's time."""
LIST_AGE_S = 1.5
"""Age up to which a list serves the other consumers of the process: each of them looks within this time."""
SEEN_S = 0.5
"""How long a consumer that was found counts as connected without another look."""
IDS_MAX = 4
"""Connection ids kept of one name: one would be enough; a worker has two connections for each log and group."""
UNSEEN_S = 60.0
"""Interval if the caller itself is not in the list: behind a proxy names mean nothing."""

log = logging.getLogger(__name__)


class Presence(Struct, frozen=True):
    """Which of the consumers that were asked for are connected, and since when the others are not."""

    here: frozenset[str]
    """Connected now, or when all were listed last."""
    at_s: float | None = None
    """When the others had no connection (the caller's monotonic clock); None: nothing is known of them."""


class Roster:
    """The connections to one Redis server by their names, as this process saw them last."""

    def __init__(self) -> None:
        self._ids: dict[str, list[str]] = {}
        """Name -> some ids of its connections, by the last list."""
        self._seen: dict[str, float] = {}
        """Name -> when it was last found connected."""
        self._at_s = self._due_s = float("-inf")
        """When all were last listed, and when they may be listed again."""
        self._listing = False
        self._blind = False

    async def look(self, client: Redis, me: str, names: Collection[str], now_s: float) -> Presence:
        """Who of `names` is connected. `client` is a connection of `me`'s. Raises LogUnavailable."""
        if self._blind:
            return Presence(frozenset())
        wanted = frozenset(names)
        try:
            here = await self._still(client, wanted, now_s)
            lost = wanted - here
            if not lost:
                return Presence(here)
            if now_s >= self._due_s and not self._listing:
                await self._list(client, me, now_s)
            elif now_s - self._at_s > LIST_AGE_S or lost & self._ids.keys():
                return Presence(here)  # one that was in the list may have reconnected under another id
        except (CommandRefused, ResponseError) as problem:  # CLIENT LIST may be forbidden
            log.warning(
                "Redis does not say who is connected, so a dead worker's entries wait for STREAMPROC_CLAIM_IDLE: %s",
                problem,
            )
            self._blind = True
            return Presence(frozenset())
        return Presence(here | (wanted & self._ids.keys()), self._at_s)

    async def _still(self, client: Redis, names: frozenset[str], now_s: float) -> frozenset[str]:
        """Which of these still have a known connection. Rows are compared by name: a restarted server gives ids to
        others."""
        here = {name for name in names if now_s - self._seen.get(name, float("-inf")) <= SEEN_S}
        ids: list[Any] = [known_id for name in sorted(names - here) for known_id in self._ids.get(name, ())]
        if ids:
            with named_errors():
                rows: list[dict[str, Any]] = await client.client_list(client_id=ids)
            found = names & {str(row.get("name", "")) for row in rows}
            self._seen |= dict.fromkeys(found, now_s)
            here |= found
        return frozenset(here)

    async def _list(self, client: Redis, me: str, now_s: float) -> None:
        self._listing = True
        try:
            with named_errors():
                rows: list[dict[str, Any]] = await client.client_list(_type="normal")
        finally:
            self._listing = False
        ids: dict[str, list[str]] = {}
        for row in rows:
            if (name := str(row.get("name", ""))) and len(known := ids.setdefault(name, [])) < IDS_MAX:
                known.append(str(row["id"]))
        between_s = max(LIST_S, len(rows) / ROWS_PER_S) if me in ids else UNSEEN_S
        self._ids, self._seen = ids, dict.fromkeys(ids, now_s)
        self._at_s, self._due_s = now_s, now_s + between_s


def rosters_of(url: str, partitions: int) -> list[Roster]:
    """A roster for each partition of the log at a URL: the same one, unless each may be on a node of its own."""
    if is_cluster(url):
        return [Roster() for _ in range(partitions)]
    return [Roster()] * partitions
