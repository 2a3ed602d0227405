"""The one consume loop: read, decode, load, run the chain, commit. Claims, retries, dead letters, drain.

Why nothing is lost or done twice: an entry stays pending in its consumer group until a commit acknowledges it,
and Redis acknowledges it to one caller only, in the same step that appends the outputs. So a worker may die at
any await, be frozen and come back, or send a commit twice; whoever commits first wins and the others write
nothing. What is not committed is found again: by this consumer after a reconnect, by any other soon after this one's
connections ended (gone.py), or after CLAIM_IDLE.

An entry that fails on its own is put off with backoff and becomes a dead letter after ATTEMPTS_MAX; a dependency
that is away (TryAgain) uses up no attempt. An error that nobody named counts as a failed attempt of one entry
only: the batch is run again entry by entry, so that its neighbours still commit.
"""

import asyncio
import logging
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

from redis.asyncio import Redis

from streamproc.errors import LogUnavailable
from streamproc.log import scripts
from streamproc.log.batch import Handler, Limits
from streamproc.log.connection import BLOCK_MS_MAX, connected, named_errors
from streamproc.log.gone import CALLED_S, LISTED_S, LOOK_S, MISSING_S, Gone
from streamproc.log.names import Names
from streamproc.log.roster import Roster
from streamproc.log.scripts import Raw
from streamproc.log.work import Group
from streamproc.telemetry import watch

log = logging.getLogger(__name__)

UPKEEP_S = 0.2
"""Timers and retries are looked at this often."""
CLAIM_BATCH = 64
"""Entries taken over at once."""
SUSPECT_DELIVERIES = 2
"""Deliveries that a crash explains; an entry with more may be what crashes its workers."""
DELIVERIES_MAX = 10
"""Takeovers of an entry whose workers die with it; then it is a dead letter unseen."""
RECONNECT_BASE_S, RECONNECT_CAP_S = 0.1, 5.0


class Consumer:
    """One consumer of one group on one partition."""

    def __init__(
        self,
        url: str,
        partition: int,
        group: Group,
        *,
        name: str,
        limits: Limits,
        roster: Roster | None = None,
    ) -> None:
        """`roster` is shared by all of this process whose partitions are on one server."""
        self.url, self.group, self.name, self.limits = url, group, name, limits
        self.names = Names(partition)
        self.partition = partition
        self._handler = Handler(partition, group, limits)
        self._reading: asyncio.Task[list[Raw]] | None = None
        self._gone = Gone(
            self.names,
            group.name,
            name,
            deliveries_max=SUSPECT_DELIVERIES,
            entries_max=group.works_max,
            missing_s=CALLED_S if group.outputs_are_facts else MISSING_S,
            roster=roster,
        )
        self._gone_due = 0.0
        self._claim_due = 0.0
        self._upkeep_due = 0.0

    # ---- open, run, drain, close --------------------------------------------------------

    async def run(self, stopping: asyncio.Event) -> None:
        """Consume until `stopping`, then finish what was read and leave the group.

        LogUnavailable is waited out here; LogBroken and bugs of the loop itself end the process.
        """
        delay = RECONNECT_BASE_S
        while not stopping.is_set():
            try:
                home = self.names.log
                async with (
                    connected(self.url, blocking=True, home=home, name=self.name) as reader,
                    connected(self.url, home=home, name=self.name) as client,
                    self._listed(reader),
                ):
                    await self._take_up_own(client)
                    delay = RECONNECT_BASE_S
                    await self._serve(reader, client, stopping)
                    await scripts.leave(client, self.names, self.group.name, self.name)
            except LogUnavailable as problem:
                log.warning("%s/%d: %s; again in %.1f s", self.group.name, self.partition, problem, delay)
                await _sleep_unless(stopping, delay)
                delay = min(RECONNECT_CAP_S, delay * 2)

    async def _serve(self, reader: Redis, client: Redis, stopping: asyncio.Event) -> None:
        with named_errors():
            reader_id = await reader.client_id()
        stopped = asyncio.create_task(stopping.wait())
        self._reading = reading = asyncio.create_task(self._read(reader))
        try:
            while not stopping.is_set():
                await asyncio.wait({reading, stopped}, timeout=UPKEEP_S, return_when=asyncio.FIRST_COMPLETED)
                if reading.done():
                    # The next batch is fetched while this one is handled.
                    entries = reading.result()
                    self._reading = reading = asyncio.create_task(self._read_on(reader, entries))
                    await self._handler.handle(client, entries, taken=False)
                await self._upkeep(client)
            # What a read under way brings is ours already: end its waiting, then finish it.
            with named_errors():
                await client.client_unblock(reader_id)
            await self._handler.handle(client, await reading, taken=False)
        finally:
            for task in (reading, stopped):
                task.cancel()
            await asyncio.gather(reading, stopped, return_exceptions=True)

    @asynccontextmanager
    async def _listed(self, reader: Redis) -> AsyncIterator[None]:
        """Where nothing is being read, a batch is in hand, at the bank maybe, and nobody would notice that the
        connections are lost: others would take it for a dead consumer's (gone.py). So another one is made."""

        async def stay() -> None:
            while True:
                await asyncio.sleep(LISTED_S)
                if self._reading is None or self._reading.done():
                    with suppress(LogUnavailable), named_errors():
                        await reader.exists(self.names.log)

        staying = asyncio.create_task(stay())
        try:
            yield
        finally:
            staying.cancel()
            await asyncio.gather(staying, return_exceptions=True)

    async def _read_on(self, reader: Redis, before: list[Raw]) -> list[Raw]:
        """What comes after these. Where they end among our own outputs, those that follow are passed over first."""
        if before and self._handler.is_own(before[-1]):
            await scripts.pass_own(reader, self.names, self.group.name)
        return await self._read(reader)

    async def _read(self, reader: Redis, start: str = ">", block_ms: int = BLOCK_MS_MAX) -> list[Raw]:
        with named_errors():
            reply = await reader.execute_command(
                "XREADGROUP",
                "GROUP",
                self.group.name,
                self.name,
                "COUNT",
                self.group.read_max,
                *(("BLOCK", block_ms) if start == ">" else ()),
                "STREAMS",
                self.names.log,
                start,
            )
        return reply[0][1] if reply else []

    # ---- entries that were in somebody's hands ------------------------------------------

    async def _take_up_own(self, client: Redis) -> None:
        """After a lost connection: replies may be lost, so what is pending here is read again."""
        last = "0"
        while entries := await self._read(client, last):
            last = entries[-1][0].decode()
            await self._handler.handle(client, await self._not_deferred(client, entries), taken=True)

    async def _upkeep(self, client: Redis) -> None:
        now = asyncio.get_running_loop().time()
        if now < self._upkeep_due:
            return
        self._upkeep_due = now + UPKEEP_S
        await scripts.fire_due(client, self.names)
        retries = await scripts.due_retries(
            client,
            self.names,
            self.group.name,
            self.name,
            lease_s=self.limits.claim_idle_s,
            limit=self.group.works_max,
        )
        if retries:
            watch.taken_up(self.group.name, "retry", len(retries))
            await self._handler.handle(client, retries, taken=True)
        if now >= self._gone_due:
            looked_at = asyncio.get_running_loop().time()  # the retries may have taken long
            self._gone_due = looked_at + LOOK_S * random.uniform(0.8, 1.2)
            await self._took_over(client, await self._gone.take(client, looked_at))
        if now >= self._claim_due:
            self._claim_due = now + self.limits.claim_idle_s / 4 * random.uniform(0.8, 1.2)
            await self._claim(client)
            await self._remove_stale_consumers(client)

    async def _claim(self, client: Redis) -> None:
        """Take over what others left pending. The cursor is followed to the end: restarting never gets there."""
        cursor, idle_ms = b"0-0", int(self.limits.claim_idle_s * 1000)
        while True:
            with named_errors():
                cursor, entries, *_ = await client.execute_command(
                    "XAUTOCLAIM",
                    self.names.log,
                    self.group.name,
                    self.name,
                    idle_ms,
                    cursor,
                    "COUNT",
                    CLAIM_BATCH,
                )
            await self._took_over(client, entries)
            if cursor == b"0-0":
                return

    async def _took_over(self, client: Redis, entries: list[Raw]) -> None:
        entries = await self._not_deferred(client, entries)
        if entries:
            log.info("%s/%d: took over %d entries", self.group.name, self.partition, len(entries))
            watch.taken_up(self.group.name, "claim", len(entries))
            await self._handle_claimed(client, entries)

    async def _handle_claimed(self, client: Redis, entries: list[Raw]) -> None:
        """Entries that were taken over again and again are handled one at a time: an entry that kills its
        worker must not take its neighbours along for ever."""
        counts = [await self._deliveries(client, entry) for entry in entries]
        together = [entry for entry, n in zip(entries, counts, strict=True) if n <= SUSPECT_DELIVERIES]
        await self._handler.handle(client, together, taken=True)
        for entry, n in zip(entries, counts, strict=True):
            if n > DELIVERIES_MAX:
                why = f"taken up {n} times without an end, the limit is {DELIVERIES_MAX}"
                await self._handler.set_aside(client, entry, why)
            elif n > SUSPECT_DELIVERIES:
                await self._handler.handle(client, [entry], taken=True)

    async def _deliveries(self, client: Redis, entry: Raw) -> int:
        with named_errors():
            rows = await client.xpending_range(self.names.log, self.group.name, entry[0], entry[0], 1)
        return int(rows[0]["times_delivered"]) if rows else 0

    async def _not_deferred(self, client: Redis, entries: list[Raw]) -> list[Raw]:
        """Without those that wait for a retry: their time has not come."""
        if not entries:
            return []
        with named_errors():
            scores = await client.execute_command(
                "ZMSCORE", self.names.retries(self.group.name), *(entry[0] for entry in entries)
            )
        return [entry for entry, score in zip(entries, scores, strict=True) if score is None]

    async def _remove_stale_consumers(self, client: Redis) -> None:
        with named_errors():
            consumers = await client.xinfo_consumers(self.names.log, self.group.name)
        for row in consumers:
            name, idle_ms = row["name"].decode(), int(row["idle"])
            if name != self.name and row["pending"] == 0 and idle_ms > 10_000 * self.limits.claim_idle_s:
                await scripts.leave(client, self.names, self.group.name, name)


async def _sleep_unless(stopping: asyncio.Event, delay_s: float) -> None:
    try:
        async with asyncio.timeout(delay_s):
            await stopping.wait()
    except TimeoutError:
        return
