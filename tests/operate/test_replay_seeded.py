"""Over a long history that the real engine made, every view dropped and replayed is the live one, whatever goes on."""

import asyncio

import asyncpg
import pytest

from projections import compare
from projections.views import NAMES
from streamproc.operate.replay import replay
from tests.projections.histories import ListedLog, archived, fetch, projecting
from tests.seeded import TEST_MAX_S, SeededHistory

pytestmark = pytest.mark.timeout(TEST_MAX_S)

READERS = 3


async def checksums(dsn: str) -> dict[str, compare.Checksum]:
    db = await asyncpg.connect(dsn)
    try:
        return {view: await compare.checksum(db, view) for view in NAMES}
    finally:
        await db.close()


async def test_every_view_dropped_and_replayed_equals_the_live_one(seeded_archive: str) -> None:
    live = await checksums(seeded_archive)
    assert all(found.rows for found in live.values())
    for view in NAMES:
        await fetch(seeded_archive, f"DROP TABLE {view}")
    result = await replay(seeded_archive)
    assert result.swapped
    assert await checksums(seeded_archive) == live


async def test_while_new_payouts_arrive_and_readers_read_nothing_is_half_built(
    seeded: SeededHistory, seeded_archive: str
) -> None:
    log = ListedLog(seeded.entries[: seeded.archived])
    arrived, stop = asyncio.Event(), asyncio.Event()
    reads = 0

    async def arrive() -> None:
        for entry in seeded.entries[seeded.archived :]:
            log.entries.append(entry)
            await asyncio.sleep(0.001)
        arrived.set()

    async def read(pool: asyncpg.Pool) -> None:
        nonlocal reads
        least = dict.fromkeys(NAMES, 0)
        while not stop.is_set():
            counts = await pool.fetchrow(f"SELECT {', '.join(f'(SELECT count(*) FROM {v})' for v in NAMES)}")
            for view, count in zip(NAMES, counts, strict=True):
                assert count >= least[view], f"{view} shrank from {least[view]} to {count}"
                least[view] = count
            decided, lines = await pool.fetchrow(
                "SELECT (SELECT count(*) FROM payouts WHERE decision IS NOT NULL),"
                " (SELECT count(DISTINCT payout) FROM audit WHERE kind = 'decision')"
            )
            assert decided == lines  # both of one moment, before a swap or after it
            reads += 1

    async with (
        asyncpg.create_pool(seeded_archive, min_size=READERS, max_size=READERS) as pool,
        projecting(seeded_archive, log) as task,
    ):
        readers = [asyncio.create_task(read(pool)) for _ in range(READERS)]
        arriving = asyncio.create_task(arrive())
        replays = 0
        while not arrived.is_set() or replays < 2:
            result = await replay(seeded_archive)
            assert {view.equal for view in result.views} == {True}
            assert result.swapped
            replays += 1
        await arriving
        await archived(seeded_archive, seeded.entries[-1].id, task)
        stop.set()
        await asyncio.gather(*readers)
    assert reads > replays
    live = await checksums(seeded_archive)
    result = await replay(seeded_archive, verify=True)
    assert result.positions == {0: len(seeded.entries)}
    assert {view.view: (view.rows, view.checksum, view.equal) for view in result.views} == {
        view: (found.rows, found.checksum, True) for view, found in live.items()
    }
