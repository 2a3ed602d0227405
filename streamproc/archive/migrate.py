"""Brings the schema up to date by Alembic, from the scripts in this package, without alembic.ini or models.

All pending revisions run in one transaction that first takes an advisory lock, since Alembic has none of its own: the
second of two upgrades at once waits and then finds nothing to do.
"""

from collections.abc import Callable
from contextlib import suppress
from typing import TypeVar

import asyncpg
from alembic.config import Config
from alembic.runtime.environment import EnvironmentContext
from alembic.runtime.migration import MigrationContext, MigrationStep
from alembic.script import ScriptDirectory
from sqlalchemy import Connection
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine
from sqlalchemy.pool import NullPool

from streamproc.archive.blockers import holders
from streamproc.archive.hosts import connect
from streamproc.errors import JobFailed, named

T = TypeVar("T")

MIGRATE_LOCK = 0x53505F4D
"""The advisory lock's key ('SP_M'); nothing else of streamproc uses it."""
CONNECT_TIMEOUT_S = 10.0
LOCKED = "canceling statement due to lock timeout"
"""Postgres's words, which SQLAlchemy's error has too."""
NO_SCHEMA = "no schema has been selected"
"""The same, where no schema of the search_path is there for the user."""
SCHEMA_HIDDEN = "the user of STREAMPROC_POSTGRES_DSN may not use the schema of our tables"
SCHEMA_TODO = "GRANT USAGE, CREATE ON SCHEMA public TO that user, or correct its search_path"
LOCK_WAIT_S = 60
"""How long an upgrade waits for another one, or for a table that a reader holds."""
STATEMENT_TIMEOUT_S = 600
"""A migration may have to write an index over the whole archive."""


async def upgrade(dsn: str) -> list[str]:
    """Bring the schema to its newest revision; the revisions applied now, oldest first.

    A schema of a later version is left as it is: each revision leaves the version before it at work, so that a version
    can be taken back. Safe to repeat and to run twice at once. Raises JobFailed if Postgres cannot be reached or
    refuses, or if the revision is none of ours; the schema is then as it was.
    """
    return await _run(dsn, _upgrade)


async def current(dsn: str) -> str | None:
    """The revision of the database; None before the first upgrade. Raises JobFailed as `upgrade` does."""
    return await _run(dsn, _current)


def newest() -> str:
    """The newest revision that this version of streamproc knows."""
    return _scripts().get_current_head() or ""


def is_later(revision: str) -> bool:
    """Whether a revision is of a later version of streamproc than this one."""
    return revision.isdigit() and int(revision) > int(newest())


async def _run(dsn: str, work: Callable[[Connection], T]) -> T:
    engine = _engine(dsn)
    try:
        async with engine.begin() as connection:
            return await connection.run_sync(work)
    except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError, DBAPIError) as problem:
        cause = problem.orig if isinstance(problem, DBAPIError) else problem
        what = named(cause)
        if NO_SCHEMA in what:
            what = f"{SCHEMA_HIDDEN}; {SCHEMA_TODO}"
        if LOCKED in what:
            what += f" after {LOCK_WAIT_S} s; what holds locks: {await _holders(dsn)}"
        raise JobFailed(f"Postgres: {what}") from problem
    finally:
        await engine.dispose()


async def _holders(dsn: str) -> str:
    with suppress(OSError, asyncpg.PostgresError, asyncpg.InterfaceError):
        db = await connect(dsn, timeout=CONNECT_TIMEOUT_S, command_timeout=CONNECT_TIMEOUT_S)
        try:
            found = await holders(db, [await db.fetchval("SELECT current_schema()")])
            return found or "nothing any more"
        finally:
            await db.close(timeout=CONNECT_TIMEOUT_S)
    return "unknown, since Postgres does not say"


def _engine(dsn: str) -> AsyncEngine:
    async def opened() -> asyncpg.Connection:
        return await connect(dsn, timeout=CONNECT_TIMEOUT_S, command_timeout=STATEMENT_TIMEOUT_S)

    # asyncpg reads the DSN itself: SQLAlchemy would hand `sslmode` and the like to it as unknown arguments.
    return create_async_engine("postgresql+asyncpg://", async_creator=opened, poolclass=NullPool)


def _scripts() -> ScriptDirectory:
    config = Config()
    config.set_main_option("script_location", "streamproc.archive:migrations")
    return ScriptDirectory.from_config(config)


def _upgrade(connection: Connection) -> list[str]:
    connection.exec_driver_sql(f"SET LOCAL lock_timeout = '{LOCK_WAIT_S}s'")
    connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({MIGRATE_LOCK})")
    scripts, applied = _scripts(), list[str]()
    at = _current(connection)
    if at is not None and is_later(at):
        return applied
    if at is not None and at not in {script.revision for script in scripts.walk_revisions()}:
        raise JobFailed(
            f"the table alembic_version says {at}, which is no revision of ours: another program's tables are in this"
            " schema; name a database of its own in STREAMPROC_POSTGRES_DSN"
        )

    def pending(revision: str, _: MigrationContext) -> list[MigrationStep]:
        steps = scripts._upgrade_revs("head", revision)  # as alembic.command.upgrade does
        applied.extend(str(step.info.up_revision_id) for step in steps)
        return list(steps)

    with EnvironmentContext(Config(), scripts, fn=pending) as environment:
        environment.configure(connection=connection, transactional_ddl=True)
        environment.run_migrations()
    return applied


def _current(connection: Connection) -> str | None:
    return MigrationContext.configure(connection).get_current_revision()
