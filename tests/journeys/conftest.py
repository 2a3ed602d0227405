"""One running system for all tests of a module: starting every role costs seconds of CPU."""

import os
from collections.abc import AsyncIterator

import asyncpg
import pytest_asyncio
from redis.asyncio import Redis

from tests.journeys.system import System, running_system

POLICIES = """
defaults: {rate_limit: {count: 0, window: 60s}}
policies:
  bot: {daily_limit: 100_000_000}
  small: {daily_limit: 100_000_000, per_txn_limit: 500_000}
  careful: {daily_limit: 100_000_000, require_approval_above: 500_000}
  waits: {daily_limit: 100_000_000, require_approval_above: 500_000, queued_hold: allow}
  web: {daily_limit: 100_000_000, require_vendor_url: true}
reviewers: [asha, vikram]
"""


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def system(valkey: str, postgres_server: str) -> AsyncIterator[System]:
    """Every role, one worker, no poller; the policies above are in force."""
    name = f"journey_{os.getpid()}"
    async with Redis.from_url(valkey) as client:
        await client.flushall()
    admin = await asyncpg.connect(postgres_server)
    await admin.execute(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")
    await admin.execute(f"CREATE DATABASE {name} TEMPLATE template0")
    try:
        dsn = f"{postgres_server.rpartition('/')[0]}/{name}"
        async with running_system(valkey, dsn) as running:
            await running.apply(POLICIES)
            yield running
    finally:
        await admin.execute(f"DROP DATABASE {name} WITH (FORCE)")
        await admin.close()
