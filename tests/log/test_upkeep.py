"""A consumer whose process was killed is not counted for long, and not kept for good."""

from collections.abc import AsyncIterator

import pytest
from redis.asyncio import Redis

from streamproc.log import health
from streamproc.log.connection import connected
from streamproc.log.health import group_states
from streamproc.log.names import Names
from streamproc.log.stream import open_log
from streamproc.log.upkeep import Upkeep
from streamproc.log.work import Group
from tests.bank import until

NAMES = Names(0)
GROUP = "governance"
CLAIM_IDLE_S = 1.0


@pytest.fixture
async def client(redis_url: str) -> AsyncIterator[Redis]:
    """A log with a group, of which two consumers were killed: one with an entry in its hands."""
    async with connected(redis_url) as client:
        await open_log(client, partitions=1, groups=[GROUP])
        await client.xadd(NAMES.log, {"e": "[]", "m": "{}"})
        await client.xreadgroup(GROUP, "killed-at-work", {NAMES.log: ">"})
        await client.xgroup_createconsumer(NAMES.log, GROUP, "killed-idle")
        yield client


async def consumers(client: Redis) -> set[str]:
    return {row["name"].decode() for row in await client.xinfo_consumers(NAMES.log, GROUP)}


async def test_who_owns_nothing_is_removed_after_the_claim_time_and_nobody_else(client: Redis) -> None:
    upkeep = Upkeep(NAMES, Group(name=GROUP, stages=()), "me", claim_idle_s=CLAIM_IDLE_S)
    assert await consumers(client) == {"killed-at-work", "killed-idle"}

    async def removed() -> bool:
        await upkeep._remove_stale_consumers(client)
        return "killed-idle" not in await consumers(client)

    await until(removed, what="the idle one is removed")
    assert "killed-at-work" in await consumers(client)


async def test_who_was_heard_of_within_the_claim_time_or_is_oneself_is_not_removed(client: Redis) -> None:
    patient = Upkeep(NAMES, Group(name=GROUP, stages=()), "me", claim_idle_s=3_600.0)
    myself = Upkeep(NAMES, Group(name=GROUP, stages=()), "killed-idle", claim_idle_s=0.0)
    for upkeep in (patient, myself):
        await upkeep._remove_stale_consumers(client)
        assert await consumers(client) == {"killed-at-work", "killed-idle"}


async def test_who_asks_for_nothing_any_more_is_not_counted(
    client: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    [state] = await group_states(client, [0], (GROUP,))
    assert state.consumers == 2
    monkeypatch.setattr(health, "ASKS_MS", 0)
    [state] = await group_states(client, [0], (GROUP,))
    assert (state.consumers, state.pending) == (1, 1)
