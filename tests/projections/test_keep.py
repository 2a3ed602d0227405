"""The live views through what happens to them: entries that nobody knows, swaps, tables that are gone."""

import asyncio
import logging

import asyncpg
import pytest

from projections.heads import Moved, open_heads
from projections.keep import Feed, keep_views
from projections.outage import heed_cancellation
from projections.runner import Runner, catch_up
from projections.schema import make_schema, prepare
from projections.views import NAMES, VIEWS
from streamproc.archive.load import archive, make_ranges
from streamproc.archive.read import await_views
from streamproc.archive.shared import Shared
from streamproc.archive.store import open_head
from streamproc.errors import ConfigError, LogBroken, TryAgain
from tests.projections.histories import (
    DEADLINE_S,
    START_MS,
    ListedLog,
    Stored,
    archived,
    everything,
    fetch,
    history,
    log_of,
    project_all,
    projecting,
    reserved,
    rows_of,
    settled,
)
from tests.words import observed

UNKNOWN = b'[{"type":"payout.teleported","v":1,"at":1}]'


@pytest.fixture
async def dsn(prepared: str) -> str:
    return prepared


@pytest.fixture
def log() -> ListedLog:
    return ListedLog(history(seed=11, payouts=12))


async def archive_only(dsn: str, entries: list[Stored]) -> None:
    """What the archiver does, without the views."""
    db = await asyncpg.connect(dsn)
    try:
        await make_ranges(db, [START_MS, START_MS + 10**9])
        await archive(db, 0, await open_head(db, 0), entries)
    finally:
        await db.close()


async def until_said(caplog: pytest.LogCaptureFixture, text: str) -> None:
    async with asyncio.timeout(DEADLINE_S):
        while text not in caplog.text:
            await asyncio.sleep(0.01)


async def test_an_unknown_event_stops_the_views_by_name_and_the_archive_goes_on(
    dsn: str, log: ListedLog, caplog: pytest.LogCaptureFixture
):
    await project_all(dsn, log)
    before = await everything(dsn)
    log.entries.append(Stored(f"{START_MS + 10**6}-0", UNKNOWN))
    log.entries.append(Stored(f"{START_MS + 10**6 + 1}-0", *log_of([observed("pout_new")])[0][1:]))
    async with projecting(dsn, log):
        await until_said(caplog, "payout.teleported")
    after = await everything(dsn)
    assert [row[1] for row in after["heads"]] == [len(log.entries)]
    for view in (*NAMES, "view_heads"):
        assert after[view] == before[view], view


async def test_a_number_that_postgres_cannot_hold_stops_the_views_and_the_archive_goes_on(
    dsn: str, log: ListedLog, caplog: pytest.LogCaptureFixture
):
    """It ended the projector, and so the archive, as often as that was started again."""
    await project_all(dsn, log)
    last = len(log.entries)
    [huge, after] = log_of([observed("pout_huge", 1_000)], [observed("pout_new")])
    e = huge.e.replace(b'"amount":1000', b'"amount":%d' % 10**25)
    log.entries.append(Stored(f"{START_MS + 10**6}-0", e, huge.m))
    async with projecting(dsn, log):
        await until_said(caplog, f"partition 0, seq {last + 1} to {last + 1}: a number is too large")
        log.entries.append(Stored(f"{START_MS + 10**6 + 1}-0", after.e, after.m))
        async with asyncio.timeout(DEADLINE_S):
            while await fetch(dsn, "SELECT seq FROM heads") != [(last + 2,)]:
                await asyncio.sleep(0.01)


async def test_views_that_were_swapped_under_the_runner_are_followed_from_where_they_are(
    dsn: str, log: ListedLog, caplog: pytest.LogCaptureFixture
):
    caplog.set_level(logging.INFO, "projections.keep")
    later, log.entries = log.entries[8:], log.entries[:8]
    async with projecting(dsn, log) as task:
        await archived(dsn, log.entries[-1].id, task)
        await fetch(dsn, "UPDATE view_heads SET generation = gen_random_uuid()")
        log.entries += later
        await archived(dsn, log.entries[-1].id, task)
    assert "are no longer at 8; going on from where they are" in caplog.text
    assert "stand still" not in caplog.text


async def test_what_a_failover_took_from_the_archive_is_not_folded_though_it_was_handed_over(
    dsn: str, log: ListedLog
):
    await archive_only(dsn, log.entries[:10])
    feed, stopping = Feed(), asyncio.Event()
    feed.put(rows_of(log.entries))
    keeping = asyncio.create_task(keep_views(0, dsn, Shared(dsn, name="views"), feed, stopping))
    async with asyncio.timeout(DEADLINE_S):
        while not (heads := await fetch(dsn, "SELECT DISTINCT seq FROM view_heads WHERE seq > 0")):
            await asyncio.sleep(0.01)
        stopping.set()
        await keeping
    assert heads == [(10,)]


async def test_two_runners_of_one_place_cannot_both_fold_the_same_entries(dsn: str, log: ListedLog):
    rows = rows_of(log.entries)
    first, second = [await asyncpg.connect(dsn) for _ in range(2)]
    try:
        one = Runner(first, 0, await open_heads(first, 0))
        other = Runner(second, 0, await open_heads(second, 0))
        await one.fold(rows[:5])
        with pytest.raises(Moved):
            await other.fold(rows[:5])
        await one.fold(rows[5:])
    finally:
        await first.close()
        await second.close()


async def test_a_view_that_is_behind_the_others_is_not_written_but_asked_to_be_rebuilt(
    dsn: str, log: ListedLog
):
    await project_all(dsn, log)
    await fetch(dsn, "DROP TABLE holds")
    assert await prepare(dsn) == ["view holds"]
    db = await asyncpg.connect(dsn)
    try:
        with pytest.raises(
            ConfigError, match=r"views holds of partition 0 are behind.*streamproc replay holds"
        ):
            await open_heads(db, 0)
    finally:
        await db.close()


async def test_a_view_of_another_version_is_not_written_but_asked_to_be_rebuilt(dsn: str, log: ListedLog):
    await project_all(dsn, log)
    await fetch(dsn, "UPDATE view_heads SET version = 99 WHERE view = 'agents'")
    db = await asyncpg.connect(dsn)
    try:
        with pytest.raises(ConfigError, match=r"agents are of another version.*streamproc replay agents"):
            await open_heads(db, 0)
    finally:
        await db.close()


async def test_views_that_know_nothing_yet_are_filled_from_the_archive(dsn: str, log: ListedLog):
    await project_all(dsn, log)
    expected = await everything(dsn)
    for table in (*NAMES, "view_heads"):
        await fetch(dsn, f"DROP TABLE {table}")
    assert await prepare(dsn) == [f"view {name}" for name in NAMES]
    await project_all(dsn, log)
    assert await everything(dsn) == expected


async def test_a_settlement_of_more_than_its_window_holds_stops_the_views(dsn: str):
    held = reserved("pout_1", 500)
    entries = log_of([observed("pout_1")], [held], [settled(reserved("pout_1", 501), "committed")])
    db = await asyncpg.connect(dsn)
    try:
        runner = Runner(db, 0, await open_heads(db, 0))
        with pytest.raises(
            LogBroken, match="settle more than the window agent:bot 2026-11-30 holds: reserved -1"
        ):
            await runner.fold(rows_of(entries))
        assert await fetch(dsn, "SELECT count(*) FROM payouts") == [(0,)]
    finally:
        await db.close()


async def test_another_place_is_caught_up_by_the_same_runner_and_comes_to_the_same_rows(
    dsn: str, log: ListedLog
):
    await project_all(dsn, log)
    place, source = await asyncpg.connect(dsn), await asyncpg.connect(dsn)
    try:
        await make_schema(place, "elsewhere", VIEWS)
        runner = Runner(place, 0, await open_heads(place, 0))
        await catch_up(runner, source, 0, 7, batch_max=3)
        assert runner.position.seq == 7
        await catch_up(runner, source, 0, len(log.entries))
        for view in VIEWS:
            table = f"SELECT * FROM {{}}{view.name}"
            both = [
                sorted(map(tuple, await source.fetch(table.format(p))), key=str) for p in ("", "elsewhere.")
            ]
            assert both[0] == both[1], view.name
    finally:
        await place.close()
        await source.close()


async def test_a_reader_waits_until_the_views_show_what_it_wrote(dsn: str, log: ListedLog):
    await archive_only(dsn, log.entries)
    last = log.entries[-1].id
    async with asyncpg.create_pool(dsn, min_size=1, max_size=2) as pool:
        with pytest.raises(TryAgain, match=f"up to 0-0, not {last}"):
            await await_views(pool, 0, last, timeout_s=0.05)
        waiting = asyncio.create_task(await_views(pool, 0, last, timeout_s=DEADLINE_S))
        async with projecting(dsn, log):
            await waiting
        assert await pool.fetchval("SELECT count(*) FROM payouts") == 12


def test_the_feed_gives_what_follows_and_forgets_what_nobody_takes():
    rows = rows_of(history(seed=1, payouts=4))
    feed = Feed(rows_max=3)
    feed.put(rows[:5])
    assert feed.take(0, 10) == []
    assert feed.take(2, 2) == rows[2:4]
    assert feed.take(4, 10) == rows[4:5]
    assert feed.take(5, 10) == []


async def test_rows_are_gathered_until_there_are_enough_or_it_is_time():
    rows, feed, clock = rows_of(history(seed=1, payouts=4)), Feed(), asyncio.get_running_loop().time
    gathering = asyncio.create_task(feed.gather(4, clock() + DEADLINE_S))
    feed.put(rows[:2])
    await asyncio.sleep(0)
    assert not gathering.done()
    feed.put(rows[2:4])
    await asyncio.wait_for(gathering, DEADLINE_S)
    await feed.gather(5, clock())
    assert feed.take(0, 10) == rows[:4]


async def test_a_flood_that_is_over_is_waited_for_no_longer():
    rows, feed, clock = rows_of(history(seed=1, payouts=4)), Feed(), asyncio.get_running_loop().time
    feed.put(rows[:2])
    async with asyncio.timeout(DEADLINE_S):
        await feed.gather(4, clock() + 2 * DEADLINE_S)
    assert feed.take(0, 10) == rows[:2]


async def test_a_cancellation_that_a_rollback_swallowed_is_heeded_at_the_next_turn():
    """A transaction cancelled as its connection dies raises what the rollback met, in place of the cancellation."""

    async def waits_out_everything() -> None:
        while True:
            heed_cancellation()
            try:
                await asyncio.get_running_loop().create_future()
            except asyncio.CancelledError:
                continue

    task = asyncio.create_task(waits_out_everything())
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asyncio.wait_for(task, DEADLINE_S)
