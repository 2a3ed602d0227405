"""Opening the log: made once by whoever comes first, and never made again over what was there."""

import asyncio

import pytest
from redis.asyncio import Redis

from streamproc.errors import LogBroken
from streamproc.log.connection import connected
from streamproc.log.names import META, Names
from streamproc.log.stream import open_log

GROUPS = ("governance", "execution")
PROCESSES = 8
"""Roles of a first start, all at once."""
ROUNDS = 10
NAMES = Names(0)


async def test_processes_that_start_together_on_an_empty_redis_all_open_the_log(redis_url: str) -> None:
    async def one(steps_late: int) -> None:
        async with connected(redis_url) as client:
            for _ in range(steps_late):  # one round trip each, so that all their steps meet in many orders
                await client.ping()
            await open_log(client, partitions=1, groups=GROUPS)

    async with Redis.from_url(redis_url) as client:
        for _ in range(ROUNDS):
            await asyncio.gather(*(one(late) for late in range(PROCESSES)))
            groups = await client.xinfo_groups(NAMES.log)
            assert {row["name"].decode() for row in groups} == set(GROUPS)
            await client.delete(META, NAMES.log, NAMES.groups)


@pytest.mark.parametrize("lost", GROUPS)
async def test_a_group_that_was_there_and_is_gone_is_an_alarm(redis_url: str, lost: str) -> None:
    async with connected(redis_url) as client:
        await open_log(client, partitions=1, groups=GROUPS)
        await client.xgroup_destroy(NAMES.log, lost)

        with pytest.raises(LogBroken, match=lost):
            await open_log(client, partitions=1, groups=GROUPS)


async def test_a_group_made_by_a_process_that_died_before_it_was_marked_is_marked_then(
    redis_url: str,
) -> None:
    async with connected(redis_url) as client:
        await client.xgroup_create(NAMES.log, "governance", id="0", mkstream=True)
        await open_log(client, partitions=1, groups=GROUPS)
        await client.xgroup_destroy(NAMES.log, "governance")

        with pytest.raises(LogBroken, match="governance"):
            await open_log(client, partitions=1, groups=GROUPS)
