"""Builds views anew from the archive, in a schema of their own, in parallel and resumable.

The archive up to a target is split by partition and, within one, by payout: each builder folds the entries of its
payouts in order, in segments. A segment's rows and the builder's position are one transaction, so a build that was
killed goes on after its last segment. Builders can write to one table together because a view is keyed by payout,
append-only, or made of sums.
"""

import asyncio
import hashlib
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from operator import attrgetter
from typing import NamedTuple

import asyncpg
from msgspec import Struct

from projections.build import Builder
from projections.heads import Moved, Records, speak_micros, write_lazily
from projections.schema import enter_schema, indexes_of, make_key, make_schema, quote_ident
from projections.views import NAMES, VERSIONS, VIEWS, View
from streamproc.archive.disowned import disowned_in
from streamproc.archive.rows import Row, RowAbout
from streamproc.archive.sql import statements
from streamproc.archive.store import AWAY, connection, transaction
from streamproc.domain.entry_ids import ZERO
from streamproc.errors import JobFailed, LogBroken, named

SEGMENT_ROWS = 5_000
"""Rows in one transaction, some 2 kB each: a builder holds two segments, one in hand and one being fetched."""
CLIENT_CHECK_MS = 1_000
"""How soon Postgres stops a statement, such as making an index, for a job that was killed."""
DIGEST_CHARS = 16
"""Of the SHA-256 of the statements that make the tables: enough to distinguish versions, no protection against
attacks."""
LEAVE_S = 5.0
"""Limit for removing the schema of a job that was stopped: whoever stopped it waits, and Postgres may hang."""
_by_seq = attrgetter("seq")
REPLAY_LOCK = 0x53505F52
"""First half of the advisory lock's key ('SP_R'); the second is the schema that is rebuilt."""

_SQL = statements("projections", "rebuild.sql")


class Target(Struct, frozen=True):
    """The last entry that is built of a partition: its number in the archive and its id in the log."""

    partition: int
    seq: int
    entry: str


class Slice(Struct, frozen=True):
    """One builder's share of a partition: the payouts whose hash modulo `slices` is `slice`."""

    partition: int
    slice: int
    slices: int
    target_seq: int
    target_entry: str
    done_seq: int
    fingerprint: str


def fingerprint() -> str:
    """The versions of the views and how their tables are made: a half-built schema is only resumed by code with the
    same.

    A table that an earlier version made with its key cannot be given the key last, and its indexes may differ.
    """
    made = "\n".join(statement for view in VIEWS for statement in _making(view))
    digest = hashlib.sha256(made.encode()).hexdigest()[:DIGEST_CHARS]
    return " ".join([*(f"{name}={VERSIONS[name]}" for name in sorted(VERSIONS)), f"made={digest}"])


def _making(view: View) -> list[str]:
    return [*view.statements("table"), *view.statements("index_"), *view.statements("key")]


async def take_replay_lock(db: asyncpg.Connection, home: str) -> None:
    """Be the only replay of this schema until the connection closes. Raises JobFailed while another one runs."""
    if not await db.fetchval(_SQL["take_lock"], REPLAY_LOCK, home):
        raise JobFailed(f"another replay of {home} is running; wait for it, or stop it")


async def archive_ends(db: asyncpg.Connection) -> list[Target]:
    """Where each partition's archive ends."""
    return [Target(*row) for row in await db.fetch(_SQL["heads"])]


async def plan_build(
    db: asyncpg.Connection, schema: str, targets: Sequence[Target], jobs: int, views: Sequence[View] = VIEWS
) -> list[Slice]:
    """Make an empty schema for these views, with a plan of who builds what; `db` is in it afterwards.

    Raises JobFailed where the user of the database has no right to make one.
    """
    await _refuse_without_right(db)
    await drop_schema(db, schema)
    per_partition = max(1, -(-jobs // max(1, len(targets))))
    async with transaction(db):
        await make_schema(db, schema, views)
        await db.execute(_SQL["table"])
        for target in targets:
            await db.execute(
                _SQL["plan"], target.partition, per_partition, target.seq, target.entry, fingerprint()
            )
    return await slices_of(db)


async def _refuse_without_right(db: asyncpg.Connection) -> None:
    right = await db.fetchrow(_SQL["may_create"])
    if not right["may"]:
        raise JobFailed(
            f"the user {right['me']} of Postgres may not create a schema, and views are built in one of their own:"
            f" use the user that owns the tables; for --verify and --as-of, GRANT CREATE ON DATABASE"
            f" {right['database']} TO {right['me']} is enough"
        )


async def resumable(db: asyncpg.Connection, schema: str, ends: Sequence[Target]) -> list[Slice] | None:
    """Enter a half-built schema and extend its plan to where the archive ends now; the plan, or None if none fits
    this code."""
    if not await db.fetchval(_SQL["schemas"], schema):
        return None
    await enter_schema(db, schema)
    if not await db.fetchval("SELECT to_regclass('build')"):
        return None
    for target in ends:
        await db.execute(_SQL["extend"], target.partition, target.seq, target.entry)
    plan = await slices_of(db)
    return plan if plan and all(part.fingerprint == fingerprint() for part in plan) else None


async def slices_of(db: asyncpg.Connection) -> list[Slice]:
    """The shares that the rebuild in the current schema of `db` is divided into, with how far each one is."""
    return [Slice(*row) for row in await db.fetch(_SQL["slices"])]


async def drop_schema(db: asyncpg.Connection, schema: str) -> None:
    """Remove a schema with all that is in it."""
    await db.execute(f"DROP SCHEMA IF EXISTS {quote_ident(schema)} CASCADE")


async def leave_schema(db: asyncpg.Connection, dsn: str, schema: str) -> None:
    """Remove the schema of a job that ends, within LEAVE_S if it was stopped.

    Where the stop has cut `db` off amid a statement or a transaction, that is done on another connection. Raises
    JobFailed, naming the schema, where it stays.
    """
    task = asyncio.current_task()
    limit_s = LEAVE_S if task is not None and task.cancelling() else None
    try:
        async with asyncio.timeout(limit_s):
            if not db.is_closed() and not db.is_in_transaction():
                await drop_schema(db, schema)
                return
            db.terminate()
            async with connection(dsn, name="streamproc leaves") as other:
                # The server ends `db`, and its lock, in a moment.
                await other.execute(_SQL["wait_for_lock"], REPLAY_LOCK, schema)
                await drop_schema(other, schema)
    except (*AWAY, asyncpg.PostgresError) as problem:
        raise JobFailed(
            f"the schema {schema} could not be removed from Postgres ({named(problem)}); the next such command does it"
        ) from problem


async def heed_lost_client(db: asyncpg.Connection) -> None:
    """Have Postgres stop a long statement soon after its client was killed or gave it up."""
    with suppress(asyncpg.UndefinedObjectError, asyncpg.InvalidParameterValueError):  # not everywhere
        await db.execute(f"SET client_connection_check_interval = '{CLIENT_CHECK_MS}ms'")


class _Share:
    """How far one builder is, kept in its share's row of the plan (a `Position`)."""

    def __init__(self, share: Slice) -> None:
        self._share = share
        self.seq = share.done_seq

    async def move(self, db: asyncpg.Connection, rows: Sequence[Row], upto: int) -> None:
        """Move the share to `upto`. Raises Moved if it is not where we left it: another replay builds it too."""
        status = await db.execute(_SQL["move"], self._share.partition, self._share.slice, self.seq, upto)
        if status != "UPDATE 1":
            raise Moved(
                f"share {self._share.partition}/{self._share.slice} is being built by another replay too"
            )

    def moved(self, rows: Sequence[Row], upto: int) -> None:
        """Remember the new position."""
        self.seq = upto


async def build_slice(
    dsn: str,
    schema: str,
    share: Slice,
    on_segment: Callable[[int, int], None],
    *,
    segment_rows: int = SEGMENT_ROWS,
    views: Sequence[View] = VIEWS,
) -> None:
    """Build one share to its target; `on_segment` is called with the seq reached and the segment's number of events.

    Raises LogBroken, naming the entry, for what cannot be folded: nothing is skipped.
    """
    name = f"streamproc replay {share.partition}/{share.slice}"
    async with connection(dsn, name=name) as db, connection(dsn, name=name) as source:
        await enter_schema(db, schema)
        await write_lazily(db)
        await speak_micros(db)
        position = _Share(share)
        disowned = disowned_in(dsn, share.partition)
        builder = Builder(db, share.partition, position, Records(share.partition), views, disowned)
        fetching = asyncio.create_task(_segment(source, share, position.seq, segment_rows))
        try:
            while position.seq < share.target_seq:
                segment = await fetching
                if segment.upto < share.target_seq:
                    fetching = asyncio.create_task(_segment(source, share, segment.upto, segment_rows))
                on_segment(segment.upto, await builder.fold(segment.rows, segment.upto))
        finally:
            fetching.cancel()
            await asyncio.gather(fetching, return_exceptions=True)


class _Segment(NamedTuple):
    """A share's rows of a stretch of the archive that ends at `upto`."""

    rows: list[RowAbout]
    upto: int


async def _segment(source: asyncpg.Connection, share: Slice, after: int, count: int) -> _Segment:
    """The next stretch, sized to hold about `count` rows of the share. Raises LogBroken if rows are missing in it."""
    upto = min(share.target_seq, after + count * share.slices)
    if share.slice == 0:  # one share checks for all
        there = await source.fetchval(_SQL["count"], share.partition, after, upto)
        if there != upto - after:
            raise LogBroken(
                f"the archive of partition {share.partition} has {there} of the {upto - after} rows from {after + 1} to"
                f" {upto}; `streamproc audit verify` says more"
            )
    rows = await source.fetch(_SQL["rows"], share.partition, after, upto, share.slices, share.slice)
    found = [RowAbout(*row) for row in rows]
    found.sort(key=_by_seq)  # cheap: they are nearly sorted, as rows are stored in this order
    return _Segment(found, upto)


async def finish_build(db: asyncpg.Connection, dsn: str, schema: str, jobs: int) -> None:
    """Make indexes, statistics and positions of a schema whose shares are all at their targets; `db` is in it.

    `jobs` connections make indexes at once. Each index is kept, so a killed run goes on with those that are missing.
    """
    if not await db.fetchval("SELECT EXISTS (SELECT FROM view_heads)"):
        indexes = {name: made for view in VIEWS for name, made in indexes_of(view).items()}
        await _each(dsn, schema, jobs, list(indexes.items()))
        targets: Mapping[int, Slice] = {share.partition: share for share in await slices_of(db)}
        async with transaction(db):
            for view in VIEWS:
                await make_key(db, view)
            versions = [VERSIONS[name] for name in NAMES]
            for share in targets.values():
                await db.execute(
                    _SQL["set_heads"],
                    share.partition,
                    share.target_seq,
                    share.target_entry,
                    list(NAMES),
                    versions,
                )
    await _each(dsn, schema, jobs, [("", f"ANALYZE {quote_ident(name)}") for name in NAMES])


async def _each(dsn: str, schema: str, jobs: int, wanted: Sequence[tuple[str, str]]) -> None:
    """Execute statements in a schema, `jobs` at once. Each has the name of what it makes, or ''."""
    left = deque(wanted)

    async def work() -> None:
        async with connection(dsn, name="streamproc replay", job=True) as db:
            await enter_schema(db, schema)
            await db.execute("SET max_parallel_maintenance_workers = 0")  # the cores are ours already
            await heed_lost_client(db)
            while left:
                await _make(db, *left.popleft())

    working = [asyncio.create_task(work()) for _ in range(min(jobs, len(left)))]
    try:
        await asyncio.gather(*working)
    finally:
        for task in working:
            task.cancel()
        await asyncio.gather(*working, return_exceptions=True)


async def _make(db: asyncpg.Connection, name: str, statement: str) -> None:
    there = "SELECT to_regclass($1) IS NOT NULL"
    if name and await db.fetchval(there, quote_ident(name)):
        return
    try:
        await db.execute(statement)
    except (asyncpg.DuplicateTableError, asyncpg.UniqueViolationError):
        # A replay that was killed may just have made it. If it is not there, the rows themselves are not unique.
        if not name or not await db.fetchval(there, quote_ident(name)):
            raise


# ---- positions of the past --------------------------------------------------------------


async def target_at_time(db: asyncpg.Connection, partition: int, at_ms: int) -> Target:
    """The last entry that was in the log at a time (ms since 1970); the beginning if there was none."""
    row = await db.fetchrow(_SQL["at_time"], partition, at_ms)
    return Target(partition, row["seq"], row["entry_id"]) if row else Target(partition, 0, ZERO)


async def target_at_seq(db: asyncpg.Connection, partition: int, seq: int) -> Target | None:
    """The entry with that number; None if the archive has none."""
    row = await db.fetchrow(_SQL["at_seq"], partition, seq)
    return Target(partition, row["seq"], row["entry_id"]) if row else None


async def target_at_entry(db: asyncpg.Connection, partition: int, entry: tuple[int, int]) -> Target | None:
    """The entry with that id; None if the archive has none."""
    row = await db.fetchrow(_SQL["at_entry"], partition, *entry)
    return Target(partition, row["seq"], row["entry_id"]) if row else None
