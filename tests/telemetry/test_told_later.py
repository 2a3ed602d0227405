"""The fast path is told of when no payout waits for that: small batches together, in the order of the log."""

import asyncio
import logging
from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio
from prometheus_client import CollectorRegistry
from redis.asyncio import Redis

from streamproc.log import batch_telemetry
from streamproc.log.connection import connected
from streamproc.log.stream import open_log
from streamproc.telemetry import watch
from streamproc.telemetry.metrics import Meters
from tests.engine import DEADLINE_S, Engine
from tests.log.test_remembered import Bench
from tests.words import ACCOUNT, apply_policies, observed

POLICIES = """
policies:
  bot: {daily_limit: 100000}
  careful: {daily_limit: 100000, on_rate_limit: hold, rate_limit: {count: 1, window: 3600s}}
"""


@pytest_asyncio.fixture
async def bench(
    redis_url: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Bench]:
    """A worker of whom metrics and lines are wanted, and no traces."""
    caplog.set_level(logging.INFO, "streamproc.decisions")
    for wait in ("TOGETHER_S", "UNRECORDED_S"):  # no test depends on how quick it is
        monkeypatch.setattr(batch_telemetry, wait, 60.0)
    watch.turn_on(Meters(CollectorRegistry()), None)
    async with connected(redis_url) as client:
        await open_log(client, partitions=1, groups=["governance"])
        await apply_policies(client, POLICIES)
        yield Bench(client, [])
    watch.turn_off()


def told(caplog: pytest.LogCaptureFixture) -> list[list[str]]:
    """The payouts of each record of the log."""
    return [[line.payout for line in row.decisions] for row in caplog.records if hasattr(row, "decisions")]


async def test_small_batches_are_told_of_together_while_redis_has_the_next(
    bench: Bench, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    for n in range(3):
        await bench.decide(observed(f"pout_{n}", 10))
    assert told(caplog) == []

    monkeypatch.setattr(batch_telemetry, "TOGETHER_S", 0.0)
    await bench.decide(observed("pout_3", 10))
    assert told(caplog) == [["pout_0", "pout_1", "pout_2"]]

    bench.handler.telemetry.record()
    assert told(caplog)[1:] == [["pout_3"]]


async def test_so_many_are_told_of_without_waiting_any_longer(
    bench: Bench, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batch_telemetry, "UNRECORDED_MAX", 2)
    await bench.decide(observed("pout_0", 10), observed("pout_1", 20))
    await bench.decide(observed("pout_2", 10))
    await bench.decide(observed("pout_3", 10))
    assert told(caplog) == [["pout_0", "pout_1"]]
    await bench.decide(observed("pout_4", 10))
    assert told(caplog)[1:] == [["pout_2", "pout_3"]]


async def test_what_the_chain_decides_is_told_of_after_the_fast_path_before(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    """The second one finds no slot, and `on_rate_limit: hold` is the chain's."""
    await bench.decide(observed("pout_0", 10, agent="careful"))
    await bench.decide(observed("pout_1", 10, agent="careful"))
    assert told(caplog) == [["pout_0"], ["pout_1"]]


async def test_it_is_told_of_in_time_while_the_same_worker_waits_for_others(
    bench: Bench, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batch_telemetry, "UNRECORDED_S", 0.01)
    await bench.decide(observed("pout_0", 10))
    async with asyncio.timeout(DEADLINE_S):
        while told(caplog) != [["pout_0"]]:
            await asyncio.sleep(0.01)


async def test_when_nothing_else_comes_it_is_told_of(
    bench: Bench, redis_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with Engine(redis_url) as engine:
        await engine.settled()  # what was skipped before is acknowledged, so nothing but quiet is waited for
        await engine.append(ACCOUNT, observed("pout_0", 10))
        async with asyncio.timeout(DEADLINE_S):
            while told(caplog) != [["pout_0"]]:
                await asyncio.sleep(0.01)


async def test_what_comes_as_a_worker_is_told_to_stop_is_told_of(
    bench: Bench, redis_url: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = Redis.client_unblock

    async def too_late(client: Redis, *args: Any) -> Any:
        await engine.append(ACCOUNT, observed("pout_0", 10))
        return await real(client, *args)

    async with Engine(redis_url) as engine:
        await engine.settled()
        monkeypatch.setattr(Redis, "client_unblock", too_late)
    assert told(caplog) == [["pout_0"]]
