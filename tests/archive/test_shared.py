"""A connection that tasks use in turn: one for all, left by each as it was found."""

import asyncio

import asyncpg
import pytest

from streamproc.archive.shared import Shared

DEADLINE_S = 60.0
OPEN = (
    "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND application_name = 'shared'"
)


async def count_open(dsn: str) -> int:
    db = await asyncpg.connect(dsn)
    try:
        return int(await db.fetchval(OPEN))
    finally:
        await db.close()


async def test_who_joins_has_the_same_connection_until_the_last_has_left(postgres: str) -> None:
    shared = Shared(postgres, name="shared")
    async with shared.joined() as one:
        async with shared.joined() as other:
            pids = await asyncio.gather(*(each.fetchval("SELECT pg_backend_pid()") for each in (one, other)))
            assert len(set(pids)) == 1
            assert await count_open(postgres) == 1
        assert await one.fetchval("SELECT 1") == 1
    assert await count_open(postgres) == 0


async def test_a_turn_is_not_disturbed_by_another_task(postgres: str) -> None:
    """asyncpg refuses a second statement while one runs."""
    async with asyncio.timeout(DEADLINE_S), Shared(postgres, name="shared").joined() as connection:
        async with connection.exclusive() as db, db.transaction():
            waits = asyncio.create_task(connection.fetchval("SELECT pg_current_xact_id_if_assigned()"))
            await db.execute("CREATE TABLE made ()")
            await asyncio.sleep(0)
            assert not waits.done()
        assert await waits is None, "it ran in a transaction of somebody else"


async def test_a_refused_statement_leaves_the_connection_to_the_others(postgres: str) -> None:
    async with Shared(postgres, name="shared").joined() as connection:
        pid = await connection.fetchval("SELECT pg_backend_pid()")
        with pytest.raises(asyncpg.UndefinedTableError):
            async with connection.exclusive() as db, db.transaction():
                await db.execute("SELECT * FROM nothing")
        assert await connection.fetchval("SELECT pg_backend_pid()") == pid


async def test_a_refusal_within_a_transaction_that_was_left_open_ends_the_connection(postgres: str) -> None:
    """Whoever is next would write into it, and find it aborted."""
    async with Shared(postgres, name="shared").joined() as turns:
        await turns.execute("BEGIN")
        with pytest.raises(asyncpg.UndefinedTableError):
            await turns.execute("SELECT * FROM nothing")
        assert turns.lost


async def test_a_turn_that_is_cancelled_outside_a_transaction_ends_the_connection_too(postgres: str) -> None:
    """A statement of it may be under way still."""
    async with Shared(postgres, name="shared").joined() as turns:
        with pytest.raises(asyncio.CancelledError):
            async with turns.exclusive():
                raise asyncio.CancelledError
        assert turns.lost


async def test_what_was_given_up_half_way_is_nobody_elses(postgres: str) -> None:
    shared, began = Shared(postgres, name="shared"), asyncio.Event()

    async def half() -> None:
        async with shared.joined() as connection, connection.exclusive() as db:
            await db.execute("BEGIN")
            began.set()
            await asyncio.Event().wait()

    async with asyncio.timeout(DEADLINE_S), shared.joined() as connection:
        pid = await connection.fetchval("SELECT pg_backend_pid()")
        task = asyncio.create_task(half())
        await began.wait()
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        assert task.cancelled()
        with pytest.raises(ConnectionResetError):
            await connection.fetchval("SELECT 1")
        async with shared.joined() as anew:
            assert await anew.fetchval("SELECT pg_backend_pid()") != pid
            assert await anew.fetchval("SELECT 1") == 1
