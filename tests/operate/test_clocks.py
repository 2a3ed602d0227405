"""What processes say of themselves is judged by Redis's clock, whatever their hosts' clocks and the reader's say."""

import asyncio
import time

import msgspec
import pytest

from streamproc.clients.breaker import Breaker
from streamproc.ingress.razorpay_poll import Pass
from streamproc.log.breaker_reports import BreakerReport, report_breakers
from streamproc.log.clock import clock_us
from streamproc.log.connection import connected
from streamproc.log.cursor import PollCursor
from streamproc.log.lease import Lease
from streamproc.log.names import SHARED_PARTITION, Names
from streamproc.operate.breakers import open_breakers, report_until
from streamproc.operate.poller_role import teller
from streamproc.operate.polling import FAILING_S_MAX, poller_view
from streamproc.settings import load
from tests.bank import until
from tests.words import ACCOUNT

OFF_S = [300.0, -300.0]


def host_off_by(monkeypatch: pytest.MonkeyPatch, seconds: float) -> None:
    real = time.time
    monkeypatch.setattr(time, "time", lambda: real() + seconds)


@pytest.mark.parametrize("off_s", OFF_S)
async def test_an_open_breaker_of_a_host_with_another_clock_is_shown(
    redis_url: str, monkeypatch: pytest.MonkeyPatch, off_s: float
) -> None:
    breaker = Breaker(failures_max=1, open_s=3_600.0)
    ticket = breaker.begin()
    assert ticket is not None
    breaker.failed(ticket)
    stopping = asyncio.Event()
    with monkeypatch.context() as there:
        host_off_by(there, off_s)
        reporting = asyncio.create_task(report_until(redis_url, "worker-1", {"bank": breaker}, stopping))

        async def is_reported() -> bool:
            async with connected(redis_url) as client:
                return bool(await client.exists(Names(SHARED_PARTITION).breakers))

        await until(is_reported, what="the breaker is reported")
        stopping.set()
        await reporting
    assert "bank open" in (await open_breakers(redis_url)).detail


@pytest.mark.parametrize("off_s", OFF_S)
async def test_a_breaker_that_was_reported_just_now_is_shown_whatever_the_readers_clock_says(
    redis_url: str, monkeypatch: pytest.MonkeyPatch, off_s: float
) -> None:
    await report_breakers(redis_url, "worker-1", [BreakerReport("worker-1", "bank", "open", 3)])
    host_off_by(monkeypatch, off_s)
    assert (await open_breakers(redis_url)).reported == 1


async def test_after_redis_clock_went_back_a_process_that_died_before_is_not_shown_until_it_comes_there_again(
    redis_url: str,
) -> None:
    async with connected(redis_url) as client:
        hour_later_s = await clock_us(client) // 1_000_000 + 3_600
        said = [BreakerReport("worker-1", "bank", "open", 3, said_at=hour_later_s)]
        await client.hset(Names(SHARED_PARTITION).breakers, "worker-1", msgspec.json.encode(said))
    assert (await open_breakers(redis_url)).reported == 0


@pytest.mark.parametrize("off_s", OFF_S)
async def test_a_poller_is_late_by_redis_clock_and_by_no_hosts(
    redis_url: str, monkeypatch: pytest.MonkeyPatch, off_s: float
) -> None:
    settings = load({"STREAMPROC_REDIS_URL": redis_url, "STREAMPROC_RAZORPAY_ACCOUNT_ID": ACCOUNT})
    cursor = PollCursor(redis_url, account=ACCOUNT, partitions=1)
    async with connected(redis_url) as client:
        now_us = await clock_us(client)
    tell = teller(cursor, Lease(redis_url, Names(0), "poll", "host-1"), lambda: now_us)
    await tell(Pass(to_s=now_us // 1_000_000), 0, 10.0)
    host_off_by(monkeypatch, off_s)
    assert (await poller_view(settings)).ok


async def test_after_redis_clock_went_back_a_poller_that_died_before_is_late_before_it_comes_there_again(
    redis_url: str,
) -> None:
    """It was said to poll for as long as the clock went back."""
    settings = load({"STREAMPROC_REDIS_URL": redis_url, "STREAMPROC_RAZORPAY_ACCOUNT_ID": ACCOUNT})
    cursor = PollCursor(redis_url, account=ACCOUNT, partitions=1)
    async with connected(redis_url) as client:
        now_us = await clock_us(client)
    before_us = now_us + 3_600_000_000
    lease = Lease(redis_url, Names(0), "poll", "host-1")
    await teller(cursor, lease, lambda: before_us)(Pass(to_s=before_us // 1_000_000), 0, 10.0)
    view = await poller_view(settings)
    assert (view.ok, view.detail) == (False, "nobody has polled since Redis's clock went back")
    await teller(cursor, lease, lambda: now_us)(Pass(to_s=now_us // 1_000_000), 0, 10.0)
    assert (await poller_view(settings)).ok


async def test_a_poller_that_fails_is_bad_soon_after_redis_clock_went_back(redis_url: str) -> None:
    """It was said to fail since a time that was still to come."""
    settings = load({"STREAMPROC_REDIS_URL": redis_url, "STREAMPROC_RAZORPAY_ACCOUNT_ID": ACCOUNT})
    async with connected(redis_url) as client:
        now_us = await clock_us(client)
    clock_s = iter([3_600, int(-FAILING_S_MAX) - 1, 0])  # from Redis's clock as it is now, at each pass
    cursor = PollCursor(redis_url, account=ACCOUNT, partitions=1)
    tell = teller(
        cursor, Lease(redis_url, Names(0), "poll", "host-1"), lambda: now_us + next(clock_s) * 1_000_000
    )
    for failures in (1, 2, 3):
        await tell(Pass(to_s=now_us // 1_000_000, problem="away"), failures, 10.0)
    assert not (await poller_view(settings)).ok
