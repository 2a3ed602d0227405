"""Postgres is killed when the views' last transaction is not on its disk, since their commits do not wait for that."""

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from signal import SIGKILL, SIGSTOP

import pytest

from projections.schema import prepare
from streamproc import embedded
from tests.ports import free_port
from tests.projections.histories import (
    ListedLog,
    archived,
    everything,
    fetch,
    history,
    project_all,
    projecting,
)
from tests.projections.seals import terms
from tests.restartable import Restartable, restartable

WAL_WRITER = "SELECT pid FROM pg_stat_activity WHERE backend_type = 'walwriter'"


@asynccontextmanager
async def that_syncs_when_told(postgres: Restartable, dsn: str) -> AsyncIterator[None]:
    """Nothing reaches the disk but by commits that wait for it. At the end all of Postgres is killed."""
    ((writer,),) = await fetch(dsn, WAL_WRITER)
    assert isinstance(writer, int)
    os.kill(writer, SIGSTOP)
    try:
        yield
    finally:
        await postgres.kill()
        os.kill(writer, SIGKILL)


async def test_views_that_a_killed_postgres_forgot_are_folded_again_and_the_archive_forgets_nothing(
    public_dir: Path, postgres: str
) -> None:
    log, port, home = ListedLog(history(seed=21, payouts=30)), free_port(), public_dir / "killed"
    later, log.entries = log.entries[40:], log.entries[:40]
    async with restartable(lambda: embedded.postgres(home, port=port)) as killed:
        dsn = await killed.up()
        await prepare(dsn)
        async with that_syncs_when_told(killed, dsn), projecting(dsn, log) as task:
            await archived(dsn, log.entries[-1].id, task)
        dsn = await killed.up()
        assert await fetch(dsn, "SELECT seq FROM heads") == [(40,)]
        assert await fetch(dsn, "SELECT count(*) FROM events") == [(40,)]
        assert await fetch(dsn, "SELECT count(*) FROM payouts") == [(0,)], (
            "nothing was lost: this shows nothing"
        )
        log.entries += later
        async with projecting(dsn, log) as task:
            await archived(dsn, log.entries[-1].id, task)
        await prepare(postgres)
        await project_all(postgres, log)
        assert await everything(dsn) == await everything(postgres)


@pytest.mark.parametrize("whose", ["DATABASE", "ROLE"])
async def test_what_the_barrier_let_through_outlives_a_kill_though_the_owner_spares_the_disk_by_default(
    public_dir: Path, whose: str
) -> None:
    log, port = ListedLog(history(seed=22, payouts=10)), free_port()
    home, outside = public_dir / f"spared-{whose}", public_dir / f"spared-{whose}.txt"
    async with restartable(lambda: embedded.postgres(home, port=port)) as killed:
        dsn = await killed.up()
        await prepare(dsn)
        await fetch(dsn, f"ALTER {whose} streamproc SET synchronous_commit = off")
        async with that_syncs_when_told(killed, dsn):
            await project_all(dsn, log, terms=terms(outside))
        dsn = await killed.up()
        assert await fetch(dsn, "SELECT seq FROM heads") == [(len(log.entries),)]
        # And a checkpoint that is outside is in the table too: one that is not would stop all signing.
        assert await fetch(dsn, "SELECT max(size) FROM checkpoints") == [(len(log.entries),)]
