"""The schema comes up from nothing, again, and from two sides at once."""

import asyncio
from pathlib import Path

import asyncpg
import pytest

from projections.schema import prepare
from projections.views import NAMES
from streamproc.archive.migrate import current, newest, upgrade
from streamproc.errors import JobFailed


async def test_the_first_upgrade_applies_every_revision_and_the_second_none(postgres: str):
    assert await current(postgres) is None
    assert (await upgrade(postgres))[-1] == newest()
    assert await current(postgres) == newest()
    assert await upgrade(postgres) == []


async def test_of_two_upgrades_at_once_one_does_the_work(postgres: str):
    first, second = await asyncio.gather(upgrade(postgres), upgrade(postgres))
    assert sorted([len(first), len(second)])[0] == 0
    assert first or second
    assert await current(postgres) == newest()


async def test_an_upgrade_needs_no_file_of_the_working_directory(
    postgres: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    await upgrade(postgres)
    assert not list(tmp_path.iterdir())


async def test_a_postgres_that_is_not_there_is_one_clear_error():
    with pytest.raises(JobFailed, match="Postgres"):
        await upgrade("postgresql://nobody@127.0.0.1:1/none")


async def test_every_month_has_its_range_and_making_it_twice_is_harmless(postgres: str):
    await upgrade(postgres)
    db = await asyncpg.connect(postgres)
    try:
        last_ms_of_november = 1_796_083_199_999
        names = [
            await db.fetchval("SELECT events_month($1)", ms)
            for ms in (last_ms_of_november, last_ms_of_november + 1, last_ms_of_november + 1)
        ]
        assert names == ["events_y2026m11", "events_y2026m12", "events_y2026m12"]
    finally:
        await db.close()


async def test_a_reader_may_read_every_month_and_write_nothing(postgres: str):
    await prepare(postgres)
    db = await asyncpg.connect(postgres)
    try:
        await db.execute("SELECT events_month(1796083200000)")
        await db.execute("SET ROLE streamproc_reader")
        for table in ("events", "heads", "checkpoints", *NAMES, "view_heads"):
            assert await db.fetch(f"SELECT * FROM {table}") == []
            with pytest.raises(asyncpg.InsufficientPrivilegeError):
                await db.execute(f"DELETE FROM {table}")
    finally:
        await db.close()
