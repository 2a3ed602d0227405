"""What a consumer looks for beside its batches: timers and retries that are due, and what others left pending.

A look only claims entries; the consume loop handles them, in turn with what it reads.
"""

import asyncio
import logging
import random
from collections.abc import Sequence
from typing import Any, NamedTuple

from redis.asyncio import Redis

from streamproc.log import claims, scripts
from streamproc.log.claims import ANY, TakenUp
from streamproc.log.connection import named_errors
from streamproc.log.dead_consumers import CALLED_S, LOOK_S, MISSING_S, DeadConsumers
from streamproc.log.names import Names
from streamproc.log.roster import Roster
from streamproc.log.scripts import Raw
from streamproc.log.work import Group
from streamproc.telemetry import watch

log = logging.getLogger(__name__)

CLAIM_BATCH = 64
"""Entries claimed in one call."""
SUSPECT_DELIVERIES = 2
"""Deliveries that ordinary crashes explain; an entry with more is suspected of killing its workers."""
FEW = 16
"""Suspects that are handled together the first time. Workers that are killed for other reasons leave hundreds, which
one at a time would take seconds. One that was delivered once more after that is handled alone."""
DELIVERIES_MAX = 10
"""Takeovers of an entry whose workers die with it; after these it becomes a dead letter unseen."""


class Found(NamedTuple):
    """Claimed entries: those to be handled together, and the ids of suspects, to be handled apart, a few or one at a
    time, so that one that kills its worker does not take its neighbours along for ever.

    Suspects are taken up (`Upkeep.take_up`), which counts a delivery, only when their turn comes: what merely waited
    behind a killer was not delivered. The least suspicious come first.

    `waited`: those that waited in the slow lane of another, and go into ours unopened, since any of them may be what
    it died of. Suspects among them come last. Where there is no slow lane they are handled apart.

    `unsent`: those in `together` for which nothing was sent outside so far.
    """

    together: list[Raw]
    apart: list[list[bytes]]
    waited: Sequence[TakenUp] = ()
    unsent: frozenset[bytes] = frozenset()


class Upkeep:
    """The upkeep of one consumer. `roster` is shared by the process."""

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
        self._dead_consumers = DeadConsumers(
            names,
            group.name,
            consumer,
            entries_max=group.works_max,
            missing_s=CALLED_S if group.outputs_are_facts else MISSING_S,
            roster=roster,
        )
        self._dead_due = 0.0
        self._took = False
        """Whether the last look claimed from a consumer that is gone: the next one skips that, so that retries have
        a turn."""
        self._claim_due = 0.0
        self._cursor = b"0-0"
        """Where XAUTOCLAIM goes on: kept over several looks, since from the start each time it might never reach the
        end."""

    async def look(self, client: Redis, *, may_claim: bool = True) -> Found | None:
        """The first that is found of: entries of consumers that are gone, entries idle for the claim time, retries that
        are due.

        The first two only if `may_claim`, and only at their intervals, so that retries get their turn however much is
        claimed.
        """
        now = asyncio.get_running_loop().time()
        took, self._took = self._took, False
        if may_claim and now >= self._dead_due and not took:
            self._dead_due = now + LOOK_S * random.uniform(0.8, 1.2)
            if entries := await self._dead_consumers.take(client, now):
                self._dead_due, self._took = now, True  # there may be more
                if found := await self._taken_over(client, entries):
                    return found
        if may_claim and now >= self._claim_due and (found := await self._claimed(client, now)):
            return found
        retries = await scripts.due_retries(
            client,
            self.names,
            self.group,
            self.name,
            limit=self._works_max,
        )
        if not retries.entries:
            return None
        watch.taken_up(self.group, "retry", len(retries.entries))
        return Found(retries.entries, [], unsent=retries.unsent)

    async def pending_ids(self, client: Redis, after: str) -> list[bytes]:
        """Ids pending with this consumer, from `after` on, a limited number."""
        with named_errors():
            rows: list[dict[str, Any]] = await client.xpending_range(
                self.names.log, self.group, after, "+", self._works_max, self.name
            )
        return [row["message_id"] for row in rows]

    async def take_up(
        self, client: Redis, entries: Sequence[bytes], *, most: int | None = ANY
    ) -> list[TakenUp]:
        """Take up claimed entries that are still pending with us and not deferred.

        One that was delivered more often than `most` times, this time included, is returned without itself.
        """
        return await claims.take_up(client, self.names, self.group, self.name, entries, most=most)

    async def take_up_again(self, client: Redis, entries: Sequence[bytes]) -> list[list[Raw]]:
        """Take up what was pending with us when the connection was lost, without those that are deferred, in the
        parts in which it is to be handled: together, and then each suspect alone."""
        taken = await claims.take_up(client, self.names, self.group, self.name, entries, most=None)
        counted = [(up.deliveries, up.entry) for up in taken if up.entry is not None]
        together = [entry for n, entry in counted if n <= SUSPECT_DELIVERIES]
        return [together, *([entry] for n, entry in counted if n > SUSPECT_DELIVERIES)]

    async def _claimed(self, client: Redis, now: float) -> Found | None:
        """Take over what others left pending for the claim time: the next that there is."""
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
                    "JUSTID",
                )
            is_end = self._cursor == b"0-0"
            if is_end:
                self._claim_due = now + self._claim_idle_s / 4 * random.uniform(0.8, 1.2)
                await self._remove_stale_consumers(client)
            found = await self._taken_over(client, entries)
            if found or is_end:
                return found

    async def _taken_over(self, client: Redis, entries: list[bytes]) -> Found | None:
        """Take up claimed entries, except deferred ones and suspects, which go apart."""
        if not entries:
            return None
        taken = await self.take_up(client, entries, most=SUSPECT_DELIVERIES)
        if not taken:
            return None
        log.info("%s/%d: took over %d entries", self.group, self.names.partition, len(taken))
        watch.taken_up(self.group, "claim", len(taken))
        waited = [up for up in taken if up.waited]
        return Found(
            [up.entry for up in taken if up.entry is not None],
            apart([up for up in taken if up.entry is None and not up.waited]),
            tuple(sorted(waited, key=lambda up: up.deliveries >= SUSPECT_DELIVERIES)),
        )

    async def _remove_stale_consumers(self, client: Redis) -> None:
        with named_errors():
            consumers = await client.xinfo_consumers(self.names.log, self.group)
        for row in consumers:
            name, idle_ms = row["name"].decode(), int(row["idle"])
            if name != self.name and row["pending"] == 0 and idle_ms > 1000 * self._claim_idle_s:
                # If it was only slow, its next read creates it again.
                await scripts.leave(client, self.names, self.group, name)


def too_often(deliveries: int) -> str:
    """Why an entry that was taken up so often becomes a dead letter; '' if it does not."""
    if deliveries <= DELIVERIES_MAX:
        return ""
    return f"taken up {deliveries} times without an end, the limit is {DELIVERIES_MAX}"


def apart(suspects: Sequence[TakenUp]) -> list[list[bytes]]:
    """Suspects in the groups in which they are handled, the least suspicious first."""
    suspects = sorted(suspects, key=lambda entry: entry.deliveries)
    few = [entry.id for entry in suspects if entry.deliveries <= SUSPECT_DELIVERIES]
    groups = [few[at : at + FEW] for at in range(0, len(few), FEW)]
    return groups + [[entry.id] for entry in suspects[len(few) :]]
