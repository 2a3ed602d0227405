import asyncio
from contextlib import AbstractAsyncContextManager

import pytest
from redis.asyncio import Redis

from streamproc.log import lease as lease_module
from streamproc.log.connection import connected
from streamproc.log.lease import LEASE_S, RENEW_S, Lease, take_lease
from streamproc.log.names import Names
from tests.deadline import DEADLINE_S

NAMES = Names(0)
LEFT_AFTER_TWO_MS = int((LEASE_S - 2 * RENEW_S) * 1000)
"""What is left of a lease after two renewals were lost."""
NOBODY = "redis://127.0.0.1:1/0"


async def test_one_has_it_until_it_gives_it_back_or_its_time_is_over(redis_url: str) -> None:
    async with connected(redis_url) as client:

        async def ask(owner: str, lasts_s: float = LEASE_S) -> tuple[int, str]:
            return await take_lease(client, NAMES, "job", owner, lasts_s=lasts_s)

        assert await ask("a") == (1, "a")
        assert await ask("b") == (0, "a")
        assert await ask("a") == (1, "a")  # renewed, the same term
        assert await ask("b", 0) == (0, "a")  # who has none gives nothing back
        assert await ask("a", 0) == (0, "")
        assert await ask("b") == (2, "b")
        assert 0 < await client.pttl(NAMES.lease("job")) <= LEASE_S * 1000
        await client.delete(NAMES.lease("job"))  # its time is over
        assert await ask("a") == (3, "a")


async def test_a_clock_that_goes_back_leaves_nobody_waiting_for_an_owner_that_died(redis_url: str) -> None:
    hour_ms = 3_600_000
    async with connected(redis_url) as client:

        async def ask(owner: str, lasts_s: float = LEASE_S) -> tuple[int, str]:
            return await take_lease(client, NAMES, "job", owner, lasts_s=lasts_s)

        assert await ask("died") == (1, "died")
        await client.pexpire(NAMES.lease("job"), hour_ms)  # as if the clock had gone back by an hour since
        assert await ask("b", 0) == (0, "died")
        assert await client.pttl(NAMES.lease("job")) > LEASE_S * 1000
        assert await ask("b") == (0, "died")  # it may live, and not know yet
        left_ms = await client.pttl(NAMES.lease("job"))
        assert 0 < left_ms <= LEASE_S * 1000
        await client.pexpire(NAMES.lease("job"), left_ms // 2)
        assert await ask("b") == (0, "died")
        assert await client.pttl(NAMES.lease("job")) <= left_ms // 2  # whoever asks prolongs nothing


async def test_it_is_taken_from_an_owner_that_gives_way_and_from_no_other(redis_url: str) -> None:
    async with connected(redis_url) as client:

        async def ask(owner: str, gives_way: str = "", lasts_s: float = LEASE_S) -> tuple[int, str]:
            return await take_lease(client, NAMES, "job", owner, lasts_s=lasts_s, gives_way=gives_way)

        assert await ask("low-1") == (1, "low-1")
        assert await ask("low-2") == (0, "low-1")
        assert await ask("high-1", "low-") == (2, "high-1")
        assert await ask("low-1") == (0, "high-1")
        assert await ask("high-2", "low-") == (0, "high-1")
        assert await ask("low-1", lasts_s=0) == (0, "high-1")


async def test_a_holder_that_stops_leaves_it_to_the_next_at_once(redis_url: str) -> None:
    first, second = (Lease(redis_url, NAMES, "job", owner) for owner in ("first", "second"))
    stopping = asyncio.Event()
    keeping = asyncio.create_task(first.keep(stopping))
    await asyncio.wait_for(first.asked(), DEADLINE_S)
    assert (first.held, first.term) == (True, 1)
    stopping.set()
    await asyncio.wait_for(keeping, DEADLINE_S)

    stopping = asyncio.Event()
    keeping = asyncio.create_task(second.keep(stopping))
    await asyncio.wait_for(second.asked(), DEADLINE_S)
    assert (second.held, second.term) == (True, 2)
    stopping.set()
    await asyncio.wait_for(keeping, DEADLINE_S)


async def test_while_redis_is_away_nobody_has_it() -> None:
    lease, stopping = Lease(NOBODY, NAMES, "job", "me"), asyncio.Event()
    keeping = asyncio.create_task(lease.keep(stopping))
    await asyncio.wait_for(lease.asked(), DEADLINE_S)
    assert not lease.held
    stopping.set()
    await asyncio.wait_for(keeping, DEADLINE_S)


async def test_it_is_renewed_so_often_that_two_renewals_may_be_lost_and_not_more_often(
    redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    lease, stopping, waited = Lease(redis_url, NAMES, "job", "me"), asyncio.Event(), list[float]()
    async with connected(redis_url) as client:

        async def wait(stopped: asyncio.Event, seconds: float) -> None:
            waited.append(seconds)
            assert await client.pttl(NAMES.lease("job")) > (LEASE_S - RENEW_S) * 1000  # renewed just now
            await client.pexpire(NAMES.lease("job"), LEFT_AFTER_TWO_MS)
            if len(waited) == 3:
                stopped.set()

        monkeypatch.setattr(lease_module, "set_within", wait)
        await asyncio.wait_for(lease.keep(stopping), DEADLINE_S)
        assert not await client.exists(NAMES.lease("job"))
    assert (waited, lease.term) == ([LEASE_S / 3] * 3, 1)


async def test_a_holder_that_cannot_renew_it_has_it_no_longer_and_is_the_next_holder_at_most(
    redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Somebody else may have it by now: two who poll the bank for long would be too many for it."""
    monkeypatch.setattr(lease_module, "RENEW_S", 0.01)
    there = True

    def reached(url: str) -> AbstractAsyncContextManager[Redis]:
        return connected(url if there else NOBODY)

    monkeypatch.setattr(lease_module, "connected", reached)
    lease, stopping = Lease(redis_url, NAMES, "job", "me"), asyncio.Event()

    async def until_held(held: bool) -> None:
        async with asyncio.timeout(DEADLINE_S):
            while lease.held is not held:
                await asyncio.sleep(0.01)

    keeping = asyncio.create_task(lease.keep(stopping))
    await until_held(True)
    there = False
    await until_held(False)
    async with connected(redis_url) as client:
        await client.delete(NAMES.lease("job"))  # its time is over
        assert await take_lease(client, NAMES, "job", "other", lasts_s=0.1) == (2, "other")
    there = True
    await until_held(True)
    assert lease.term == 3
    stopping.set()
    await asyncio.wait_for(keeping, DEADLINE_S)


async def test_who_is_stopped_before_the_first_answer_waits_for_none() -> None:
    """A poller that heard SIGTERM while it was starting waited for ever: found by `tests/faults/test_failover.py`."""
    lease, stopping = Lease(NOBODY, NAMES, "job", "me"), asyncio.Event()
    stopping.set()
    async with asyncio.timeout(DEADLINE_S):
        await asyncio.gather(lease.keep(stopping), lease.asked())
    assert not lease.held
