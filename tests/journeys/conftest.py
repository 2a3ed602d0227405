"""One running system for all tests of a module: starting every role costs seconds of CPU."""

from collections.abc import AsyncIterator

import pytest_asyncio

from tests.databases import clean
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
CORE_POLICIES = """
defaults: {rate_limit: {count: 0, window: 60s}}
policies:
  bot: {daily_limit: 700_000}
  careful: {daily_limit: 10_000_000, require_approval_above: 100_000}
reviewers: [asha]
"""
"""For the few payouts that show that a system on other servers works: paid, over a limit, held."""
CALLS_PER_S = "50"
"""Instead of 8: hundreds of payouts take most of a minute at the bank's pace, and prove no more."""


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def system(valkey: str, postgres_server: str) -> AsyncIterator[System]:
    """Every role, one worker, no poller; the policies above are in force."""
    async with (
        clean(valkey, postgres_server) as dsn,
        running_system(valkey, dsn, razorpay_calls_per_s=CALLS_PER_S) as running,
    ):
        await running.apply(POLICIES)
        yield running
