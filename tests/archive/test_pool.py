"""A Postgres that hangs holds nobody up: neither who gave up asking, nor who ends."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import TypeAlias

import asyncpg
import pytest
import pytest_asyncio

from consumers import recall
from projections.heads import open_heads
from projections.runner import Runner
from projections.schema import prepare
from projections.swap import swap
from projections.views import NAMES
from streamproc import embedded
from streamproc.archive import pool as pools
from streamproc.archive.pool import acquired, opened_pool
from streamproc.archive.read import payout_known
from streamproc.archive.rows import RowAbout
from streamproc.archive.store import connection, snapshot, transaction
from streamproc.domain.payouts import PayoutRecord
from streamproc.embedded import Store
from streamproc.errors import TryAgain
from streamproc.operate.past import rows_of
from streamproc.operate.recover_state import rows_in_parts
from tests.bank import free_port, until
from tests.consumers.test_recall import old
from tests.engine import Engine
from tests.hurry import pass_at_once
from tests.signals import frozen
from tests.words import observed

pytestmark = pytest.mark.asyncio(loop_scope="module")
DEADLINE_S = 60.0


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def store(public_dir: Path) -> AsyncIterator[Store]:
    """A Postgres that nobody else has."""
    home = public_dir / "pool-postgres"
    home.mkdir()
    home.chmod(0o711)
    async with embedded.postgres(home, port=free_port(), durable=False) as store:
        yield store


async def one(pool: asyncpg.Pool) -> int:
    async with acquired(pool) as db:
        return int(await db.fetchval("SELECT 1"))


@pytest.mark.own_limits
async def test_who_gave_up_does_not_wait_for_the_connection_to_be_given_back(store: Store) -> None:
    async with asyncio.timeout(DEADLINE_S), opened_pool(store.url) as pool:
        assert await one(pool) == 1
        with frozen(store.process.pid):
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.1):
                    await one(pool)
            [giving_back] = pools._giving_back
            await giving_back  # it raises nothing, whatever Postgres does
        assert await one(pool) == 1
        assert not pools._giving_back


async def test_a_question_that_takes_too_long_is_tried_again(store: Store) -> None:
    async with asyncio.timeout(DEADLINE_S), opened_pool(store.url) as pool:
        assert await one(pool) == 1
        with frozen(store.process.pid):
            asyncio.get_running_loop().call_later(0.1, pass_at_once, pools.QUERY_TIMEOUT_S)
            with pytest.raises(TryAgain, match="Postgres is away: no answer in time"):
                await one(pool)


@pytest.mark.own_limits
async def test_while_it_hangs_one_question_waits_and_no_other_until_it_answers(store: Store) -> None:
    async def answers() -> bool:
        try:
            return await one(pool) == 1
        except TryAgain:
            return False

    async with asyncio.timeout(DEADLINE_S), opened_pool(store.url) as pool:
        assert await one(pool) == 1
        with frozen(store.process.pid):
            with pytest.raises(TryAgain, match="Postgres is away: no answer in time"):
                await one(pool)
            for _ in range(20):
                with pytest.raises(TryAgain, match="Postgres is away: it hangs"):
                    await one(pool)
        await until(answers, what="it is asked again")
        assert not pools._hanging


async def test_a_slow_question_that_was_given_up_lets_nobody_else_fail(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pools, "HANGS_S", 0.0)
    monkeypatch.setattr(pools, "DOUBT_S", DEADLINE_S)  # a busy machine answers late too
    async with asyncio.timeout(DEADLINE_S), opened_pool(store.url) as pool:
        assert await one(pool) == 1
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.1), acquired(pool) as db:
                await db.execute(SLOW)
        assert pool in pools._hanging
        assert await one(pool) == 1
        assert pool not in pools._hanging


@pytest.mark.own_limits
async def test_a_pool_whose_postgres_hangs_can_be_closed(store: Store) -> None:
    async with asyncio.timeout(DEADLINE_S):
        with frozen(store.process.pid):
            async with opened_pool(store.url) as pool:
                with pytest.raises(TryAgain):
                    await one(pool)
                assert pool in pools._hanging
        assert not pools._hanging


@pytest.mark.own_limits
async def test_alarms_and_holds_do_not_wait_for_questions_to_an_archive_that_hangs(
    redis_url: str, store: Store
) -> None:
    """Each took seconds: forty alarms took fifty, and what came after them as long. So did holds, beside a few old
    payouts that were asked about again and again."""
    waited: list[str] = []

    async def archived(payout: str) -> PayoutRecord | None:
        try:
            return await payout_known(pool, payout)
        except TryAgain as problem:
            if "it hangs" not in str(problem):
                waited.append(payout)
            raise

    await prepare(store.url)
    async with opened_pool(store.url) as pool, Engine(redis_url, archived=archived) as engine:
        await engine.apply("policies: {bot: {require_approval_above: 100000}}")
        with frozen(store.process.pid):
            await engine.deliver(old())
            for batch in ("a", "b"):
                moved = [observed(f"pout_{batch}{n}", status="processed") for n in range(12)]
                await engine.deliver(*moved, observed(f"pout_held_{batch}", 200_000))
                assert all([(await engine.record(event.payout)).bypassed for event in moved])
                assert (await engine.record(f"pout_held_{batch}")).decision == "HELD"
            assert len(waited) <= recall.AT_ONCE_MAX + 1, "the old one, and the first alarms"
        await engine.settled(wholly=True)
        assert (await engine.record("pout_old")).decision is not None


Read: TypeAlias = Callable[[str, str], Awaitable[None]]
SLOW = "SELECT pg_sleep(3600)"


async def in_a_snapshot(url: str, name: str) -> None:
    async with snapshot(url, name=name) as db:
        await db.execute(SLOW)


async def in_parts(url: str, name: str) -> None:
    """As a recovery reads."""
    async with connection(url, name=name) as db:
        slow = "SELECT n, pg_sleep(3600 * (n - 1)) FROM generate_series(1, 2) AS n"
        async for _ in rows_in_parts(db, slow, at_once=1):
            pass


async def in_rows_as_of(url: str, name: str) -> None:
    """As `replay --as-of` shows what it built."""
    async with connection(url, name=name, job=True) as db:
        await db.execute("CREATE TEMP VIEW slow AS SELECT 1 AS a, 2 AS b, 3 AS c, pg_sleep(3600)::text AS d")
        async for _ in rows_of(db, "slow"):
            pass


async def in_a_swap(url: str, name: str) -> None:
    await prepare(url)
    async with connection(url, name=name, job=True) as db:

        async def slow(_: dict[int, int]) -> None:
            await db.execute(SLOW)

        await swap(db, "public", "public_shadow", NAMES, slow)


async def in_a_fold(url: str, name: str) -> None:
    """As a replay brings views to where others are."""
    await prepare(url)
    async with connection(url, name=name, job=True) as db, connection(url, name="other") as other:
        runner = Runner(db, 0, await open_heads(db, 0))
        async with transaction(other):
            await other.execute("LOCK TABLE view_heads")
            await runner.fold([RowAbout(1, "1-0", b"[]", b"{}", None)])


async def is_slow(url: str, name: str) -> None:
    """Wait until the session of this name sleeps, or waits for a lock."""
    async with asyncio.timeout(DEADLINE_S), connection(url, name="looking") as db:
        slow = (
            "SELECT EXISTS (SELECT FROM pg_stat_activity WHERE application_name = $1"
            " AND wait_event_type IN ('Timeout', 'Lock'))"
        )
        while not await db.fetchval(slow, name):
            await asyncio.sleep(0.01)


@pytest.mark.parametrize("read", [in_a_snapshot, in_parts, in_rows_as_of, in_a_swap, in_a_fold])
async def test_a_job_that_is_broken_off_does_not_wait_for_a_postgres_that_hangs(
    store: Store, read: Read
) -> None:
    reading = asyncio.ensure_future(read(store.url, read.__name__))
    await is_slow(store.url, read.__name__)
    with frozen(store.process.pid):
        reading.cancel()
        done, _ = await asyncio.wait({reading}, timeout=DEADLINE_S)
    assert done == {reading}
    assert reading.cancelled()
    async with connection(
        store.url, name="ending"
    ) as db:  # Postgres may not have noticed yet that the job is gone
        await db.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = $1",
            read.__name__,
        )


async def test_a_pool_is_closed_whether_or_not_postgres_hears_the_goodbye(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pools, "CLOSE_S", 0.1)
    async with asyncio.timeout(DEADLINE_S):
        async with opened_pool(store.url) as pool:
            assert await one(pool) == 1
        with pytest.raises(TryAgain):
            await one(pool)
        opened = opened_pool(store.url)
        pool = await opened.__aenter__()
        assert await one(pool) == 1
        with frozen(store.process.pid):
            await opened.__aexit__(None, None, None)
