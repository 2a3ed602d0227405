"""Connections do what their owners say: a command that is cancelled is cancelled, whenever that comes."""

import asyncio

import pytest

from streamproc.log.connection import connect, connected

TURNS_MAX = 12
"""Turns of the loop in which a command is written and answered."""


async def test_a_task_that_is_cancelled_while_it_writes_a_command_ends(redis_url: str) -> None:
    failed = asyncio.Event()

    async def forever() -> None:
        async with connected(redis_url) as client:
            while not failed.is_set():
                await client.ping()

    for n in range(20 * TURNS_MAX):
        task = asyncio.create_task(forever())
        for _ in range(n):
            await asyncio.sleep(0)
        task.cancel()
        done, _ = await asyncio.wait({task}, timeout=5)
        if not done:
            failed.set()
            await task
        assert done, f"cancelled after {n} turns of the loop, and it went on"
        assert task.cancelled()


@pytest.mark.parametrize(
    ("url", "scheme"), [("redis://h", "redis"), ("rediss://h", "rediss"), ("unix:///tmp/s", "unix")]
)
async def test_every_scheme_gets_a_connection_that_can_be_cancelled(url: str, scheme: str) -> None:
    client = connect(url)
    assert client.connection_pool.connection_class.__doc__ == f"{scheme}://"
    await client.aclose()
