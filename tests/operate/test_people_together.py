"""What all processes that tell people do together: they keep one pace at Slack."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack

import pytest
from redis.asyncio import Redis

from streamproc.clients.slack import CALLS_BURST, CALLS_PER_S
from streamproc.errors import TryAgain
from streamproc.log.clock import clock_us
from streamproc.log.names import SHARED_PARTITION, Names
from streamproc.operate.people import PACE, opened_channels
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


async def test_without_redis_no_message_is_sent_uncounted() -> None:
    async with people(redis_url="redis://127.0.0.1:1/0") as alone:
        assert alone.channels.slack is not None
        with pytest.raises(TryAgain, match="no turn for a call can be counted"):
            await alone.channels.slack.answer("U0ASHA", "It does not count")
        assert await alone.slack() == []
