"""A token's rate is a window that slides: never more than its number in any minute, whatever the clock does."""

import asyncio

import pytest
from redis.asyncio import Redis

from streamproc.log.connection import connected
from streamproc.log.names import SHARED_PARTITION, Names
from streamproc.log.tokens import take_request

WINDOW_US = 60_000_000
KEY = Names(SHARED_PARTITION).asked("t")


@pytest.fixture
async def client(redis_url: str):
    async with connected(redis_url) as client:
        yield client


async def take(client: Redis, number: int = 3, token: str = "t") -> int:
    return await take_request(client, token, per_min=number, reads=False)


async def times(client: Redis) -> list[int]:
    return [int(at) for at in await client.lrange(KEY, 0, -1)]


async def moved(client: Redis, index: int, by_us: int) -> None:
    """As if the clock had gone by so much since then."""
    await client.lset(KEY, index, (await times(client))[index] + by_us)


async def test_the_number_is_taken_and_the_next_waits_until_the_first_leaves_the_window(client: Redis):
    assert [await take(client) for _ in range(3)] == [0, 0, 0]
    assert WINDOW_US - 30_000_000 < await take(client) <= WINDOW_US
    assert len(await times(client)) == 3
    assert 0 < await client.pttl(KEY) <= 60_000


async def test_a_request_leaves_the_window_by_its_own_age_and_not_at_the_turn_of_a_minute(client: Redis):
    for _ in range(3):
        await take(client)
    await moved(client, 2, -WINDOW_US + 1_000_000)
    assert 0 < await take(client) <= 1_000_000
    await moved(client, 2, -1_000_000)
    assert [await take(client), await take(client) > 0] == [0, True]
    assert len(await times(client)) == 3


async def test_tokens_do_not_wait_for_each_other(client: Redis):
    for _ in range(3):
        await take(client)
    assert await take(client, token="other") == 0


async def test_of_many_at_once_the_number_is_taken(redis_url: str):
    async def one() -> int:
        async with connected(redis_url) as client:
            return await take(client, 5)

    waits = await asyncio.gather(*(one() for _ in range(20)))
    assert waits.count(0) == 5


async def test_another_number_counts_at_once(client: Redis):
    for _ in range(4):
        await take(client, 4)
    assert await take(client, 2) > 0
    assert await take(client, 5) == 0


async def test_a_clock_that_went_back_a_little_frees_nothing_and_one_that_went_far_back_locks_nobody_out(
    client: Redis,
):
    for _ in range(3):
        await take(client)
    for index in range(3):
        await moved(client, index, 20_000_000)
    assert await take(client) > 0
    for index in range(3):
        await moved(client, index, 10 * WINDOW_US)
    assert await take(client) == 0
