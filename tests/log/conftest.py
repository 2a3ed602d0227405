"""What most tests of the log begin with: a log of one partition, with a group."""

from collections.abc import AsyncIterator, Sequence
from typing import Any

import pytest
from redis.asyncio import Redis

from streamproc.log import unasked
from streamproc.log.connection import connected
from streamproc.log.scripts import Script
from streamproc.log.stream import open_log
from tests.log.offering import POLICIES, SCRIPTS, Bench, pay
from tests.words import apply_policies


@pytest.fixture
async def client(redis_url: str) -> AsyncIterator[Redis]:
    """A client of a Valkey that has nothing but the log, with the group `g`."""
    async with connected(redis_url) as client:
        await open_log(client, partitions=1, groups=["g"])
        yield client


@pytest.fixture
def called(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The scripts that are called, in order."""
    names: list[str] = []
    real = Script.__call__

    async def heard(script: Script, client: Redis, keys: Sequence[str], args: Sequence[Any]) -> Any:
        names.append(SCRIPTS.get(script.sha, "another"))
        return await real(script, client, keys, args)

    monkeypatch.setattr(Script, "__call__", heard)
    return names


@pytest.fixture
async def bench(redis_url: str, called: list[str], monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Bench]:
    """Whose payee was paid, and is remembered, so long ago that the script looks again."""
    monkeypatch.setattr(unasked, "BELIEVED_S", 0.0)
    async with connected(redis_url) as client:
        bench = Bench(client, called)
        await open_log(client, partitions=1, groups=[bench.handler.group.name])
        await apply_policies(client, POLICIES)
        for n in range(2):  # the first one is noted, the second one is found noted
            await bench.decide(pay(f"pout_a{n}", agent="easy"))
        yield bench
