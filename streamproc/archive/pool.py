"""Pools of connections to Postgres. No wait is without a limit, nor is that until a connection is given back."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import asyncpg

from streamproc.archive.store import AWAY
from streamproc.errors import TryAgain, kind_of

QUERY_TIMEOUT_S = 3.0
"""All that is asked this way are index look-ups; one that takes longer means that Postgres is not well."""
POOL_MAX = 4
"""Connections of one process that only reads."""
CLOSE_S = 2.0
"""For a goodbye; a Postgres that hangs hears none."""

_giving_back: set[asyncio.Task[None]] = set()
"""The loop alone does not keep them."""


@asynccontextmanager
async def opened_pool(dsn: str) -> AsyncIterator[asyncpg.Pool]:
    """A pool that connects when it is first asked, so that who has it starts while Postgres is away."""
    pool = await asyncpg.create_pool(
        dsn, min_size=0, max_size=POOL_MAX, timeout=QUERY_TIMEOUT_S, command_timeout=QUERY_TIMEOUT_S
    )
    try:
        yield pool
    finally:
        await _close(pool)


async def _close(pool: asyncpg.Pool) -> None:
    """Say goodbye to Postgres; where it does not listen, hang up."""
    try:
        async with asyncio.timeout(CLOSE_S):
            await pool.close()
    except AWAY:
        pool.terminate()


@asynccontextmanager
async def asked(pool: asyncpg.Pool) -> AsyncIterator[asyncpg.Connection]:
    """A connection to ask with. Raises TryAgain when Postgres is away.

    Whoever gave up does not wait for it to be given back: that asks Postgres to cancel the question, which can take
    longer than the question was given.
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
    except AWAY:  # the pool has hung up then
        return
