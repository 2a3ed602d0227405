"""The sandbox's heartbeat ends when it is told to, at whatever moment that comes."""

import asyncio

import pytest

from ops.sandbox.config import SandboxConfig
from ops.sandbox.world import World
from tests.deadline import DEADLINE_S


@pytest.mark.parametrize("steps", range(6))
async def test_it_ends_also_where_it_is_told_to_just_as_something_wakes_it(steps: int) -> None:
    world = World(SandboxConfig())
    beating = asyncio.create_task(world.beat())
    for _ in range(10):  # until it waits
        await asyncio.sleep(0)
    world.settle()
    for _ in range(steps):
        await asyncio.sleep(0)
    beating.cancel()
    done, _ = await asyncio.wait({beating}, timeout=DEADLINE_S)
    assert done
    await world.close()
