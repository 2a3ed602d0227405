"""The archive's one writer per partition: its connection, its lock, its head; and what its errors mean.

The lock is an advisory lock of the session that also writes. So a projector that lost its lock has lost its connection
and cannot write: no fencing token is needed. Other projectors stand by, also for one that is frozen: a session that
asks nothing any more is ended by Postgres, and one that froze in the midst of a COPY by a projector that stands by.
"""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any, Protocol

import asyncpg
from msgspec import Struct

from streamproc.archive.chain import GENESIS
from streamproc.archive.hosts import connect
from streamproc.archive.sql import statements
from streamproc.domain.entry_ids import ZERO
from streamproc.errors import JobFailed, LogBroken, TryAgain, named
from streamproc.waiting import set_within

CONNECT_TIMEOUT_S = 5.0
"""For all hosts of the DSN together."""
COMMAND_TIMEOUT_S = 30.0
"""The client's limit for one statement, above the server's, so that the server's own error arrives."""
STATEMENT_TIMEOUT_MS = 20_000
"""A batch takes milliseconds; a disk that stalls for longer counts as Postgres being away."""
JOB_TIMEOUT_S = 3_600.0
"""Limit for one statement of a job that an operator waits for: an index or a checksum over a hundred million rows."""
LOCK_TIMEOUT_MS = 10_000
FROZEN_MS = 30_000
"""A session that holds the lock and is idle for so long belongs to a process that was stopped, or hangs, on a machine
that still answers for it. One that works asks something each second."""
STANDBY_S = 1.0
"""Interval at which a standby asks whether the partition is free."""
HOLDER_LOOK_S = 10.0
"""Interval at which a standby looks whether the lock's holder froze in the midst of a COPY."""
PROJECTOR_LOCK = 0x53505F50
"""First half of the advisory lock's key ('SP_P'); the second is the partition."""
CHECKPOINT_LOCK = 0x53505F43
"""The same for the one maker of the partition's signed checkpoints ('SP_C')."""

assert COMMAND_TIMEOUT_S * 1000 > STATEMENT_TIMEOUT_MS > LOCK_TIMEOUT_MS

AWAY = (
    OSError,  # TimeoutError is one of them
    asyncpg.InterfaceError,
    asyncpg.InternalClientError,  # a statement sent just after the server said goodbye to an idle connection
    asyncpg.PostgresConnectionError,
    asyncpg.InsufficientResourcesError,
    asyncpg.PostgresSystemError,  # its disk fails, or a file of its own is gone
    asyncpg.InternalServerError,  # its data or an index is damaged, until a person mends that
    asyncpg.OperatorInterventionError,  # shut down, starting up, statement cancelled by its timeout
    asyncpg.TransactionRollbackError,
    asyncpg.LockNotAvailableError,
    asyncpg.ReadOnlySQLTransactionError,  # an old primary after a failover
    asyncpg.IdleInTransactionSessionTimeoutError,
)
"""Errors of a Postgres that is away, or cannot answer right now. Any other is a defect or a wrong setting."""

_SQL = statements("streamproc.archive", "store.sql")


class OtherColumns(JobFailed):
    """A table has not the columns that were asked for: mostly a view that another version of us made."""


@contextmanager
def refusals_as_job_failed() -> Iterator[None]:
    """Raise a refusal by Postgres (no schema yet, wrong password) as JobFailed, with its own words and advice."""
    try:
        yield
    except asyncpg.UndefinedColumnError as problem:
        raise OtherColumns(f"Postgres refuses: {problem}; `streamproc doctor` checks its tables") from problem
    except asyncpg.PostgresError as problem:
        advice = "`streamproc doctor` checks the database, `streamproc migrate` makes its tables"
        raise JobFailed(f"Postgres refuses: {problem}; {advice}") from problem


@contextmanager
def errors_as_job_failed(consequence: str = "") -> Iterator[None]:
    """Raise any error of Postgres, and LogBroken, as JobFailed: its own words, then what that means for the job."""
    after = f"; {consequence}" if consequence else ""
    try:
        yield
    except LogBroken as problem:
        raise JobFailed(f"{problem}{after}") from problem
    except (*AWAY, asyncpg.PostgresError) as problem:
        raise JobFailed(f"Postgres: {named(problem)}{after}") from problem


class Statements(Protocol):
    """What runs single statements: a connection of our own, or one that is shared, exclusively for each."""

    async def fetch(self, query: str, *values: object) -> Any: ...
    async def fetchrow(self, query: str, *values: object) -> Any: ...
    async def fetchval(self, query: str, *values: object) -> Any: ...
    async def execute(self, query: str, *values: object) -> Any: ...


class Entry(Protocol):
    """A log entry as it is stored: id `<ms>-<n>`, events and metadata as bytes."""

    @property
    def id(self) -> str: ...
    @property
    def e(self) -> bytes: ...
    @property
    def m(self) -> bytes: ...


class Head(Struct, frozen=True):
    """The archive's end: the last archived entry of a partition, with its link in the chain."""

    seq: int = 0
    entry: str = ZERO
    hash: bytes = GENESIS


@asynccontextmanager
async def connection(dsn: str, *, name: str, job: bool = False) -> AsyncIterator[asyncpg.Connection]:
    """A connection of our own with a limit on every wait. `name` shows in pg_stat_activity.

    `job`: its statements may scan whole tables, and its transactions idle for as long. Commits wait for the disk, even
    where the database or the role spares them that: money moves by what is committed.
    """
    command_s = JOB_TIMEOUT_S if job else COMMAND_TIMEOUT_S
    statement_ms = int(JOB_TIMEOUT_S * 1000) if job else STATEMENT_TIMEOUT_MS
    db = await connect(
        dsn,
        timeout=CONNECT_TIMEOUT_S,
        command_timeout=command_s,
        server_settings={
            "application_name": name,
            "statement_timeout": str(statement_ms),
            "lock_timeout": str(LOCK_TIMEOUT_MS),
            "idle_in_transaction_session_timeout": str(statement_ms),
            # A writer whose host is gone must not keep its lock for as long as TCP's default, hours.
            "tcp_keepalives_idle": "10",
            "tcp_keepalives_interval": "5",
            "tcp_keepalives_count": "3",
        },
    )
    try:
        await db.execute(_SQL["wait_for_disk"])
        yield db
    except asyncio.CancelledError:
        db.terminate()  # whoever is cancelled has no time to say goodbye to a peer that may hang
        raise
    finally:
        # A clean close can wait for a peer that is gone; the lock is released either way.
        try:
            await db.close(timeout=CONNECT_TIMEOUT_S)
        except AWAY:
            db.terminate()


@asynccontextmanager
async def snapshot(dsn: str, *, name: str) -> AsyncIterator[asyncpg.Connection]:
    """A job's read-only connection that sees one moment of the database, whatever is written meanwhile."""
    async with (
        connection(dsn, name=name, job=True) as db,
        transaction(db, isolation="repeatable_read", readonly=True),
    ):
        yield db


@asynccontextmanager
async def transaction(db: asyncpg.Connection, **kind: Any) -> AsyncIterator[None]:
    """A transaction of a job with a connection of its own, which ends with it where the job is cancelled: a rollback
    would have Ctrl-C wait for a Postgres that hangs."""
    begun = db.transaction(**kind)
    await begun.start()
    try:
        yield
    except asyncio.CancelledError:
        db.terminate()
        raise
    except BaseException:
        if not db.is_closed():
            await begun.rollback()
        raise
    await begun.commit()


async def take_lock(
    db: Statements, partition: int, stopping: asyncio.Event, *, lock: int = PROJECTOR_LOCK
) -> bool:
    """Become the partition's one writer; stands by while another one is. False if stopped before."""
    clock = asyncio.get_running_loop().time
    look_at_s = clock() + HOLDER_LOOK_S
    while not await db.fetchval(_SQL["take_lock"], lock, partition):
        if stopping.is_set():
            return False
        if clock() >= look_at_s:
            await db.execute(_SQL["end_stuck_copy"], lock, partition, FROZEN_MS)
            look_at_s = clock() + HOLDER_LOOK_S
        await set_within(stopping, STANDBY_S)
    return True


async def end_if_frozen(db: Statements) -> None:
    """From here on the server ends this session, and its lock, if it is idle for FROZEN_MS."""
    await db.execute(_SQL["end_if_idle"], str(FROZEN_MS))


async def give_lock_back(db: Statements, partition: int, *, lock: int) -> None:
    """Let another process be the one writer, where the connection goes on."""
    await db.execute(_SQL["give_lock_back"], lock, partition)


async def read_head(db: Statements, partition: int) -> Head:
    """The partition's head; an empty one if it was never archived."""
    row = await db.fetchrow(_SQL["read_head"], partition)
    return Head(row["seq"], row["entry_id"], row["hash"]) if row else Head()


async def archived_heads(dsn: str) -> dict[int, Head]:
    """The heads of all partitions with archived entries; none if there is no schema yet.

    Raises TryAgain while Postgres is away or refuses, or shows us no schema, since then it is not known.
    """
    try:
        async with connection(dsn, name="streamproc open") as db:
            try:
                rows = await db.fetch(_SQL["archived_heads"])
            except asyncpg.UndefinedTableError:
                if await db.fetchval("SELECT current_schema()") is None:
                    raise TryAgain(
                        "the user of STREAMPROC_POSTGRES_DSN may not use the schema of our tables"
                    ) from None
                return {}
    except (*AWAY, asyncpg.PostgresError) as problem:
        raise TryAgain(
            f"Postgres must say whether there was a log before, and is away: {type(problem).__name__}"
        ) from problem
    return {row["partition"]: Head(row["seq"], row["entry_id"], row["hash"]) for row in rows}


async def partitions_opened(dsn: str) -> int:
    """How many partitions the archived log has, empty ones included: a projector opens all of them at once."""
    async with connection(dsn, name="streamproc open") as db:
        return int(await db.fetchval(_SQL["partitions_opened"]))


async def open_head(db: asyncpg.Connection, partition: int) -> Head:
    """`read_head`, after inserting the row that `move_head` updates."""
    await db.execute(_SQL["open_head"], partition)
    return await read_head(db, partition)


async def move_head(db: asyncpg.Connection, partition: int, old: Head, new: Head) -> None:
    """Compare and set the head; its row stays locked until the transaction ends.

    Raises LogBroken if it is not `old`: somebody wrote without the lock.
    """
    moved = await db.fetchval(
        _SQL["move_head"], partition, old.seq, old.entry, old.hash, new.seq, new.entry, new.hash
    )
    if moved is None:
        raise LogBroken(
            f"the head of partition {partition} is no longer seq {old.seq}, entry {old.entry}:"
            " something else writes to the archive"
        )
