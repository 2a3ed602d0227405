"""Pools of connections to Postgres on which every wait has a limit, also that for giving a connection back."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import asyncpg

from streamproc.archive.hosts import connect
from streamproc.archive.store import AWAY
from streamproc.errors import TryAgain, kind_of

QUERY_TIMEOUT_S = 3.0
"""Limit of one query. All of them are index look-ups; one that takes longer means that Postgres is not well."""
CONNECT_S = 2.5
"""Limit for connecting to one of the DSN's hosts, below QUERY_TIMEOUT_S, for which a query waits for a connection."""
POOL_MAX = 4
"""Connections of a process that only reads."""
CLOSE_S = 2.0
"""Limit for closing; a Postgres that hangs does not answer."""

_giving_back: set[asyncio.Task[None]] = set()
"""Keeps references, since the event loop keeps none."""


@asynccontextmanager
async def opened_pool(dsn: str) -> AsyncIterator[asyncpg.Pool]:
    """A pool that connects at the first query, so that its owner can start while Postgres is away."""
    pool = await asyncpg.create_pool(
        dsn,
        min_size=0,
        max_size=POOL_MAX,
        connect=connect,
        timeout=CONNECT_S,
        command_timeout=QUERY_TIMEOUT_S,
    )
    try:
        yield pool
    finally:
        await _close(pool)


async def _close(pool: asyncpg.Pool) -> None:
    """Close the pool; drop its connections if Postgres does not answer in time."""
    try:
        async with asyncio.timeout(CLOSE_S):
            await pool.close()
    except AWAY:
        pool.terminate()


@asynccontextmanager
async def acquired(pool: asyncpg.Pool) -> AsyncIterator[asyncpg.Connection]:
    """A connection for a query. Raises TryAgain when Postgres is away.

    After a failure the caller does not wait until the connection is given back: that has Postgres cancel the query,
    which can take longer than the query was allowed to.
    """
    try:
        db = await pool.acquire(timeout=QUERY_TIMEOUT_S)
        try:
            yield db
        except BaseException:
            _give_back(pool, db)
            raise
        await asyncio.shield(_give_back(pool, db))
    except AWAY as problem:
        raise TryAgain(f"Postgres is away: {kind_of(problem)}") from problem


def _give_back(pool: asyncpg.Pool, db: asyncpg.Connection) -> "asyncio.Task[None]":
    task = asyncio.create_task(_given_back(pool, db))
    _giving_back.add(task)
    task.add_done_callback(_giving_back.discard)
    return task


async def _given_back(pool: asyncpg.Pool, db: asyncpg.Connection) -> None:
    try:
        await pool.release(db, timeout=QUERY_TIMEOUT_S)
    except AWAY:  # the pool has dropped the connection then
        return
