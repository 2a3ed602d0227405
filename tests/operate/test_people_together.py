"""What all processes that tell people do together: they keep one pace at Slack."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from itertools import pairwise

import pytest
from msgspec.structs import replace
from redis.asyncio import Redis

from streamproc.clients.slack import CALLS_BURST, CALLS_PER_S, WAIT_S_MAX
from streamproc.errors import TryAgain
from streamproc.log.clock import clock_us
from streamproc.log.names import SHARED_PARTITION, Names
from streamproc.log.pace import PAUSE_S_MAX, Pace
from streamproc.operate.people import PACE, opened_channels
from tests.clients.loopback import always, loopback
from tests.people import People, people

CALLS = 6


@pytest.fixture
async def told(redis_url: str) -> AsyncIterator[People]:
    async with people(redis_url=redis_url) as found:
        yield found


async def test_processes_together_take_turns_at_slack_at_one_pace(redis_url: str, told: People) -> None:
    """Each kept a pace of its own: of a flood, four of them sent four messages a second, until Slack refused them."""
    async with AsyncExitStack() as stack, Redis.from_url(redis_url) as client:
        both = (told.channels, opened_channels(told.settings, stack, {}))
        began_us = await clock_us(client)
        for n in range(CALLS):
            room = both[n % 2].slack
            assert room is not None
            await room.answer("U0ASHA", "It does not count")
        next_us = int(await client.get(Names(SHARED_PARTITION).pace(PACE)) or 0)
    assert len(await told.slack()) == CALLS
    assert next_us - began_us >= (CALLS - (CALLS_BURST - 1)) * 1_000_000 / CALLS_PER_S


async def test_what_slack_asks_one_process_to_wait_for_all_of_them_wait(redis_url: str) -> None:
    """Each was told so by a call of its own, and what it said went to ntfy, which has no buttons."""
    before, other = [Pace(redis_url, name=PACE, per_s=1.0, burst=20) for _ in range(2)]
    async with Redis.from_url(redis_url) as client:
        now_us = await clock_us(client)
        await before.put_off(40.0)
        await other.put_off(5.0)  # is not the end of a longer one
        assert 30.0 < await other.pause_s() <= 40.0
        next_us = int(await client.get(Names(SHARED_PARTITION).pace(PACE)) or 0)
        assert next_us >= now_us + 40_000_000  # no twenty turns at once after the rest
        await before.put_off(900.0)
        assert 40.0 < await other.pause_s() <= PAUSE_S_MAX
        await client.delete(Names(SHARED_PARTITION).pause(PACE))
        assert await other.pause_s() == 0.0
    for pace in (before, other):
        await pace.aclose()


async def test_a_call_that_races_a_pause_has_its_turn_after_it(redis_url: str) -> None:
    """In one of more than half a minute it had it at once: so long a wait was held to be of another clock."""
    pace = Pace(redis_url, name=PACE, per_s=1.0, burst=20)
    await pace.put_off(PAUSE_S_MAX)
    assert PAUSE_S_MAX - 5 < await pace.reserve() <= PAUSE_S_MAX
    await pace.put_off(5.0)
    assert PAUSE_S_MAX - 5 < await pace.reserve() <= PAUSE_S_MAX + 1  # turns that are held stay apart
    await pace.aclose()


async def test_a_hundred_processes_keep_one_pace(redis_url: str) -> None:
    """Beyond thirty each further one called at once."""
    pace = Pace(redis_url, name=PACE, per_s=1.0, burst=1)
    waits = [await pace.reserve() for _ in range(100)]
    await pace.put_off(1.0)
    waits.append(await pace.reserve())
    assert all(after - before > 0.5 for before, after in pairwise(waits))
    await pace.aclose()


async def test_a_pause_of_before_the_clock_went_back_is_none(redis_url: str) -> None:
    """Nobody was told anything by Slack until the clock was there again."""
    pace = Pace(redis_url, name=PACE, per_s=1.0, burst=1)
    await pace.put_off(20.0)
    async with Redis.from_url(redis_url) as client:
        await client.pexpire(Names(SHARED_PARTITION).pause(PACE), 3_600_000)
    assert await pace.pause_s() == 0.0
    await pace.aclose()


async def test_a_429_of_slack_to_one_process_is_a_pause_for_all(redis_url: str, told: People) -> None:
    refusing = always(429, {"ok": False, "error": "ratelimited"}, retry_after=str(int(WAIT_S_MAX) + 45))
    async with AsyncExitStack() as stack, loopback(refusing) as slack:
        settings = replace(told.settings, slack_base_url=slack.url)
        one, other = (opened_channels(settings, stack, {}).slack for _ in range(2))
        assert one is not None
        assert other is not None
        with pytest.raises(TryAgain, match="answered 429"):
            await one.answer("U0ASHA", "It does not count")
        with pytest.raises(TryAgain, match="a pause of"):
            await other.answer("U0ASHA", "It does not count")
        assert len(slack.asked) == 1


@pytest.mark.parametrize("value", ["", "soon", "nan", "1e400"])
async def test_a_key_of_the_pace_that_is_no_time_is_written_anew(redis_url: str, value: str) -> None:
    """Who asked for a turn failed for good: at the register, payouts that need it became dead letters."""
    names = Names(SHARED_PARTITION)
    async with AsyncExitStack() as stack:
        client = await stack.enter_async_context(Redis.from_url(redis_url))
        pace = Pace(redis_url, name="x", per_s=1, burst=1)
        stack.push_async_callback(pace.aclose)
        await client.set(names.pace("x"), value)
        assert await pace.take(within_s=0) == (True, 0)
        assert not (await pace.take(within_s=0)).taken
        await client.mset({names.pace("x"): value, names.pause("x"): value})
        await pace.put_off(20)
        assert 19 < await pace.pause_s() < 21
        assert 19 < await pace.reserve() < 21


async def test_without_redis_no_message_is_sent_uncounted() -> None:
    async with people(redis_url="redis://127.0.0.1:1/0") as alone:
        assert alone.channels.slack is not None
        with pytest.raises(TryAgain, match="no turn for a call can be counted"):
            await alone.channels.slack.answer("U0ASHA", "It does not count")
        assert await alone.slack() == []
