"""Postgres fails over to a standby that lacks the last transactions: the log has them, and nobody is needed."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from projections.schema import prepare
from streamproc.archive.barrier import ArchiveBarrier
from streamproc.archive.lookup import refuses_writes
from streamproc.archive.pool import opened_pool
from streamproc.operate.audit import verify
from tests.projections.histories import (
    DEADLINE_S,
    ListedLog,
    archived,
    everything,
    fetch,
    history,
    project_all,
    projecting,
)
from tests.projections.seals import TRUSTED, terms
from tests.standby import Pair, pair

KEPT = 20
"""Entries that the standby has; those after them are lost with the primary."""


@pytest.fixture
async def both(public_dir: Path, request: pytest.FixtureRequest) -> AsyncIterator[Pair]:
    home = public_dir / f"failover-{request.node.name[:40]}"
    home.mkdir()
    home.chmod(0o711)
    async with pair(home) as both:
        await prepare(both.primary_dsn)
        await both.in_step()
        yield both


async def test_a_standby_that_nobody_promoted_is_waited_for_by_name_and_then_written(
    both: Pair, caplog: pytest.LogCaptureFixture
) -> None:
    log = ListedLog(history(seed=42, payouts=3))
    await both.cut()
    await both.primary.kill()
    async with projecting(both.standby_dsn, log) as task:
        async with asyncio.timeout(DEADLINE_S):
            while "Postgres: it can only be read: a standby" not in caplog.text:
                await asyncio.sleep(0.02)
        async with opened_pool(both.standby_dsn) as pool:
            assert await refuses_writes(pool) == "it is a standby"
        await both.take_over()
        await archived(both.standby_dsn, log.entries[-1].id, task)


async def test_what_the_new_primary_lacks_is_archived_again_and_its_checkpoints_are_those_that_were_handed_outside(
    both: Pair, prepared: str, tmp_path: Path
) -> None:
    log, file = ListedLog(history(seed=41, payouts=20)[:35]), tmp_path / "checkpoints.txt"
    later, log.entries = log.entries[KEPT:], log.entries[:KEPT]
    async with (
        opened_pool(both.dsn) as pool,
        projecting(both.dsn, log, terms=terms(file, entries=10)) as task,
    ):
        await archived(both.dsn, log.entries[-1].id, task)
        await both.in_step()
        await both.cut()
        log.entries += later
        await archived(both.dsn, log.entries[-1].id, task)
        passes = ArchiveBarrier(pool, log.logged)
        await passes(0, log.entries[-1].id, log.entries[-1].e)
        async with asyncio.timeout(DEADLINE_S):
            while await fetch(both.dsn, "SELECT max(size) FROM checkpoints_published") != [(30,)]:
                await asyncio.sleep(0.02)
        await both.primary.kill()
        await both.take_over()
        assert (await fetch(both.standby_dsn, "SELECT seq FROM heads"))[0][0] <= KEPT + len(later)
        async with asyncio.timeout(DEADLINE_S):
            await archived(both.dsn, log.entries[-1].id, task)
        await passes(0, log.entries[-1].id, log.entries[-1].e)
    found = await verify(both.dsn, TRUSTED, file)
    assert found.broken == []
    assert [(part.rows, part.signed, part.not_outside) for part in found.parts] == [(35, 35, 0)]
    await project_all(prepared, log)
    assert await everything(both.dsn) == await everything(prepared)
