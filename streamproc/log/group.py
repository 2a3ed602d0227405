"""The one consume loop of all groups: read, decode, load, run the chain, commit; claims, retries, dead letters, drain.

Why nothing is lost or done twice: an entry stays pending in its consumer group until a commit acknowledges it,
and Redis acknowledges it to one caller only, in the same step that appends the outputs. So a worker may die at
any await, be frozen and come back, or send a commit twice: whoever commits first wins, and the others write
nothing. What is not committed is found again: by this consumer after a reconnect, by any other soon after this one's
connections ended (dead_consumers.py), or after CLAIM_IDLE.

Upkeep (timers, retries, lost consumers; upkeep.py) runs beside the batches on a connection of its own: no payout waits
for it, and timers fire while a batch is at the bank. So does the slow lane of a group that has one (slow_lane.py).

An entry that fails by itself is deferred with backoff, and becomes a dead letter after ATTEMPTS_MAX. A dependency that
is away (TryAgain) costs no attempt. An unexpected error counts as a failed attempt of one entry only: the batch is run
again entry by entry, so that the others still commit.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from math import inf

from redis.asyncio import Redis

from streamproc.errors import LogUnavailable
from streamproc.log import scripts
from streamproc.log.batch import Handler, Limits
from streamproc.log.claims import Claims, TakenUp
from streamproc.log.connection import BLOCK_MS_MAX, CommandRefused, connected, named_errors
from streamproc.log.failures import BACKOFF
from streamproc.log.names import Names
from streamproc.log.opened import Opened
from streamproc.log.roster import Roster
from streamproc.log.scripts import Deferral, Raw
from streamproc.log.slow_lane import FULL_S, SAY_S, SlowLane, Turns
from streamproc.log.suspects import Suspects
from streamproc.log.upkeep import Found, Upkeep, apart, too_often
from streamproc.log.work import Group, Work
from streamproc.waiting import set_within

log = logging.getLogger(__name__)

UPKEEP_S = 0.2
"""Interval of the upkeep. It is also how soon a consumer that lost its connections has one again, which must be well
within dead_consumers.MISSING_S: others would take it for dead while it is at the bank."""
APART_S = 1.0
"""How long entries are handled a few or one at a time before the batch that was read meanwhile has its turn."""
QUIET_S = 0.02
"""Skipped entries are acknowledged, and telemetry of decisions written, when nothing came for so long. Before, that
would delay the next batch's decisions."""
SKIPPED_MAX = 256
"""Skipped entries that are acknowledged without waiting for a pause: as many as are read at once."""
SKIPPED_S = 1.0
"""Age at which they are acknowledged anyway, so that they never look abandoned."""
RENEW_MAX_S = 600.0
"""Claims are not renewed while a batch is in hand for longer: a pass has 25 s, so this worker hangs. Others take over.
For what waits for the quarantine: suspects.py."""
RECONNECT_BASE_S, RECONNECT_CAP_S = 0.1, 5.0
"""The first and the longest wait before it connects anew, each twice the last until all is well. A server that refuses
one command accepts connections all the same, so after that it was not."""


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
        turns: Turns | None = None,
    ) -> None:
        """`roster` is shared by all consumers of this process whose partitions are on one server, `turns` by all."""
        self.url, self.group, self.name, self.limits = url, group, name, limits
        self.names = Names(partition)
        self.partition = partition
        self._handler = Handler(partition, group, limits, name)
        self._upkeep = Upkeep(self.names, group, name, limits.claim_idle_s, roster)
        self._claims = Claims(self.names, group.name, name, limits.claim_idle_s)
        turns = turns or Turns(1)
        self._suspects = Suspects(self._upkeep, self._claims, turns.quarantine)
        self._slow = SlowLane(
            Handler(partition, group, limits, name, say_s=SAY_S),
            self._upkeep,
            self._claims,
            turns,
        )
        self._finding: asyncio.Future[Found] | None = None
        """What the upkeep found and is to be handled. None: it is to look for nothing yet."""
        self._waited: list[TakenUp] = []
        """Found entries that go into the slow lane after suspects: a killer in its turn there cuts none of them off."""
        self._said_s = -inf
        """When the log last said that the slow lane is full."""
        self._in_hand_since: float | None = None
        self._skipped_since: float | None = None
        self._lost_beside: LogUnavailable | None = None
        """Error of the upkeep's connection: an entry that it claimed may be pending with us without our knowing."""

    # ---- open, run, drain, close --------------------------------------------------------

    async def run(self, stopping: asyncio.Event) -> None:
        """Consume until `stopping`, then finish what was read and leave the group.

        LogUnavailable is waited out here; LogBroken and bugs of the loop itself end the process.
        """
        delay = RECONNECT_BASE_S
        while not stopping.is_set():
            was_well = False
            try:
                home = self.names.log
                async with (
                    connected(self.url, blocking=True, home=home, name=self.name) as reader,
                    connected(self.url, home=home, name=self.name) as client,
                    connected(self.url, home=home, name=self.name) as beside,
                    self._looking(beside, stopping) as looking,
                    self._slow_lane(),
                ):
                    await scripts.may_commit(client, self.names, self.group.name)
                    await self._take_up_own(client)
                    was_well = True
                    await self._serve(reader, client, looking, stopping)
                    await scripts.leave(client, self.names, self.group.name, self.name)
            except LogUnavailable as problem:
                if was_well and not isinstance(problem, CommandRefused):
                    delay = RECONNECT_BASE_S
                log.warning("%s/%d: %s; again in %.1f s", self.group.name, self.partition, problem, delay)
                await set_within(stopping, delay)
                delay = min(RECONNECT_CAP_S, delay * 2)

    async def _serve(
        self, reader: Redis, client: Redis, looking: asyncio.Task[None], stopping: asyncio.Event
    ) -> None:
        with named_errors():
            reader_id = await reader.client_id()
        stopped = asyncio.create_task(stopping.wait())
        reading = asyncio.create_task(self._read_on(reader, []))
        self._finding = finding = asyncio.get_running_loop().create_future()
        try:
            while not stopping.is_set():
                waits = self._handler.skipped or self._handler.telemetry.has_unrecorded
                await asyncio.wait(
                    {reading, finding, looking, stopped, *self._slow.tasks, *self._suspects.places},
                    timeout=QUIET_S if waits else None,
                    return_when=asyncio.FIRST_COMPLETED,
                )
                is_quiet = not (reading.done() or finding.done())
                if reading.done():
                    # The next batch is read and asked about while this one is handled.
                    opened = reading.result()
                    reading = asyncio.create_task(self._read_on(reader, opened.entries))
                    await self._handle(client, opened.entries, taken=False, ahead=opened)
                if finding.done():
                    await self._handle_found(client, finding.result())
                    self._finding = finding = asyncio.get_running_loop().create_future()
                await self._handle_apart(client)
                for beside in (looking, *self._slow.tasks):
                    if beside.done():
                        beside.result()
                if self._lost_beside is not None:
                    raise self._lost_beside  # connects anew, and takes up again all that is pending with us
                await self._acknowledge(client, is_quiet=is_quiet)
            self._suspects.leave_quarantine()  # suspects are left to others, and slow lanes may need the turn
            # A read under way may have been given entries: unblock it, and handle them, and what the upkeep has found.
            with named_errors():
                await client.client_unblock(reader_id)
            opened = await reading
            await self._handle(client, opened.entries, taken=False, ahead=opened)
            await looking
            if finding.done():
                await self._handle_found(client, finding.result())
            await self._handler.acknowledge(client)
            await self._slow.finish()
        finally:
            self._suspects.leave_quarantine()
            self._handler.telemetry.record()
            for task in (reading, stopped):
                task.cancel()
            await asyncio.gather(reading, stopped, return_exceptions=True)

    async def _handle(
        self,
        client: Redis,
        entries: Sequence[Raw],
        *,
        taken: bool,
        ahead: Opened | None = None,
        unsent: frozenset[bytes] = frozenset(),
    ) -> None:
        ours = await self._claims.ours(client, entries)
        self._in_hand_since = asyncio.get_running_loop().time()
        known = ahead if ours is entries else None
        self._handler.may_wait = self._slow.is_running
        try:
            await self._handler.handle(client, ours, taken=taken, ahead=known, unsent=unsent)
        finally:
            self._in_hand_since = None
        room = self._slow.room
        await self._slow.add(client, self._handler.for_slow_lane[:room])
        await self._put_off(client, self._handler.for_slow_lane[room:])
        self._claims.done(entry for entry, _ in entries if entry not in self._slow)

    async def _put_off(self, client: Redis, works: Sequence[Work]) -> None:
        """Put off what the slow lane has no room for, so that nothing waits for it."""
        if not works:
            return
        if (now := asyncio.get_running_loop().time()) >= self._said_s + FULL_S:
            self._said_s = now
            what = "%s/%d: %d entries wait for their turn, and no more can; the rest is deferred for %d s each time"
            log.warning(what, self.group.name, self.partition, len(self._slow), FULL_S)
        self._handler.telemetry.deferred(works)
        deferrals = [Deferral(work.entry, FULL_S, counts=False) for work in works]
        await scripts.defer(client, self.names, self.group.name, deferrals, BACKOFF, self.name)

    async def _acknowledge(self, client: Redis, *, is_quiet: bool) -> None:
        """Acknowledge skipped entries and write telemetry when that delays no payout, or when it is due."""
        if is_quiet:
            self._handler.telemetry.record()
        skipped = len(self._handler.skipped)
        if not skipped:
            return
        now = asyncio.get_running_loop().time()
        since = self._skipped_since = self._skipped_since or now
        if is_quiet or skipped >= SKIPPED_MAX or now >= since + SKIPPED_S:
            self._handler.telemetry.record()
            await self._handler.acknowledge(client)
            self._skipped_since = None

    async def _read_on(self, reader: Redis, before: Sequence[Raw]) -> Opened:
        """Read what comes after these entries, and open it.

        If a full read ended among our own outputs, those that follow are passed over first. If it was not full, whoever
        wrote what follows has passed over it already.
        """
        opener = self._handler.opener
        if len(before) >= self.group.read_max and opener.is_own(before[-1]):
            await scripts.pass_own(reader, self.names, self.group.name)
        return await opener.ahead(reader, await self._read(reader))

    async def _read(self, reader: Redis, block_ms: int = BLOCK_MS_MAX) -> list[Raw]:
        asked_s = asyncio.get_running_loop().time()
        with named_errors():
            reply = await reader.execute_command(
                "XREADGROUP",
                "GROUP",
                self.group.name,
                self.name,
                "COUNT",
                self.group.read_max,
                "BLOCK",
                block_ms,
                "STREAMS",
                self.names.log,
                ">",
            )
        entries: list[Raw] = reply[0][1] if reply else []
        self._claims.add((entry for entry, _ in entries), asked_s)
        return entries

    # ---- beside the batches -------------------------------------------------------------

    @asynccontextmanager
    async def _looking(self, client: Redis, stopping: asyncio.Event) -> AsyncIterator[asyncio.Task[None]]:
        """Run the upkeep as a task until `stopping`. What it finds is in `_finding`."""
        self._lost_beside = None
        looking = asyncio.create_task(self._look(client, stopping))
        try:
            yield looking
        finally:
            looking.cancel()
            await asyncio.gather(looking, return_exceptions=True)
            self._finding = None

    @asynccontextmanager
    async def _slow_lane(self) -> AsyncIterator[None]:
        """Run the group's slow lane, if it has one, on a connection of its own."""
        if not self.group.slow_lane:
            yield
            return
        async with (
            connected(self.url, home=self.names.log, name=self.name) as client,
            self._slow.running(client),
        ):
            yield

    async def _look(self, client: Redis, stopping: asyncio.Event) -> None:
        while not stopping.is_set():
            await set_within(stopping, UPKEEP_S)
            try:
                await self._look_once(client)
            except LogUnavailable as problem:
                # Goes on all the same: while a batch is in hand, this connection shows that we are alive.
                self._lost_beside = problem

    async def _look_once(self, client: Redis) -> None:
        await scripts.fire_due(client, self.names)
        since, now = self._in_hand_since, asyncio.get_running_loop().time()
        in_hand_s = 0.0 if since is None else now - since
        self._suspects.let_go(self._waited)
        if max(in_hand_s, self._slow.in_hand_s(now)) < RENEW_MAX_S:
            await self._claims.renew(client)
        finding = self._finding
        if finding is None or finding.done():
            return
        # What we would claim waits for the batch in hand; other workers may be idle.
        is_long = in_hand_s > self.limits.claim_idle_s / 2
        asked_s = asyncio.get_running_loop().time()
        if found := await self._upkeep.look(client, may_claim=not (is_long or self._suspects)):
            self._claims.add((entry for entry, _ in found.together), asked_s)
            self._suspects.claimed(found.apart, asked_s)
            self._claims.add((up.id for up in found.waited), asked_s)
            finding.set_result(found)

    async def _handle_found(self, client: Redis, found: Found) -> None:
        await self._handle(client, found.together, taken=True, unsent=found.unsent)
        self._suspects.add(found.apart)
        if self._slow.has_room:
            self._waited += found.waited
        else:
            parts = apart(found.waited)
            self._suspects.claimed(parts, asyncio.get_running_loop().time())
            self._suspects.add(parts)

    async def _handle_apart(self, client: Redis) -> None:
        """Handle entries apart once its turn in the quarantine has come, for APART_S at a time."""
        if self._suspects:
            place = self._suspects.place or self._suspects.join_quarantine()
            if not place.done():
                return
            await self._handle_suspects(client)
            self._suspects.leave_quarantine()
        if self._suspects:
            self._suspects.join_quarantine()  # after others who wait
        elif self._waited:
            waited, self._waited = self._waited, []
            # They may have been let go.
            self._claims.add((up.id for up in waited), asyncio.get_running_loop().time())
            self._slow.resume(waited)

    async def _handle_suspects(self, client: Redis) -> None:
        """Handle entries a few or one at a time, for APART_S: each may be what kills its workers."""
        clock = asyncio.get_running_loop().time
        end = clock() + APART_S
        while self._suspects and clock() < end:
            entries: list[Raw] = []
            few, taken = await self._suspects.take_up_next(client)
            for up in taken:
                if up.entry is not None and (why := too_often(up.deliveries)):
                    await self._handler.dead_letter(client, up.entry, why)
                elif up.entry is not None:
                    entries.append(up.entry)
            await self._handle(client, entries, taken=True)
            self._claims.done(entry for entry in few if entry not in self._slow)

    async def _take_up_own(self, client: Redis) -> None:
        """After a lost connection: take up again all that is pending with us, since replies may be lost. Suspects have
        their turns in the quarantine, as ever."""
        self._handler.forget()
        if self.group.outputs_are_facts:  # whoever had an entry may have called the bank, or told people
            self._handler.opener.doubt(await scripts.delivered_before(client, self.names))
        self._suspects.forget()
        self._waited.clear()
        self._claims.clear()
        after, suspects = "-", list[bytes]()
        while ids := await self._upkeep.pending_ids(client, after):
            after = "(" + ids[-1].decode()
            asked_s = asyncio.get_running_loop().time()
            together, *alone = await self._upkeep.take_up_again(client, ids)
            self._claims.add((entry for part in (together, *alone) for entry, _ in part), asked_s)
            suspects += [entry for entry, _ in together if entry in self._suspects]
            suspects += [entry for part in alone for entry, _ in part]
            await self._handle(client, [one for one in together if one[0] not in self._suspects], taken=True)
            await self._handler.acknowledge(client)
        self._suspects.add_again(suspects)
