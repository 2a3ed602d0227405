"""A contestant runs in a process of its own, so that its CPU time can be measured.

It exchanges lines with the contest: it writes `{"ready": true}`, waits for `go`, works until `stop`, and then writes
the CPU time that it used in between.
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
"""Batches that are finished at once: one is inserted while the next is committed. More would only wait."""


async def compete(work: Coroutine[Any, Any, object], **facts: int) -> None:
    """Run `work`, which never ends by itself, between `go` and `stop`; `facts` go into the answer.

    `work` is a coroutine, since a task would begin before `go`, while other contestants still start.
    """
    orders = await _orders()
    say({"ready": True})
    await _wait_for(orders, GO)
    before = _cpu_s()
    working, stopped = asyncio.create_task(work), asyncio.create_task(_wait_for(orders, STOP))
    await asyncio.wait({working, stopped}, return_when=asyncio.FIRST_COMPLETED)
    used = _cpu_s() - before
    if working.done():
        working.result()
        raise RuntimeError("the work ended before `stop`")
    say({"cpu_s": used, **facts})
    working.cancel()
    await asyncio.gather(working, return_exceptions=True)


async def overlapping(
    read: Callable[[], Coroutine[Any, Any, Read]],
    decide: Callable[[Read], Awaitable[Decided | None]],
    finish: Callable[[Decided], Coroutine[Any, Any, None]],
) -> None:
    """Read, decide and finish batches until cancelled. The next batch is read meanwhile, and up to UNDER_WAY_MAX are
    finished at once. A batch for which `decide` returns None needs no finishing."""
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
        await asyncio.sleep(0)  # so that this batch is sent before the next one is decoded


def say(what: dict[str, Any]) -> None:
    """Write one line to the contest."""
    sys.stdout.write(json.dumps(what) + "\n")
    sys.stdout.flush()


async def _orders() -> asyncio.StreamReader:
    reader = asyncio.StreamReader()
    loop = asyncio.get_running_loop()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    return reader


async def _wait_for(orders: asyncio.StreamReader, order: bytes) -> None:
    line = await orders.readline()
    if line != order:
        raise RuntimeError(f"expected {order!r}, got {line!r}")


def _cpu_s() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime
