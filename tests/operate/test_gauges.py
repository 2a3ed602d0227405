"""What the stores say at a scrape: one that is away, or hangs, hides nothing that the other knows."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

import consumers
from streamproc.archive.pool import opened_pool
from streamproc.archive.signing_key import make_key
from streamproc.log.connection import connected
from streamproc.log.names import Names
from streamproc.log.stream import open_log
from streamproc.operate import gauges
from streamproc.operate.gauges import site_page
from streamproc.settings import load
from tests.operate.words import NOBODY_THERE, TOO_LONG
from tests.projections.histories import ListedLog, archived_earlier, fetch, history, project_all
from tests.projections.seals import terms

REDIS_AWAY = "redis://127.0.0.1:1/0"

Series = dict[str, dict[tuple[tuple[str, str], ...], float]]


async def told(redis_url: str, dsn: str, **more: str) -> Series:
    """The page of the stores by name and labels."""
    settings = load({"STREAMPROC_REDIS_URL": redis_url, "STREAMPROC_POSTGRES_DSN": dsn, **more})
    async with opened_pool(dsn) as pool:
        page = await site_page(settings, pool, consumers.GROUPS)
    return {
        family.name: {tuple(point.labels.items()): point.value for point in family.points} for family in page
    }


def up(found: Series) -> dict[str, float]:
    """`streamproc_store_up` by store."""
    return {labels[0][1]: value for labels, value in found["streamproc_store_up"].items()}


@asynccontextmanager
async def redis_that(does: str) -> AsyncIterator[str]:
    """The URL of a Redis that is away, or takes connections and says nothing."""
    if does == "is away":
        yield REDIS_AWAY
        return
    async with await asyncio.start_server(lambda _reader, _writer: None, "127.0.0.1", 0) as silent:
        yield f"redis://127.0.0.1:{silent.sockets[0].getsockname()[1]}/0"


async def test_a_database_without_tables_takes_nothing_else_off_the_page(redis_url: str, postgres: str):
    async with connected(redis_url) as client:
        await open_log(client, partitions=1, groups=consumers.GROUPS)
    found = await told(redis_url, postgres)
    assert up(found) == {"redis": 1, "postgres": 0}
    assert "streamproc_log_entries" in found


@pytest.mark.parametrize("does", ["is away", "hangs"])
async def test_what_postgres_knows_is_told_without_redis(
    prepared: str, monkeypatch: pytest.MonkeyPatch, does: str
):
    monkeypatch.setattr(gauges, "STORE_S_MAX", 1.0)
    async with redis_that(does) as url:
        found = await told(url, prepared, STREAMPROC_METRICS_AGENTS="5")
    assert up(found) == {"redis": 0, "postgres": 1}
    assert found["streamproc_holds_open"] == {(): 0}
    assert {"streamproc_views_behind_entries", "streamproc_budget_used_ratio"} <= found.keys()
    assert "streamproc_archive_oldest_seconds" not in found


async def test_what_redis_knows_is_told_without_postgres(redis_url: str):
    async with connected(redis_url) as client:
        await open_log(client, partitions=1, groups=consumers.GROUPS)
    found = await told(redis_url, NOBODY_THERE)
    assert up(found) == {"redis": 1, "postgres": 0}
    assert "streamproc_log_entries" in found
    assert "streamproc_archive_oldest_seconds" not in found


async def test_of_a_log_that_is_gone_every_group_is_told_to_be_missing(redis_url: str) -> None:
    """So that the alert is raised which says so; nothing else is taken off the page."""
    async with connected(redis_url) as client:
        await open_log(client, partitions=1, groups=["governance"])
        await client.delete(Names(0).log)
    found = await told(redis_url, NOBODY_THERE)
    assert up(found)["redis"] == 1
    assert list(found["streamproc_group_up"].values()) == [0] * len(consumers.GROUPS)
    assert "streamproc_redis_memory_bytes" in found


async def test_how_long_the_views_have_not_shown_what_is_archived_is_told(prepared: str):
    log = ListedLog(history(seed=1, payouts=3))
    log.entries = [entry._replace(id=f"{n}-0") for n, entry in enumerate(log.entries, 1)]  # entries of 1970
    await project_all(prepared, log)
    of_0 = (("partition", "0"),)
    found = await told(REDIS_AWAY, prepared)
    assert found["streamproc_views_behind_entries"] == {of_0: 0}
    assert found["streamproc_views_oldest_seconds"] == {of_0: 0}
    await fetch(prepared, "UPDATE view_heads SET seq = seq - 2")
    found = await told(REDIS_AWAY, prepared)
    assert found["streamproc_views_behind_entries"] == {of_0: 2}
    assert 0 < found["streamproc_views_oldest_seconds"][of_0] < 60, "it was archived a moment ago"
    await archived_earlier(prepared, "1 hour")
    found = await told(REDIS_AWAY, prepared)
    assert 3600 < found["streamproc_views_oldest_seconds"][of_0] < 3660
    await fetch(prepared, "DELETE FROM view_heads")
    found = await told(REDIS_AWAY, prepared)
    assert found["streamproc_views_behind_entries"] == {of_0: len(log.entries)}
    assert found["streamproc_views_oldest_seconds"][of_0] > 3600


async def test_how_long_what_is_archived_was_not_signed_is_told_where_somebody_signs(
    prepared: str, tmp_path: Path
):
    log = ListedLog(history(seed=1, payouts=3))
    log.entries = [entry._replace(id=f"{n}-0") for n, entry in enumerate(log.entries, 1)]
    await project_all(prepared, log)
    await archived_earlier(prepared, "1 hour")
    of_0, name, keys = (("partition", "0"),), "streamproc_unsigned_oldest_seconds", tmp_path / "keys"

    async def age() -> float | None:
        page = await told(REDIS_AWAY, prepared, STREAMPROC_DATA_DIR=str(keys))
        return page[name][of_0] if name in page else None

    assert await age() is None, "there is no key, and nothing was ever signed"
    found = await told(REDIS_AWAY, prepared, STREAMPROC_DATA_DIR=str(tmp_path / TOO_LONG))
    assert up(found)["postgres"] == 1, "nor is any where we may not look"
    make_key(keys / "checkpoint.key")
    seconds = await age()
    assert seconds is not None
    assert 3600 < seconds < 3660
    (keys / "checkpoint.key").unlink()  # of `serve` on another machine than the projector
    await project_all(prepared, log, terms=terms(tmp_path / "checkpoints.txt"))
    assert await age() == 0
    await fetch(prepared, "ALTER TABLE checkpoints DISABLE TRIGGER ALL")
    await fetch(prepared, "DELETE FROM checkpoints WHERE size = (SELECT max(size) FROM checkpoints)")
    seconds = await age()
    assert seconds is not None
    assert seconds > 3600
