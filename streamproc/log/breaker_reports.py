"""The state of each process's breakers, kept in Redis for a while, so that operators can ask any process.

Times are of Redis's clock: those of hosts differ, and an open breaker of one that is behind would not be shown.
"""

from typing import Any

import msgspec
from msgspec import Struct

from streamproc.log.connection import session
from streamproc.log.names import SHARED_PARTITION, Names

REPORT_EVERY_S = 5.0
"""Interval at which a process reports, also if nothing changed."""
CURRENT_S = 20.0
"""Reports older than this do not count: the process died, or hangs."""
FORGOTTEN_S = 3600.0
"""Reports older than this are removed."""


class BreakerReport(Struct, frozen=True):
    """A breaker of a process. `state` is closed, open or half_open; `said_at` (Unix s) is set by reporting.

    `zone`: whose days the process charges where a policy names no zone; '' of one that charges nothing.
    """

    process: str
    system: str
    state: str
    opened_for_s: int
    said_at: int = 0
    zone: str = ""


async def report_breakers(url: str, process: str, breakers: list[BreakerReport]) -> None:
    """Report this process's breakers. Raises LogUnavailable."""
    async with session(url) as client:
        now_s, _ = await client.time()
        said = [msgspec.structs.replace(breaker, said_at=int(now_s)) for breaker in breakers]
        await client.hset(Names(SHARED_PARTITION).breakers, process, msgspec.json.encode(said))


async def reported_breakers(url: str) -> list[BreakerReport]:
    """The recent reports of all processes. Raises LogUnavailable."""
    reported: list[BreakerReport] = []
    async with session(url) as client:
        now_s, _ = await client.time()
        found: dict[Any, Any] = await client.hgetall(Names(SHARED_PARTITION).breakers)
        for process, report in found.items():
            breakers = msgspec.json.decode(report, type=list[BreakerReport])
            # Later than now: Redis's clock went back since.
            age_s = abs(int(now_s) - max((breaker.said_at for breaker in breakers), default=0))
            reported += breakers if age_s <= CURRENT_S else []
            if age_s > FORGOTTEN_S:
                await client.hdel(Names(SHARED_PARTITION).breakers, process)
    return reported
