"""All processes' breakers, in one place for operators: each process reports its own, doctor and `/readyz` read them."""

import asyncio
import time
from collections.abc import Mapping
from contextlib import suppress
from typing import NamedTuple

from streamproc.clients.breaker import Breaker
from streamproc.errors import LogUnavailable
from streamproc.log.word import SAY_EVERY_S, BreakerWord, heard_breakers, say_breakers
from streamproc.waiting import set_within


class Open(NamedTuple):
    """The open breakers, in words, and how many breakers were reported."""

    detail: str
    heard: int


async def say_until(url: str, process: str, breakers: Mapping[str, Breaker], stopping: asyncio.Event) -> None:
    """Report these breakers, by the name of the system, until `stopping`."""
    while not stopping.is_set():
        now_s = int(time.time())
        words = [
            BreakerWord(process, system, breaker.state, int(breaker.opened_for_s), now_s)
            for system, breaker in breakers.items()
        ]
        with suppress(LogUnavailable):
            await say_breakers(url, process, words)
        await set_within(stopping, SAY_EVERY_S)


async def open_breakers(url: str) -> Open:
    """The breakers that are open. Raises LogUnavailable."""
    heard = await heard_breakers(url)
    texts = [
        f"{word.system} {word.state} since {word.opened_for_s} s in {word.process}"
        for word in heard
        if word.state == "open"  # half open: the next call tries it, and nothing has to wait
    ]
    return Open("; ".join(texts), len(heard))
