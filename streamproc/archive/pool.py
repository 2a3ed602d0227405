"""Pools of connections to Postgres on which every wait has a limit, also that for giving a connection back.

Once a question to a Postgres that hangs has used up its time, the pool remembers that, and the next ones do not wait:
they fail at once until Postgres answers the pool's own question.
"""

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
HANGS_S = 1.0
"""A failure that took so long came of a Postgres that hangs. Others, as refused connections, come at once."""
DOUBT_S = 0.05
"""How long others wait for the answer to the pool's own question before they fail too: it may have been the query that
was slow, or its caller without patience, and a Postgres that is well answers in a few ms."""
ASK_AGAIN_S = 0.5
"""Between two questions of the pool's own: for so long at most others fail after Postgres is back."""

_giving_back: set[asyncio.Task[None]] = set()
"""Keeps references, since the event loop keeps none."""
_hanging: dict[asyncpg.Pool, "asyncio.Task[None]"] = {}
"""Pools whose Postgres hangs, each with the task that asks whether it still does."""


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
        if asking := _hanging.pop(pool, None):
            asking.cancel()
            await asyncio.gather(asking, return_exceptions=True)
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
    """A connection for a query. Raises TryAgain when Postgres is away, and does not wait where it is known to hang.

    After a failure the caller does not wait until the connection is given back: that has Postgres cancel the query,
    which can take longer than the query was allowed to.
    """
    if asking := _hanging.get(pool):
        await asyncio.wait({asking}, timeout=DOUBT_S)
        if not asking.done():
            raise TryAgain("Postgres is away: it hangs")
    clock = asyncio.get_running_loop().time
    began_s = clock()
    try:
        db = await pool.acquire(timeout=QUERY_TIMEOUT_S)
        try:
            yield db
        except BaseException:
            _give_back(pool, db)
            raise
        await asyncio.shield(_give_back(pool, db))
    except (*AWAY, asyncio.CancelledError) as problem:
        if clock() - began_s >= HANGS_S and pool not in _hanging:
            _hanging[pool] = asyncio.create_task(_until_it_answers(pool), name="postgres hangs")
        if isinstance(problem, asyncio.CancelledError):  # by a caller with less patience
            raise
        raise TryAgain(f"Postgres is away: {kind_of(problem)}") from problem


async def _until_it_answers(pool: asyncpg.Pool) -> None:
    """Ask until Postgres answers, or fails at once as others then do too: nobody has to wait for it any more."""
    clock = asyncio.get_running_loop().time
    hangs = True
    try:
        while hangs:
            began_s = clock()
            try:
                async with asyncio.timeout(2 * QUERY_TIMEOUT_S):  # for a connection, and for the answer
                    await pool.fetchval("SELECT 1", timeout=QUERY_TIMEOUT_S)
                hangs = False
            except (*AWAY, asyncpg.PostgresError):
                hangs = clock() - began_s >= HANGS_S
                await asyncio.sleep(ASK_AGAIN_S)
    finally:
        _hanging.pop(pool, None)


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
