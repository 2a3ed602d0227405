"""What a consumer looks for beside its batches: timers and retries that are due, and what others left in hand.

Looking takes entries into this consumer's hands; they are handled by the consume loop, in turn with what is read.
"""

import asyncio
import logging
import random
from typing import NamedTuple

from redis.asyncio import Redis

from streamproc.log import scripts
from streamproc.log.connection import named_errors
from streamproc.log.gone import CALLED_S, LOOK_S, MISSING_S, Gone
from streamproc.log.names import Names
from streamproc.log.roster import Roster
from streamproc.log.scripts import Raw
from streamproc.log.work import Group
from streamproc.telemetry import watch

log = logging.getLogger(__name__)

CLAIM_BATCH = 64
"""Entries taken over at once."""
SUSPECT_DELIVERIES = 2
"""Deliveries that a crash explains; an entry with more may be what crashes its workers."""


class Found(NamedTuple):
    """Entries that are in our hands now: those to be handled together, and those to be handled one at a time, each with
    how often it was taken up: one that kills its worker must not take its neighbours along for ever."""

    together: list[Raw]
    alone: list[tuple[Raw, int]]


class Upkeep:
    """One consumer's looks. `roster` is that of the process."""

    def __init__(
        self,
        names: Names,
        group: Group,
        consumer: str,
        claim_idle_s: float,
        roster: Roster | None = None,
    ) -> None:
        self.names, self.group, self.name = names, group.name, consumer
        self._claim_idle_s, self._works_max = claim_idle_s, group.works_max
        self._gone = Gone(
            names,
            group.name,
            consumer,
            deliveries_max=SUSPECT_DELIVERIES,
            entries_max=group.works_max,
            missing_s=CALLED_S if group.outputs_are_facts else MISSING_S,
            roster=roster,
        )
        self._gone_due = 0.0
        self._claim_due = 0.0
        self._cursor = b"0-0"
        """Where the claiming is: it goes on to the end over several looks, since from the start it never gets there."""

    async def look(self, client: Redis, *, may_claim: bool = True) -> Found | None:
        """What is found first: of who is gone, of what nobody finished in the claim time, of what was put off.

        The first two are looked for at their times only, so what was put off gets its turn however much they find.
        """
        now = asyncio.get_running_loop().time()
        if now >= self._gone_due:
            self._gone_due = now + LOOK_S * random.uniform(0.8, 1.2)
            if found := await self._taken_over(client, await self._gone.take(client, now)):
                return found
        if may_claim and now >= self._claim_due and (found := await self._claimed(client, now)):
            return found
        retries = await scripts.due_retries(
            client,
            self.names,
            self.group,
            self.name,
            lease_s=self._claim_idle_s,
            limit=self._works_max,
        )
        if not retries:
            return None
        watch.taken_up(self.group, "retry", len(retries))
        return Found(retries, [])

    async def not_deferred(self, client: Redis, entries: list[Raw]) -> list[Raw]:
        """Without those that wait for a retry: their time has not come."""
        if not entries:
            return []
        with named_errors():
            scores = await client.execute_command(
                "ZMSCORE", self.names.retries(self.group), *(entry[0] for entry in entries)
            )
        return [entry for entry, score in zip(entries, scores, strict=True) if score is None]

    async def _claimed(self, client: Redis, now: float) -> Found | None:
        """Take over what others left pending: the next of it that there is."""
        idle_ms = int(self._claim_idle_s * 1000)
        while True:
            with named_errors():
                self._cursor, entries, *_ = await client.execute_command(
                    "XAUTOCLAIM",
                    self.names.log,
                    self.group,
                    self.name,
                    idle_ms,
                    self._cursor,
                    "COUNT",
                    CLAIM_BATCH,
                )
            is_end = self._cursor == b"0-0"
            if is_end:
                self._claim_due = now + self._claim_idle_s / 4 * random.uniform(0.8, 1.2)
                await self._remove_stale_consumers(client)
            found = await self._taken_over(client, entries)
            if found or is_end:
                return found

    async def _taken_over(self, client: Redis, entries: list[Raw]) -> Found | None:
        entries = await self.not_deferred(client, entries)
        if not entries:
            return None
        log.info("%s/%d: took over %d entries", self.group, self.names.partition, len(entries))
        watch.taken_up(self.group, "claim", len(entries))
        counts = [await self._deliveries(client, entry) for entry in entries]
        both = list(zip(entries, counts, strict=True))
        together = [entry for entry, n in both if n <= SUSPECT_DELIVERIES]
        return Found(together, [(entry, n) for entry, n in both if n > SUSPECT_DELIVERIES])

    async def _deliveries(self, client: Redis, entry: Raw) -> int:
        with named_errors():
            rows = await client.xpending_range(self.names.log, self.group, entry[0], entry[0], 1)
        return int(rows[0]["times_delivered"]) if rows else 0

    async def _remove_stale_consumers(self, client: Redis) -> None:
        with named_errors():
            consumers = await client.xinfo_consumers(self.names.log, self.group)
        for row in consumers:
            name, idle_ms = row["name"].decode(), int(row["idle"])
            if name != self.name and row["pending"] == 0 and idle_ms > 10_000 * self._claim_idle_s:
                await scripts.leave(client, self.names, self.group, name)
