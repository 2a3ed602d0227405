"""What a consumer looks for beside its batches: timers and retries that are due, and what others left in hand.

Looking takes entries into this consumer's hands; they are handled by the consume loop, in turn with what is read.
"""

import asyncio
import logging
import random
from collections.abc import Sequence
from typing import Any, NamedTuple

from redis.asyncio import Redis

from streamproc.log import held, scripts
from streamproc.log.connection import named_errors
from streamproc.log.gone import CALLED_S, LOOK_S, MISSING_S, Gone
from streamproc.log.held import TakenUp
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
FEW = 16
"""Suspects that are handled together when they are so for the first time: where workers are killed for no fault of
theirs there are hundreds, and one at a time they take seconds. One that was delivered once more is alone."""
ANY = 2**31
"""Deliveries of an entry that is taken up however many they are."""


class Found(NamedTuple):
    """Entries that are in our hands now: those to be handled together, and the ids of those to be handled apart, a few
    or one at a time: one that kills its worker must not take its neighbours along for ever.

    The latter are taken up (`Upkeep.take_up`) when their turn comes: what only waited behind one that kills its
    worker was not delivered. Those that were delivered least come first, and do not even wait for it."""

    together: list[Raw]
    apart: list[list[bytes]]


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
            entries_max=group.works_max,
            missing_s=CALLED_S if group.outputs_are_facts else MISSING_S,
            roster=roster,
        )
        self._gone_due = 0.0
        self._took = False
        """Whether the last look took from who is gone: the next leaves that out, so what was put off has its turn."""
        self._claim_due = 0.0
        self._cursor = b"0-0"
        """Where the claiming is: it goes on to the end over several looks, since from the start it never gets there."""

    async def look(self, client: Redis, *, may_claim: bool = True) -> Found | None:
        """What is found first: of who is gone, of what nobody finished in the claim time, of what was put off.

        The first two are looked for where that `may_claim`, and at their times only, so what was put off gets its turn
        however much they find.
        """
        now = asyncio.get_running_loop().time()
        took, self._took = self._took, False
        if may_claim and now >= self._gone_due and not took:
            self._gone_due = now + LOOK_S * random.uniform(0.8, 1.2)
            if entries := await self._gone.take(client, now):
                self._gone_due, self._took = now, True  # there may be more
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
        if not retries:
            return None
        watch.taken_up(self.group, "retry", len(retries))
        return Found(retries, [])

    async def own(self, client: Redis, after: str) -> list[bytes]:
        """Ids of what is in this consumer's hands, of what follows: some of them."""
        with named_errors():
            rows: list[dict[str, Any]] = await client.xpending_range(
                self.names.log, self.group, after, "+", self._works_max, self.name
            )
        return [row["message_id"] for row in rows]

    async def take_up(self, client: Redis, entries: Sequence[bytes], *, most: int = ANY) -> list[TakenUp]:
        """Of what came into our hands: all that is still there and not put off.

        What was delivered more often than `most` times, with this one, is told of and not taken up.
        """
        return await held.take_up(client, self.names, self.group, self.name, entries, most=most)

    async def take_up_again(self, client: Redis, entries: Sequence[bytes]) -> list[list[Raw]]:
        """Of what was in our hands when the connection was lost: all that is still there and not put off, as it is to
        be handled together."""
        taken = await held.take_up(client, self.names, self.group, self.name, entries, most=None)
        counted = [(n, entry) for n, _, entry in taken if entry is not None]
        together = [entry for n, entry in counted if n <= SUSPECT_DELIVERIES]
        return [together, *([entry] for n, entry in counted if n > SUSPECT_DELIVERIES)]

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
        """Take up what is in our hands now, except what is put off and what may be what kills its workers."""
        if not entries:
            return None
        taken = await self.take_up(client, entries, most=SUSPECT_DELIVERIES)
        if not taken:
            return None
        log.info("%s/%d: took over %d entries", self.group, self.names.partition, len(taken))
        watch.taken_up(self.group, "claim", len(taken))
        return Found([one.entry for one in taken if one.entry is not None], _apart(taken))

    async def _remove_stale_consumers(self, client: Redis) -> None:
        with named_errors():
            consumers = await client.xinfo_consumers(self.names.log, self.group)
        for row in consumers:
            name, idle_ms = row["name"].decode(), int(row["idle"])
            if name != self.name and row["pending"] == 0 and idle_ms > 1000 * self._claim_idle_s:
                # One that was only slow makes itself anew when it reads.
                await scripts.leave(client, self.names, self.group, name)


def _apart(taken: Sequence[TakenUp]) -> list[list[bytes]]:
    """Suspects as they are handled, the least suspicious first."""
    suspects = sorted((one for one in taken if one.entry is None), key=lambda one: one.deliveries)
    few = [one.id for one in suspects if one.deliveries <= SUSPECT_DELIVERIES]
    groups = [few[at : at + FEW] for at in range(0, len(few), FEW)]
    return groups + [[one.id] for one in suspects[len(few) :]]
