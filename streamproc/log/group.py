"""The one consume loop: read, decode, load, run the chain, commit. Claims, retries, dead letters, drain.

Why nothing is lost or done twice: an entry stays pending in its consumer group until a commit acknowledges it,
and Redis acknowledges it to one caller only, in the same step that appends the outputs. So a worker may die at
any await, be frozen and come back, or send a commit twice; whoever commits first wins and the others write
nothing. What is not committed is found again: by this consumer after a reconnect, by any other after CLAIM_IDLE.

An entry that fails on its own is put off with backoff and becomes a dead letter after ATTEMPTS_MAX; a dependency
that is away (TryAgain) uses up no attempt. An error that nobody named counts as a failed attempt of one entry
only: the batch is run again entry by entry, so that its neighbours still commit.
"""

import asyncio
import logging
import random
from collections.abc import Sequence
from typing import Any

from msgspec import Struct
from redis.asyncio import Redis

from streamproc.domain.events import EntrySetAside
from streamproc.domain.payouts import decode_record, encode_record, is_terminal
from streamproc.domain.wire import decode_events, encode_events, payout_of, tag_of
from streamproc.errors import LogUnavailable, StreamprocError, TryAgain, Unprocessable
from streamproc.log import scripts
from streamproc.log.cache import Cache
from streamproc.log.connection import BLOCK_MS_MAX, connected, named_errors
from streamproc.log.names import Names
from streamproc.log.policies import Policies
from streamproc.log.scripts import Committed, Handover, Raw
from streamproc.log.work import Desk, Group, Work, distinct_payouts, run_chain

log = logging.getLogger(__name__)

READ_MAX = 256
"""Entries in one batch: past that a batch takes longer and is not cheaper (measured, docs/performance.md)."""
UPKEEP_S = 0.2
"""Timers and retries are looked at this often."""
CLAIM_BATCH = 64
"""Entries taken over at once."""
ATTEMPTS_MAX = 5
"""Attempts at an entry that fails on its own; then it is a dead letter."""
DELIVERIES_MAX = 10
"""Takeovers of an entry whose workers die with it; then it is a dead letter unseen."""
BACKOFF_BASE_S, BACKOFF_CAP_S = 0.5, 60.0
BATCH_TIMEOUT_S = 25.0
"""The whole chain over one batch. Every outside call has a shorter limit of its own."""
STALE_MAX = 20
"""Times in a row that a payout moved on under our hands before the entry is put off."""
RECONNECT_BASE_S, RECONNECT_CAP_S = 0.1, 5.0


class Limits(Struct, frozen=True):
    """What an operator may set. `claim_idle_s`: an entry pending this long is taken over."""

    claim_idle_s: float = 60.0
    retention_s: float = 30 * 86_400.0


def backoff_s(attempt: int) -> float:
    """Full jitter below an exponential bound."""
    bound: float = min(BACKOFF_CAP_S, BACKOFF_BASE_S * 2.0 ** max(0, attempt))
    return random.uniform(bound / 2, bound)  # spreading load, not a secret


class Consumer:
    """One consumer of one group on one partition."""

    def __init__(self, url: str, partition: int, group: Group, *, name: str, limits: Limits) -> None:
        self.url, self.group, self.name, self.limits = url, group, name, limits
        self.names = Names(partition)
        self.partition = partition
        self.policies = Policies(self.names)
        self._mine = b'{"by":"' + group.name.encode() + b'"'
        self._tags = tuple(b'"type":"' + tag_of(event_type).encode() + b'"' for event_type in group.consumes)
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
                async with connected(self.url, blocking=True) as reader, connected(self.url) as client:
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
        reading = asyncio.create_task(self._read(reader))
        try:
            while not stopping.is_set():
                await asyncio.wait({reading, stopped}, timeout=UPKEEP_S, return_when=asyncio.FIRST_COMPLETED)
                if reading.done():
                    # The next batch is fetched while this one is handled.
                    entries, reading = reading.result(), asyncio.create_task(self._read(reader))
                    await self._handle(client, entries, taken=False)
                await self._upkeep(client)
            # What a read under way brings is ours already: end its waiting, then finish it.
            with named_errors():
                await client.client_unblock(reader_id)
            await self._handle(client, await reading, taken=False)
        finally:
            for task in (reading, stopped):
                task.cancel()
            await asyncio.gather(reading, stopped, return_exceptions=True)

    async def _read(self, reader: Redis, start: str = ">", block_ms: int = BLOCK_MS_MAX) -> list[Raw]:
        with named_errors():
            reply = await reader.execute_command(
                "XREADGROUP",
                "GROUP",
                self.group.name,
                self.name,
                "COUNT",
                READ_MAX,
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
            await self._handle(client, await self._not_deferred(client, entries), taken=True)

    async def _upkeep(self, client: Redis) -> None:
        now = asyncio.get_running_loop().time()
        if now < self._upkeep_due:
            return
        self._upkeep_due = now + UPKEEP_S
        await scripts.fire_due(client, self.names)
        retries = await scripts.due_retries(
            client, self.names, self.group.name, self.name, lease_s=self.limits.claim_idle_s, limit=READ_MAX
        )
        if retries:
            await self._handle(client, retries, taken=True)
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
            entries = await self._not_deferred(client, entries)
            if entries:
                log.info("%s/%d: took over %d entries", self.group.name, self.partition, len(entries))
                await self._handle_claimed(client, entries)
            if cursor == b"0-0":
                return

    async def _handle_claimed(self, client: Redis, entries: list[Raw]) -> None:
        """One at a time: an entry that kills its worker must not take its neighbours along for ever."""
        for entry in entries:
            with named_errors():
                pending = await client.execute_command(
                    "XPENDING", self.names.log, self.group.name, entry[0], entry[0], 1
                )
            deliveries = int(_delivery_count(pending))
            if deliveries > DELIVERIES_MAX:
                why = f"taken up {deliveries} times without an end, the limit is {DELIVERIES_MAX}"
                await self._set_aside(client, [(self._opened(entry, taken=True), why)])
            else:
                await self._handle(client, [entry], taken=True)

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

    # ---- a batch ------------------------------------------------------------------------

    async def _handle(self, client: Redis, entries: Sequence[Raw], *, taken: bool) -> None:
        """Handle entries to the end: committed, put off, or set aside."""
        skipped, works, unreadable = [], [], []
        for entry in entries:
            if not self._concerns_us(entry):
                skipped.append(entry[0])
                continue
            try:
                works.append(self._opened(entry, taken=taken))
            except Unprocessable as problem:
                unreadable.append((Work(entry[0], [], "", taken), str(problem)))
        if skipped:
            with named_errors():
                await client.execute_command("XACK", self.names.log, self.group.name, *skipped)
        if unreadable:
            await self._set_aside(client, unreadable)
        while works:
            batch, works = distinct_payouts(works)
            works = [*await self._round(client, batch), *works]

    def _concerns_us(self, entry: Raw) -> bool:
        """Without decoding: not our own output, not for another group, and of a type that we consume."""
        fields = entry[1]
        e, m = fields[1], fields[3]
        if m.startswith(self._mine):
            return False
        only = b'"only":"'
        if only in m and only + self.group.name.encode() + b'"' not in m:
            return False
        return any(tag in e for tag in self._tags)

    def _opened(self, entry: Raw, *, taken: bool) -> Work:
        events = decode_events(entry[1][1])
        payout = next((p for p in map(payout_of, events) if p), "")
        return Work(entry[0], events, payout, taken)

    async def _round(self, client: Redis, works: list[Work]) -> list[Work]:
        """One pass over distinct payouts. Returns those whose payout moved on meanwhile."""
        desk = await self._load(client, works)
        fresh = [w for w in works if not (self.group.outputs_are_facts and w.stale_times)]
        await self._run(client, fresh, desk)
        stale = await self._commit(client, [w for w in works if w.problem is None])
        await self._settle_problems(client, [w for w in works if w.problem is not None])
        return stale

    async def _load(self, client: Redis, works: list[Work]) -> Desk:
        payouts = [w.payout for w in works if w.payout]
        now_us, rev, loaded = await scripts.load(client, self.names, payouts)
        rows = iter(loaded)
        for work in works:
            keep = self.group.outputs_are_facts and work.stale_times > 0
            if work.payout:
                row = next(rows)
                record = decode_record(row.record) if row.record else None
                work.open(row.version, record, row.admission, keep=keep)
            else:
                work.open(b"-1", None, work.admission, keep=keep)
        book = await self.policies.refresh(client, rev)

        async def admit(asks: Sequence[Any]) -> list[Any]:
            return await scripts.admit(client, self.names, asks, keep_budgets_s=int(self.limits.retention_s))

        cache = Cache(client, self.names)
        return Desk(now_us=now_us, partition=self.partition, book=book, admit=admit, cache=cache)

    async def _run(self, client: Redis, works: list[Work], desk: Desk) -> None:
        """The chain; what nobody named is pinned on one entry."""
        try:
            async with asyncio.timeout(BATCH_TIMEOUT_S):
                await run_chain(self.group, works, desk)
        except LogUnavailable:
            raise
        except TimeoutError:
            for work in works:
                work.fail(TryAgain(f"the batch took longer than {BATCH_TIMEOUT_S} s", after_s=1.0))
        except TryAgain as problem:
            for work in works:
                work.fail(problem)
        except Exception as problem:  # noqa: BLE001  # pinned on one entry, counted, and bounded
            if len(works) == 1:
                works[0].fail(problem)
                return
            for work in works:
                alone = await self._load(client, [work])
                await self._run(client, [work], alone)

    # ---- leaving a batch behind ---------------------------------------------------------

    async def _commit(self, client: Redis, works: list[Work]) -> list[Work]:
        handovers = [self._handover(work) for work in works]
        statuses = await self._send(client, handovers)
        stale = [work for work, status in zip(works, statuses, strict=True) if status is Committed.STALE]
        for work in stale:
            work.stale_times += 1
        late = [work for work in stale if work.stale_times > STALE_MAX]
        if late:
            await self._put_off(client, [(work, 1.0, False) for work in late])
        return [work for work in stale if work.stale_times <= STALE_MAX]

    async def _send(self, client: Redis, handovers: list[Handover]) -> list[Committed]:
        """Commits are never cut off half way: a cancelled worker waits for the answer first."""
        statuses: list[Committed] = []
        for start in range(0, len(handovers), scripts.BATCH_MAX):
            chunk = handovers[start : start + scripts.BATCH_MAX]
            sending = asyncio.ensure_future(scripts.commit(client, self.names, self.group.name, chunk))
            try:
                statuses += await asyncio.shield(sending)
            except asyncio.CancelledError:
                await asyncio.gather(sending, return_exceptions=True)
                raise
        return statuses

    def _handover(self, work: Work) -> Handover:
        handover = Handover(entry=work.entry, taken=work.taken)
        changed = work.record is not None and work.record != work.loaded
        if changed or work.out:
            handover.payout = work.payout
            handover.version = work.version
        if work.record is not None and (changed or work.out):
            handover.record = encode_record(work.record)
            handover.keep_s = int(self.limits.retention_s) if is_terminal(work.record) else 0
        if work.out:
            handover.e = encode_events(work.out)
            handover.m = self._mine + b',"cause":"' + work.entry + b'"'
        if work.settle and work.admission.budget is not None:
            handover.settle, handover.windows = work.settle, work.admission.budget.windows
        handover.timers = [(timer.at, encode_events([timer])) for timer in work.timers]
        return handover

    async def _settle_problems(self, client: Redis, works: list[Work]) -> None:
        aside: list[tuple[Work, str]] = []
        off: list[tuple[Work, float, bool]] = []
        for work in works:
            match work.problem:
                case TryAgain(after_s=after_s):
                    off.append((work, after_s, False))
                case Unprocessable():
                    aside.append((work, str(work.problem)))
                case problem:
                    log.error(
                        "%s/%d: entry %s failed",
                        self.group.name,
                        self.partition,
                        work.entry.decode(),
                        exc_info=problem,
                    )
                    off.append((work, BACKOFF_BASE_S, True))
        if off:
            await self._put_off(client, off)
        if aside:
            await self._set_aside(client, aside)

    async def _put_off(self, client: Redis, works: Sequence[tuple[Work, float, bool]]) -> None:
        entries = [(work.entry, backoff_s(0) + after_s, counts) for work, after_s, counts in works]
        attempts = await scripts.defer(client, self.names, self.group.name, entries)
        spent, longer = [], []
        for (work, _, counts), n in zip(works, attempts, strict=True):
            if counts and n >= ATTEMPTS_MAX:
                work.taken = True
                spent.append(
                    (work, f"failed {n} times, the limit is {ATTEMPTS_MAX}; last: {_named(work.problem)}")
                )
            elif counts and n > 1:
                longer.append((work.entry, backoff_s(n), False))
        if longer:
            await scripts.defer(client, self.names, self.group.name, longer)
        if spent:
            await self._set_aside(client, spent)

    async def _set_aside(self, client: Redis, works: Sequence[tuple[Work, str]]) -> None:
        """Dead letters, with a reason, in the log too."""
        now_us, _, _ = await scripts.load(client, self.names, [])
        handovers = []
        for work, why in works:
            log.error(
                "%s/%d: entry %s set aside: %s", self.group.name, self.partition, work.entry.decode(), why
            )
            event = EntrySetAside(
                at=now_us,
                payout=work.payout,
                group=self.group.name,
                entry=work.entry.decode(),
                stage="",
                problem=why,
            )
            handovers.append(
                Handover(
                    entry=work.entry,
                    e=encode_events([event]),
                    m=self._mine + b',"cause":"' + work.entry + b'"',
                    taken=True,
                    problem=why,
                )
            )
        await self._send(client, handovers)


def _named(problem: Exception | None) -> str:
    if isinstance(problem, StreamprocError):
        return str(problem)
    return f"{type(problem).__name__}: {problem}"[:300]


def _delivery_count(pending: Any) -> int:
    """From XPENDING's rows, whichever shape the client gives them."""
    if not pending:
        return 0
    row = pending[0]
    return int(row["times_delivered"] if isinstance(row, dict) else row[3])


async def _sleep_unless(stopping: asyncio.Event, delay_s: float) -> None:
    try:
        async with asyncio.timeout(delay_s):
            await stopping.wait()
    except TimeoutError:
        return
