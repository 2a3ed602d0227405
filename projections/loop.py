"""The projector: one partition's log into the archive, each entry exactly once, and the archive into the views.

    log -> read after the head -> [ move it, COPY ] -> archive -> [ fold, move view_heads, write ] -> views

What is in brackets is one transaction each. A crash anywhere leaves it done or not done, and the next start reads
the positions; nothing is acknowledged to Redis. The archive keeps bytes and does not need to understand them, so a
view that cannot fold an entry stops with an alarm while the archive, and with it the payments, go on. So does the
notary, which signs what is archived (notary.py).

The log is sound only while it has the entry at the archive's head, the *anchor*, with the archived bytes. A log that
lost its tail has not, nor one that was trimmed too far; so trimming keeps the anchor: MINID is at most its id. A log
that contradicts the archive stops the projector by LogBroken.
"""

import asyncio
import logging
from collections.abc import Callable, Sequence
from contextlib import aclosing
from datetime import UTC, datetime
from typing import Protocol, TypeAlias

import asyncpg
from msgspec import Struct

from projections.janitor import Janitor, keep_trimmed
from projections.keep import Feed, keep_views
from projections.notary import CheckpointTerms, keep_checkpoints
from projections.outage import Outage, heed_cancellation
from streamproc.archive.anchor import Log, lost_from
from streamproc.archive.attest import Lately
from streamproc.archive.load import archive, drop_redelivered, make_ranges
from streamproc.archive.shared import Shared
from streamproc.archive.store import AWAY, Entry, Head, connection, end_if_frozen, open_head, take_lock
from streamproc.domain.entry_ids import id_before, id_key
from streamproc.errors import WHEN_LOST, ConfigError, LogBroken, LogUnavailable, first_of_ours
from streamproc.waiting import set_within

BATCH_MAX = 2_000
"""Entries in one transaction: enough that its round trips cost little, few enough to stop within a second."""
BLOCK_MS = 1_000
"""How long a read waits for an entry, and so how soon a stop, or an idle log that lost entries, is noticed."""
GATHER_S = 0.01
"""Least interval between transactions while entries keep coming; what comes meanwhile shares one and its sync. The
barrier polls as often. The first entry after a pause is archived at once."""
MUCH = 64
"""Entries in one go that count as a flood. Then a transaction costs more than what it holds: some 1.3 ms of CPU here
and in Postgres, as much as 60 entries."""
GATHER_MUCH_S = 0.04
"""GATHER_S in a flood. Money waits at the barrier 30 ms longer then; a call to the bank takes hundreds."""
FAR_MS = 253_370_764_800_000
"""The beginning of the year 9999 (UTC), in ms: no entry may be later, since the archive has a range for each month and
calendars end there. Redis's clock never gives such an id, a hand may."""
DRAIN_S = 5.0
"""How long a stop waits for the views' batch in hand and a last checkpoint; what is left is done at the next start."""

REFUSED = (
    asyncpg.InsufficientPrivilegeError,
    asyncpg.InvalidAuthorizationSpecificationError,  # a wrong password is one of them
    asyncpg.InvalidCatalogNameError,
)
"""Errors that a person has to mend by a grant or a setting."""
VIEW_CONNECTIONS_MAX = 4
"""Connections on which a projector folds, its partitions' views in turn: one process folds no faster with more."""

log = logging.getLogger(__name__)


class SharedConnections:
    """The connections of what runs beside the archive, shared by a projector's partitions."""

    def __init__(self, dsn: str, partitions: int) -> None:
        count = min(partitions, VIEW_CONNECTIONS_MAX)
        self._views = [Shared(dsn, name=f"streamproc views {number}") for number in range(count)]
        self.notary = Shared(dsn, name="streamproc checkpoints")

    def views(self, partition: int) -> Shared:
        """The one on which the partition's views are folded."""
        return self._views[partition % len(self._views)]


def connections_needed(partitions: int) -> int:
    """Connections of one projector at most: to archive each partition, which must not wait for another one, to fold,
    to sign, and one for what is seldom asked. One that stands by has the first only."""
    return partitions + min(partitions, VIEW_CONNECTIONS_MAX) + 2


class LogView(Log, Protocol):
    """One partition's log, read without a group."""

    async def aclose(self) -> None:
        """Close what reading opened."""
        ...


class Progress(Struct, frozen=True):
    """A partition's archive position. `lag_ms`: how far it is behind the log's end, by the entries' times."""

    partition: int
    seq: int
    entry: str
    entries: int
    lag_ms: int


OnBatch: TypeAlias = Callable[[Progress], None]


class Duties(Struct, frozen=True, kw_only=True):
    """What a projector does besides archiving and folding. With `terms` the archive is signed by checkpoints; a
    `janitor` trims the log behind it; `on_batch` hears of each transaction, of at most `batch_max` entries."""

    on_batch: OnBatch | None = None
    batch_max: int = BATCH_MAX
    terms: CheckpointTerms | None = None
    janitor: Janitor | None = None


NO_MORE = Duties()


async def run_projector(
    dsn: str,
    partitions: int,
    make_log_view: Callable[[int], LogView],
    stopping: asyncio.Event,
    duties: Duties = NO_MORE,
) -> None:
    """Project all partitions until `stopping` is set. If one breaks, all stop, and its error is raised."""
    shared = SharedConnections(dsn, partitions)
    try:
        async with asyncio.TaskGroup() as tasks:
            for partition in range(partitions):
                view = make_log_view(partition)
                running = project(partition, view, dsn, duties, stopping=stopping, shared=shared)
                tasks.create_task(running, name=f"project-{partition}")
    except BaseExceptionGroup as problems:
        named = first_of_ours(problems)
        if named is None:
            raise
        raise named from problems


async def project(
    partition: int,
    view: LogView,
    dsn: str,
    duties: Duties = NO_MORE,
    *,
    stopping: asyncio.Event,
    shared: SharedConnections | None = None,
) -> None:
    """Project one partition until `stopping` is set; closes `view`. `shared` None: nothing is shared.

    While Postgres or the log is away it tries again, with backoff. Raises LogBroken if the log contradicts the archive
    or itself, ConfigError if the schema is not there, or Postgres refuses us.
    """
    outage = Outage(f"projector of partition {partition}")
    shared = shared or SharedConnections(dsn, 1)
    async with aclosing(view):
        while not stopping.is_set():
            heed_cancellation()
            try:
                async with connection(dsn, name=f"streamproc projector {partition}") as db:
                    session = _Session(partition, view, db, shared, duties)
                    await session.run(dsn, stopping, outage)
            except (*AWAY, LogUnavailable) as problem:
                await outage.wait(problem, stopping)
            except asyncpg.IntegrityConstraintViolationError as problem:
                raise LogBroken(
                    f"Postgres refuses what partition {partition}'s log says: {problem}"
                ) from problem
            except asyncpg.UndefinedTableError as problem:
                raise ConfigError(
                    f"the database has no schema ({problem}); run `streamproc migrate`"
                ) from problem
            except REFUSED as problem:
                raise ConfigError(
                    f"Postgres refuses the projector: {problem}; `streamproc doctor` checks the database"
                ) from problem


class _Session:
    """Projecting over one connection: from taking the lock to losing the connection."""

    def __init__(
        self,
        partition: int,
        view: LogView,
        db: asyncpg.Connection,
        shared: SharedConnections,
        duties: Duties,
    ) -> None:
        self._partition = partition
        self._view = view
        self._db = db
        self._shared = shared
        self._duties = duties
        self._head = Head()
        self._anchor: Entry | None = None
        self._feed = Feed()
        self._lately = Lately()
        self._ranges: set[int] = set()

    async def run(self, dsn: str, stopping: asyncio.Event, outage: Outage) -> None:
        """Take the lock, check the anchor, then archive and keep the views until stopped."""
        await end_if_frozen(self._db)
        if not await take_lock(self._db, self._partition, stopping):
            return
        self._head = await open_head(self._db, self._partition)
        await self._check_anchor()
        followers, ended = self._start_followers(dsn, stopping)
        clock = asyncio.get_running_loop().time
        try:
            while not stopping.is_set():
                for task in followers:
                    if task.done():
                        task.result()  # raises: only a defect can end it before `ended`
                entries = await self._read()
                begun_s = clock()
                if entries:
                    await self._take(entries)
                outage.over()
                gather_s = GATHER_S if len(entries) < MUCH else GATHER_MUCH_S
                if 0 < len(entries) < self._duties.batch_max and (rest_s := begun_s + gather_s - clock()) > 0:
                    await set_within(stopping, rest_s)
            ended.set()
            await asyncio.wait(followers, timeout=DRAIN_S)
        finally:
            for task in followers:
                task.cancel()
            await asyncio.gather(*followers, return_exceptions=True)

    def _start_followers(
        self, dsn: str, stopping: asyncio.Event
    ) -> tuple[list["asyncio.Task[None]"], asyncio.Event]:
        """Tasks beside the archive that must never delay it, and the event that tells them that it has ended."""
        partition, ended = self._partition, asyncio.Event()
        views = keep_views(partition, dsn, self._shared.views(partition), self._feed, stopping)
        followers = [asyncio.create_task(views)]
        if (terms := self._duties.terms) is not None:
            signing = keep_checkpoints(partition, self._shared.notary, terms, ended, self._lately)
            followers.append(asyncio.create_task(signing))
        if (janitor := self._duties.janitor) is not None:
            trimming = keep_trimmed(partition, janitor, lambda: self._head.entry, stopping)
            followers.append(asyncio.create_task(trimming))
        return followers, ended

    async def _read(self) -> Sequence[Entry]:
        """What follows the archive's end in the log; empty if nothing came within BLOCK_MS.

        Raises LogBroken unless that end is in the log, which is checked even if entries follow it: a connection can
        outlive a failover in which its server begins to follow another one, and then the log has changed under our
        reading.
        """
        last = self._anchor
        if last is not None:
            # While entries keep coming, one read without waiting gives both the anchor and what follows it.
            found = await self._view.read(id_before(last.id), self._duties.batch_max + 1, 0)
            if len(found) > 1 and _is_same(found[0], last):
                return found[1:]
        entries = await self._view.read(self._head.entry, self._duties.batch_max, BLOCK_MS)
        if not entries or not await self._has_anchor():
            await self._check_anchor()
        return entries

    async def _take(self, entries: Sequence[Entry]) -> None:
        entries = await drop_redelivered(self._db, self._partition, self._head, entries)
        if not entries:
            return
        if id_key(entries[-1].id)[0] >= FAR_MS:
            far = next(entry.id for entry in entries if id_key(entry.id)[0] >= FAR_MS)
            raise LogBroken(
                f"entry {self._partition}:{far} is later than the year 9998, the last that the archive has room for;"
                " nobody of ours wrote it, and it is not archived"
            )
        missing = [at_ms for at_ms in months_of(entries) if at_ms not in self._ranges]
        await make_ranges(self._db, missing)
        self._ranges.update(missing)
        rows, self._head = await archive(self._db, self._partition, self._head, entries)
        self._anchor = entries[-1]
        self._feed.put(rows)
        if self._duties.terms is not None:
            self._lately.put(rows)
        if (on_batch := self._duties.on_batch) is not None:
            lag_ms = await self._lag_ms() if len(entries) >= self._duties.batch_max else 0
            head = self._head
            on_batch(Progress(self._partition, head.seq, head.entry, len(entries), lag_ms))

    async def _lag_ms(self) -> int:
        return max(0, id_key(await self._view.last_id())[0] - id_key(self._head.entry)[0])

    async def _has_anchor(self) -> bool:
        """Whether the log still has the last archived entry: one short read, on the connection that reads the log."""
        last = self._anchor
        if last is None:
            return False
        found = await self._view.read(id_before(last.id), 1, 0)
        return bool(found) and _is_same(found[0], last)

    async def _check_anchor(self) -> None:
        """Raise LogBroken unless the last archived entry is in the log with the archived bytes."""
        if self._head.seq == 0:
            await self._db.execute("SELECT 1")  # whoever asks nothing is taken for frozen
            return
        problem = await lost_from(self._db, self._view, self._partition, self._head)
        if problem:
            raise LogBroken(f"{problem}; {WHEN_LOST}")


def _is_same(entry: Entry, other: Entry) -> bool:
    return (entry.id, entry.e, entry.m) == (other.id, other.e, other.m)


def months_of(entries: Sequence[Entry]) -> list[int]:
    """The first ms of each month (UTC) that ascending entries are in, and of the month after them."""
    starts: list[int] = []
    end_ms = 0
    # Nearly always all entries are in the first one's month, and then only the last one is looked at.
    while entries:
        start_ms, end_ms = _month(id_key(entries[0].id)[0])
        starts.append(start_ms)
        if id_key(entries[-1].id)[0] < end_ms:
            break
        entries = [entry for entry in entries if id_key(entry.id)[0] >= end_ms]
    return [*starts, end_ms] if starts else []


def _month(at_ms: int) -> tuple[int, int]:
    """The month that holds a time: its first ms, and that of the next."""
    first = datetime.fromtimestamp(at_ms // 1000, UTC).replace(
        day=1, hour=0, minute=0, second=0, microsecond=0
    )
    following = first.replace(year=first.year + first.month // 12, month=first.month % 12 + 1)
    return int(first.timestamp()) * 1000, int(following.timestamp()) * 1000
