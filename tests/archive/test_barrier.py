"""The barrier lets money go only for a decision that is itself in the archive."""

from contextlib import AsyncExitStack
from pathlib import Path

import asyncpg
import pytest

from streamproc import app
from streamproc.archive import barrier
from streamproc.archive.barrier import ArchiveBarrier, Logged, WholeLogBarrier
from streamproc.archive.load import archive, make_ranges
from streamproc.archive.read import last_archived
from streamproc.archive.rows import Row
from streamproc.archive.store import open_head, read_head
from streamproc.errors import TryAgain
from streamproc.log.connection import connected
from streamproc.log.names import Names
from tests.deadline import DEADLINE_S
from tests.faults.replica import replica_of
from tests.operate.recovering import settings_of
from tests.projections.histories import START_MS, Stored, history

DECISION = b"[]"
LOG = Names(0).log


def nothing_lost(pool: asyncpg.Pool) -> Logged:
    """A log that has what the archive has."""

    async def logged(partition: int, _: str) -> Row | None:
        return await last_archived(pool, partition)

    return logged


@pytest.fixture
async def pool(prepared: str):  # type: ignore[no-untyped-def]
    async with asyncpg.create_pool(prepared, min_size=0, max_size=2) as pool:
        yield pool


async def test_an_id_below_the_head_that_is_not_archived_does_not_pass(pool: asyncpg.Pool) -> None:
    """After a failover to a server whose clock is behind, new ids lie below what the lost tail had reached."""
    await pool.execute(
        "INSERT INTO heads (partition, seq, entry_id, hash) VALUES (0, 5, '2000-0', $1)"
        " ON CONFLICT (partition) DO UPDATE SET seq = 5, entry_id = '2000-0'",
        bytes(32),
    )
    with pytest.raises(TryAgain, match="not in the archive"):
        await ArchiveBarrier(pool, nothing_lost(pool))(0, "1000-0", DECISION)


async def test_an_id_under_which_another_entry_is_archived_does_not_pass(pool: asyncpg.Pool) -> None:
    """While such a server's clock is behind, its ids follow on its last one, and so may be those of the lost tail."""
    lost, decided = history(seed=1, payouts=2)[:2]
    async with pool.acquire() as db:
        await make_ranges(db, [START_MS])
        await archive(db, 0, await open_head(db, 0), [lost])
    passes = ArchiveBarrier(pool, nothing_lost(pool))
    await passes(0, lost.id, lost.e)
    with pytest.raises(TryAgain, match="not in the archive"):
        await passes(0, lost.id, decided.e)


@pytest.mark.parametrize("is_other", [False, True], ids=["its tail is lost", "and its ids were given again"])
async def test_while_the_log_lacks_what_the_archive_has_no_earlier_decision_passes_either(
    pool: asyncpg.Pool, is_other: bool
) -> None:
    """The lost entry may be a freeze, of which the policies in Redis know nothing any more."""
    decided, lost, other = history(seed=1, payouts=3)[:3]
    log = {entry.id: entry for entry in (decided, lost)}

    async def logged(_: int, entry: str) -> Stored | None:
        return log.get(entry)

    passes = ArchiveBarrier(pool, logged)
    async with pool.acquire() as db:
        await make_ranges(db, [START_MS])
        await archive(db, 0, await open_head(db, 0), [decided, lost])
    await passes(0, decided.id, decided.e)
    log.pop(lost.id)
    if is_other:
        log[lost.id] = other
    with pytest.raises(TryAgain, match="lacks the archive's last entry") as waits:
        await passes(0, decided.id, decided.e)
    assert waits.value.after_s == barrier.SET_BACK_S
    log[lost.id] = lost
    await passes(0, decided.id, decided.e)


async def test_a_decision_beyond_the_head_is_put_off(
    pool: asyncpg.Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(barrier, "WAIT_S_MAX", 0.05)
    with pytest.raises(TryAgain, match="not archived yet"):
        await ArchiveBarrier(pool, nothing_lost(pool))(0, "1000-0", DECISION)


async def test_what_a_failover_of_postgres_lost_is_waited_for_as_what_was_never_archived(
    pool: asyncpg.Pool, prepared: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The barrier had heard from the old primary that the archive is past it."""
    monkeypatch.setattr(barrier, "WAIT_S_MAX", DEADLINE_S)
    first, lost = history(seed=1, payouts=2)[:2]
    passes = ArchiveBarrier(pool, nothing_lost(pool))
    async with pool.acquire() as db:
        await make_ranges(db, [START_MS])
        await archive(db, 0, await open_head(db, 0), [first])
        left = await read_head(db, 0)
        await archive(db, 0, left, [lost])
        await passes(0, lost.id, lost.e)
        await db.execute("SET session_replication_role = replica")
        await db.execute("DELETE FROM events WHERE seq = 2")
        await db.execute("UPDATE heads SET seq = 1, entry_id = $1, hash = $2", left.entry, left.hash)
    with monkeypatch.context() as impatient:
        impatient.setattr(barrier, "WAIT_S_MAX", 0.2)
        with pytest.raises(TryAgain, match="not archived yet") as waits:
            await passes(0, lost.id, lost.e)
    assert waits.value.after_s == barrier.AGAIN_S
    async with pool.acquire() as db:
        await archive(db, 0, left, [lost])
    await passes(0, lost.id, lost.e)


async def test_postgres_away_is_a_wait_and_not_a_pass() -> None:
    async with asyncpg.create_pool(
        "postgresql://nobody@127.0.0.1:1/x", min_size=0, max_size=1, timeout=1.0
    ) as pool:
        with pytest.raises(TryAgain):
            await ArchiveBarrier(pool, nothing_lost(pool))(0, "1000-0", DECISION)


async def test_an_archive_without_its_tables_is_a_wait_and_no_failure_of_the_decision(postgres: str) -> None:
    """As while it is set up anew or restored: after some failed attempts an approved payout would be a dead letter."""
    async with asyncpg.create_pool(postgres, min_size=0, max_size=1) as pool:
        with pytest.raises(TryAgain, match="Postgres is away: UndefinedTableError") as waits:
            await ArchiveBarrier(pool, nothing_lost(pool))(0, "1000-0", DECISION)
    assert waits.value.after_s == barrier.AGAIN_S


class Weaker:
    """What `EXECUTE_AFTER=synced` asks for, which is nothing, or a replica that does not have the decision."""

    problem: TryAgain | None = None

    async def __call__(self, partition: int, entry: str, e: bytes) -> None:
        if self.problem is not None:
            raise self.problem


async def test_a_weaker_barrier_holds_too_while_the_log_lacks_what_the_archive_has(
    pool: asyncpg.Pool,
) -> None:
    """It waits for no archive, and a log that was set back has forgotten a freeze all the same."""
    decided, lost, unarchived = history(seed=1, payouts=3)[:3]
    log = {entry.id: entry for entry in (decided, lost, unarchived)}

    async def logged(_: int, entry: str) -> Stored | None:
        return log.get(entry)

    passes = WholeLogBarrier(pool, logged, Weaker())
    await passes(0, decided.id, decided.e)  # nothing is archived yet
    async with pool.acquire() as db:
        await make_ranges(db, [START_MS])
        await archive(db, 0, await open_head(db, 0), [decided, lost])
    await passes(0, unarchived.id, unarchived.e)
    log.pop(lost.id)
    with pytest.raises(TryAgain, match="lacks the archive's last entry") as waits:
        await passes(0, unarchived.id, unarchived.e)
    assert waits.value.after_s == barrier.SET_BACK_S
    log[lost.id] = lost
    await passes(0, unarchived.id, unarchived.e)


async def test_an_archive_that_is_away_holds_a_weaker_barrier_up_only_where_it_has_said_that_the_log_was_set_back(
    pool: asyncpg.Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def away(*_: object) -> None:
        raise TryAgain("Postgres is away: it hangs")

    async def nothing(_: int, __: str) -> None:
        return None

    decided = history(seed=1, payouts=1)[0]
    async with pool.acquire() as db:
        await make_ranges(db, [START_MS])
        await archive(db, 0, await open_head(db, 0), [decided])
    passes = WholeLogBarrier(pool, nothing, Weaker())
    with monkeypatch.context() as patched:
        patched.setattr(barrier, "last_archived", away)
        await passes(0, decided.id, decided.e)
    with pytest.raises(TryAgain, match="lacks the archive's last entry"):
        await passes(0, decided.id, decided.e)
    monkeypatch.setattr(barrier, "last_archived", away)
    with pytest.raises(TryAgain, match="lacks the archive's last entry"):
        await passes(0, decided.id, decided.e)


async def test_a_whole_log_does_not_pass_for_what_the_weaker_barrier_waits_for(pool: asyncpg.Pool) -> None:
    weaker = Weaker()
    weaker.problem = TryAgain("no replica has it")
    with pytest.raises(TryAgain, match="no replica has it"):
        await WholeLogBarrier(pool, nothing_lost(pool), weaker)(0, "1000-0", DECISION)


@pytest.mark.parametrize("choice", ["archived", "replicated", "synced"])
async def test_each_choice_looks_whether_the_log_lacks_what_the_archive_has(
    redis_url: str, prepared: str, pool: asyncpg.Pool, tmp_path: Path, choice: str
) -> None:
    decided, lost = history(seed=1, payouts=2)[:2]
    async with pool.acquire() as db:
        await make_ranges(db, [START_MS])
        await archive(db, 0, await open_head(db, 0), [decided, lost])
    settings = settings_of(redis_url, prepared, execute_after=choice)
    async with (
        AsyncExitStack() as stack,
        connected(redis_url) as client,
        replica_of(redis_url, tmp_path),
    ):
        await client.xadd(LOG, {"e": decided.e, "m": decided.m}, id=decided.id)
        passes = await app._barrier(settings, stack)
        with pytest.raises(TryAgain, match="lacks the archive's last entry"):
            await passes(0, decided.id, decided.e)
        await client.xadd(LOG, {"e": lost.e, "m": lost.m}, id=lost.id)
        await passes(0, decided.id, decided.e)


async def test_who_has_no_archive_pays_when_it_is_synced(redis_url: str) -> None:
    async with AsyncExitStack() as stack:
        passes = await app._barrier(settings_of(redis_url, "", execute_after="synced"), stack)
        await passes(0, "1000-0", DECISION)
