"""Puts rebuilt views in the place of the live ones, in one transaction, and keeps the old ones for a way back.

What operators hung on the live tables, views of theirs and grants, goes over to the new ones (dependents.py). The rows
of the live `view_heads` are locked first, so that the projector waits; the rebuilt views catch up to the same
entry; then tables change schemas. A reader's query waits for that and then sees all of the new tables.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence

import asyncpg

from projections.dependents import dependents_of, hang_on_anew, refuse_what_would_be_lost, revoke_all
from projections.schema import quote_ident
from projections.views import NAMES
from streamproc.archive.blockers import holders
from streamproc.archive.sql import statements
from streamproc.archive.store import transaction
from streamproc.errors import JobFailed

LOCK_WAIT_MS = 400
"""How long a swap waits for readers' queries before it gives up and lets pass those that queue behind it. It holds
some tables while it waits for others, and a reader may do so the other way round: the swap must let go well
within Postgres's deadlock_timeout (1 s), after which Postgres may end the reader."""
HEADS_WAIT_MS = 2_000
"""How long it waits for the projector's transaction, which locks the heads of the live views."""
TRIES_MAX = 60
PAUSE_S = 0.5
OLD_READERS_S = 60.0
"""How long it waits for transactions that are older than the rebuilt rows. One that takes longer was left open by
somebody."""

_SQL = statements("projections", "swap.sql")


async def swap(
    db: asyncpg.Connection,
    home: str,
    source: str,
    views: Sequence[str],
    catch_up: Callable[[dict[int, int]], Awaitable[None]],
) -> None:
    """Exchange `views` of the schemas `home` (live) and `source`; the old ones are then in `<home>_previous`.

    `catch_up` brings the source to the positions (by partition) of the live views, which stand still meanwhile. Raises
    JobFailed if readers do not release the tables.
    """
    await _outlast_older_readers(db)
    holding = ""
    for _ in range(TRIES_MAX):
        try:
            async with transaction(db):
                await db.execute(f"SET LOCAL lock_timeout = '{HEADS_WAIT_MS}ms'")
                rows = await db.fetch(_SQL["lock_heads"])
                await catch_up({row["partition"]: row["seq"] for row in rows})
                await _exchange(db, home, source, views)
            return
        except (asyncpg.LockNotAvailableError, asyncpg.QueryCanceledError, asyncpg.DeadlockDetectedError):
            holding = await holders(db, [home, f"{home}_previous"]) or holding
            await asyncio.sleep(PAUSE_S)
    raise JobFailed(
        f"the live views are in use: {TRIES_MAX} tries of {LOCK_WAIT_MS / 1000:g} s to swap them did not succeed;"
        f" what held them: {holding or 'only short queries'}; run the replay again, it goes on from here"
    )


async def _exchange(db: asyncpg.Connection, home: str, source: str, views: Sequence[str]) -> None:
    here, there, aside = quote_ident(home), quote_ident(source), quote_ident(f"{home}_aside")
    previous = quote_ident(f"{home}_previous")
    fresh = await _heads(db, source, views)
    old = await _heads(db, home, views)
    await _take(db, home, views)
    await refuse_what_would_be_lost(db, home, views)
    dependents = await dependents_of(db, home, views)
    # The grants of the tables of before are those of then: what was revoked since must not come back.
    if source == f"{home}_previous":
        live = [view for view in views if await db.fetchval(_SQL["exists"], f"{here}.{quote_ident(view)}")]
        await revoke_all(db, source, live)
    await db.execute(f"CREATE SCHEMA {aside}")
    await db.execute(f"CREATE TABLE {aside}.view_heads (LIKE {here}.view_heads INCLUDING ALL)")
    for view in map(quote_ident, views):
        if await db.fetchval(_SQL["exists"], f"{here}.{view}"):
            await db.execute(f"ALTER TABLE {here}.{view} SET SCHEMA {aside}")
        await db.execute(f"ALTER TABLE {there}.{view} SET SCHEMA {here}")
    await _put_heads(db, home, views, fresh)
    await _put_heads(db, f"{home}_aside", views, old)
    # Readers of these views may wait for our tables: all together no longer than _take waits.
    await db.execute(f"SET LOCAL lock_timeout = '{LOCK_WAIT_MS // max(1, len(dependents.views))}ms'")
    await hang_on_anew(db, dependents)
    await db.execute(f"DROP SCHEMA IF EXISTS {previous} CASCADE")
    await db.execute(f"ALTER SCHEMA {aside} RENAME TO {previous}")
    if source != f"{home}_previous":
        await db.execute(f"DROP SCHEMA {there} CASCADE")


async def _outlast_older_readers(db: asyncpg.Connection) -> None:
    """Wait until no transaction has a snapshot older than the rebuilt rows: it would see the new tables empty."""
    mark, deadline = await db.fetchval(_SQL["mark"]), time.monotonic() + OLD_READERS_S
    while older := [row["pid"] for row in await db.fetch(_SQL["older_readers"], mark)]:
        if time.monotonic() >= deadline:
            raise JobFailed(
                f"Postgres sessions {', '.join(map(str, older))} read by a snapshot older than the rebuilt views, in"
                " which those are empty; end their transactions and run the replay again, it goes on from here"
            )
        await asyncio.sleep(PAUSE_S)


async def _take(db: asyncpg.Connection, home: str, views: Sequence[str]) -> None:
    """Lock the live tables and those that are dropped, all within LOCK_WAIT_MS, or raise QueryCanceledError."""
    names = [f"{quote_ident(home)}.{quote_ident(view)}" for view in views]
    names += [f"{quote_ident(f'{home}_previous')}.{quote_ident(view)}" for view in (*NAMES, "view_heads")]
    there = [name for name in names if await db.fetchval(_SQL["exists"], name)]
    if there:
        await db.execute(f"SET LOCAL statement_timeout = '{LOCK_WAIT_MS}ms'")
        await db.execute(f"LOCK TABLE {', '.join(there)} IN ACCESS EXCLUSIVE MODE")
        await db.execute("SET LOCAL statement_timeout = 0")


async def _heads(db: asyncpg.Connection, schema: str, views: Sequence[str]) -> list[asyncpg.Record]:
    rows: list[asyncpg.Record] = await db.fetch(_in(_SQL["heads_of"], schema), list(views))
    return rows


async def _put_heads(
    db: asyncpg.Connection, schema: str, views: Sequence[str], rows: Sequence[asyncpg.Record]
) -> None:
    """Write heads with a new generation, by which the projector notices that the tables are others."""
    await db.execute(_in(_SQL["delete_heads"], schema), list(views))
    if rows:
        columns = [list(column) for column in zip(*(tuple(row) for row in rows), strict=True)]
        await db.execute(_in(_SQL["insert_heads"], schema), *columns)


def _in(sql: str, schema: str) -> str:
    return sql.replace("view_heads", f"{quote_ident(schema)}.view_heads")
