"""The janitor: trims the log at intervals, beside each partition's projector, which knows what is archived.

What may go is decided in Redis in one step (streamproc/log/lua/trim.lua). A janitor that cannot work logs that and
waits; it never stops the projector.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable

from msgspec import Struct

from projections.outage import Outage
from streamproc.errors import LogBroken, LogUnavailable
from streamproc.waiting import set_within

AGAIN_S = 1.0
"""Between two rounds while one round does not remove all that may go."""

log = logging.getLogger(__name__)


class Round(Struct, frozen=True):
    """What one bounded round did. `more`: it ended by its bound, so there may be more to remove."""

    removed: int
    more: bool


class Janitor(Struct, frozen=True):
    """`trim` does one round on a partition, up to the id of the last archived entry."""

    interval_s: float
    trim: Callable[[int, str], Awaitable[Round]]


async def keep_trimmed(
    partition: int, janitor: Janitor, anchor: Callable[[], str], stopping: asyncio.Event
) -> None:
    """Trim every `interval_s` until `stopping`, up to the entry that `anchor` gives as archived last."""
    outage, said = Outage(f"janitor of partition {partition}"), ""
    wait_s = janitor.interval_s
    while not await set_within(stopping, wait_s):
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
