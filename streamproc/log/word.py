"""The state of each process's breakers, kept in Redis for a while, so that operators can ask any process."""

import time
from typing import Any

import msgspec
from msgspec import Struct

from streamproc.log.connection import connected, named_errors
from streamproc.log.names import Names
from streamproc.log.pace import HOME

SAY_EVERY_S = 5.0
"""Interval at which a process reports."""
HEARD_S = 20.0
"""Reports older than this do not count: the process died, or hangs."""
FORGOTTEN_S = 3600.0
"""Reports older than this are removed."""


class BreakerWord(Struct, frozen=True):
    """A breaker of a process. `state` is closed, open or half_open; `said_at` is Unix seconds of that host."""

    process: str
    system: str
    state: str
    opened_for_s: int
    said_at: int = 0


async def say_breakers(url: str, process: str, breakers: list[BreakerWord]) -> None:
    """Report this process's breakers. Raises LogUnavailable."""
    async with connected(url) as client:
        with named_errors():
            await client.hset(Names(HOME).words, process, msgspec.json.encode(breakers))


async def heard_breakers(url: str) -> list[BreakerWord]:
    """The recent reports of all processes. Raises LogUnavailable."""
    heard: list[BreakerWord] = []
    now_s = time.time()
    async with connected(url) as client:
        with named_errors():
            words: dict[Any, Any] = await client.hgetall(Names(HOME).words)
        for process, word in words.items():
            breakers = msgspec.json.decode(word, type=list[BreakerWord])
            age_s = now_s - max((breaker.said_at for breaker in breakers), default=0)
            heard += breakers if age_s <= HEARD_S else []
            if age_s > FORGOTTEN_S:
                with named_errors():
                    await client.hdel(Names(HOME).words, process)
    return heard
