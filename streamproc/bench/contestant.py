"""A contestant is a process of its own, so that its CPU time is its own: ready, go, stop, what it cost.

The contest talks to it in lines: it says `{"ready": true}`, waits for `go`, works until `stop`, and then says what CPU
time it used in between.
"""

import asyncio
import json
import resource
import sys
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, TypeVar

Read = TypeVar("Read")
Decided = TypeVar("Decided")

GO, STOP = b"go\n", b"stop\n"
UNDER_WAY_MAX = 2
"""Batches: one is inserted while the next is committed. More would only wait."""


async def compete(work: Coroutine[Any, Any, object], **facts: int) -> None:
    """Run `work`, which never ends by itself, between `go` and `stop`; `facts` go into the answer.

    A coroutine, since a task would begin before `go`, ahead by the time that other contestants take to start.
    """
    orders = await _orders()
    say({"ready": True})
    await _heard(orders, GO)
    before = _cpu_s()
    working, stopped = asyncio.create_task(work), asyncio.create_task(_heard(orders, STOP))
    await asyncio.wait({working, stopped}, return_when=asyncio.FIRST_COMPLETED)
    used = _cpu_s() - before
    if working.done():
        working.result()
        raise RuntimeError("the work ended before it was told to")
    say({"cpu_s": used, **facts})
    working.cancel()
    await asyncio.gather(working, return_exceptions=True)


async def overlapping(
    read: Callable[[], Coroutine[Any, Any, Read]],
    decide: Callable[[Read], Awaitable[Decided | None]],
    finish: Callable[[Decided], Coroutine[Any, Any, None]],
) -> None:
    """Read, decide and finish batches until cancelled. The next one is read meanwhile, and UNDER_WAY_MAX are finished
    at once; what `decide` gives None for is nothing to finish."""
    under_way: deque[asyncio.Task[None]] = deque()
    reading = asyncio.create_task(read())
    while True:
        entries = await reading
        reading = asyncio.create_task(read())
        batch = await decide(entries)
        if batch is None:
            continue
        if len(under_way) == UNDER_WAY_MAX:
            await under_way.popleft()
        under_way.append(asyncio.create_task(finish(batch)))
        await asyncio.sleep(0)  # so that it is sent before the next batch is decoded


def say(what: dict[str, Any]) -> None:
    """One line to the contest."""
    sys.stdout.write(json.dumps(what) + "\n")
    sys.stdout.flush()


async def _orders() -> asyncio.StreamReader:
    reader = asyncio.StreamReader()
    loop = asyncio.get_running_loop()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    return reader


async def _heard(orders: asyncio.StreamReader, wanted: bytes) -> None:
    line = await orders.readline()
    if line != wanted:
        raise RuntimeError(f"expected {wanted!r}, was told {line!r}")


def _cpu_s() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime
