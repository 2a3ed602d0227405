"""The barrier lets money go only for a decision that is itself in the archive."""

import asyncpg
import pytest

from projections.schema import prepare
from streamproc.archive import barrier
from streamproc.archive.barrier import ArchiveBarrier
from streamproc.errors import TryAgain


@pytest.fixture
async def pool(postgres: str):  # type: ignore[no-untyped-def]
    await prepare(postgres)
    async with asyncpg.create_pool(postgres, min_size=0, max_size=2) as pool:
        yield pool


async def test_an_id_below_the_head_that_is_not_archived_does_not_pass(pool: asyncpg.Pool) -> None:
    """After a failover to a server whose clock is behind, new ids lie below what the lost tail had reached."""
    await pool.execute(
        "INSERT INTO heads (partition, seq, entry_id, hash) VALUES (0, 5, '2000-0', $1)"
        " ON CONFLICT (partition) DO UPDATE SET seq = 5, entry_id = '2000-0'",
        bytes(32),
    )
    with pytest.raises(TryAgain, match="not in the archive"):
        await ArchiveBarrier(pool)(0, "1000-0")


async def test_a_decision_beyond_the_head_is_put_off(
    pool: asyncpg.Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(barrier, "WAIT_S_MAX", 0.05)
    with pytest.raises(TryAgain, match="not archived yet"):
        await ArchiveBarrier(pool)(0, "1000-0")


async def test_postgres_away_is_a_wait_and_not_a_pass() -> None:
    async with asyncpg.create_pool(
        "postgresql://nobody@127.0.0.1:1/x", min_size=0, max_size=1, timeout=1.0
    ) as pool:
        with pytest.raises(TryAgain):
            await ArchiveBarrier(pool)(0, "1000-0")
