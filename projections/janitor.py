"""The janitor: beside each partition's projector, which knows the checkpoint, it trims the log every now and then.

What may go is decided by the log itself in one step (streamproc/log/lua/trim.lua). A janitor that cannot work waits and
says so; it never stops the projector.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable

from msgspec import Struct

from projections.outage import Outage
from streamproc.errors import LogBroken, LogUnavailable

AGAIN_S = 1.0
"""Between two rounds while there is more to trim than one round does."""

log = logging.getLogger(__name__)


class Round(Struct, frozen=True):
    """What one bounded round did. `more`: it ended by its bound, not because nothing was left."""

    removed: int
    more: bool


class Janitor(Struct, frozen=True):
    """`trim` does a round on a partition whose last archived entry it is given."""

    interval_s: float
    trim: Callable[[int, str], Awaitable[Round]]


async def keep_trimmed(
    partition: int, janitor: Janitor, anchor: Callable[[], str], stopping: asyncio.Event
) -> None:
    """Trim every `interval_s` until `stopping`, up to what `anchor` says is archived by then."""
    outage, said = Outage(f"janitor of partition {partition}"), ""
    wait_s = janitor.interval_s
    while not await _stopped(stopping, wait_s):
        wait_s = janitor.interval_s
        try:
            done = await janitor.trim(partition, anchor())
        except LogUnavailable as problem:
            await outage.wait(problem, stopping)
            continue
        except LogBroken as problem:
            if said != (said := str(problem)):
                log.error("janitor of partition %d: %s", partition, problem)
            continue
        outage.over()
        said = ""
        if done.removed:
            log.info("janitor of partition %d: %d entries trimmed", partition, done.removed)
        if done.more:
            wait_s = min(wait_s, AGAIN_S)


async def _stopped(stopping: asyncio.Event, within_s: float) -> bool:
    try:
        async with asyncio.timeout(within_s):
            await stopping.wait()
    except TimeoutError:
        return False
    return True
