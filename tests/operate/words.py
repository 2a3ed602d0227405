"""What the tests of operators' functions start from: a site over real servers, and a projector for the archive."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from projections.loop import run_projector
from projections.schema import prepare
from streamproc.archive.pool import opened_pool
from streamproc.archive.read import views_upto
from streamproc.domain.entry_ids import id_key
from streamproc.log.stream import LogView
from streamproc.operate.site import Site, opened
from streamproc.settings import Settings, load

DEADLINE_S = 60.0
TOO_LONG = "x" * 300
"""A name that no directory can have. Who looks for it gets an error, as in one that belongs to somebody else."""
NOBODY_THERE = "postgresql://nobody@127.0.0.1:1/none"

POLICIES = """
policies:
  bot: {daily_limit: 10_000_000, per_txn_limit: 1_000_000, require_approval_above: 500_000}
  strict: {daily_limit: 1_000_000, dual_approval_above: 700_000, require_approval_above: 500_000}
reviewers: [asha, vikram]
"""


def settings(redis_url: str, dsn: str = "") -> Settings:
    """The settings of a command."""
    return load({"STREAMPROC_REDIS_URL": redis_url, "STREAMPROC_POSTGRES_DSN": dsn})


@asynccontextmanager
async def site_of(redis_url: str, dsn: str = "") -> AsyncIterator[Site]:
    """A site as a command opens it."""
    async with opened(settings(redis_url, dsn)) as site:
        yield site


async def archive(redis_url: str, dsn: str) -> None:
    """Run a projector until everything that is in the log now is in the archive."""
    await prepare(dsn)
    view = LogView(redis_url, 0)
    last = await view.last_id()
    await view.aclose()
    stopping = asyncio.Event()
    projector = asyncio.create_task(run_projector(dsn, 1, lambda p: LogView(redis_url, p), stopping))
    try:
        async with asyncio.timeout(DEADLINE_S), opened_pool(dsn) as pool:
            while id_key(await views_upto(pool, 0)) < id_key(last):
                assert not projector.done(), projector.result()
                await asyncio.sleep(0.02)
    finally:
        stopping.set()
        await projector
