"""The start of most tests of the log: a log of one partition, with a group."""

from collections.abc import AsyncIterator

import pytest
from redis.asyncio import Redis

from streamproc.log.connection import connected
from streamproc.log.stream import open_log


@pytest.fixture
async def client(redis_url: str) -> AsyncIterator[Redis]:
    """A client of a Valkey that has only the log, with the group `g`."""
    async with connected(redis_url) as client:
        await open_log(client, partitions=1, groups=["g"])
        yield client
