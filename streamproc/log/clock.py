"""Redis's clock, by which all that is recorded is dated, whichever host records it."""

import logging
import time

from redis.asyncio import Redis

from streamproc.host_clock import host_clock_us
from streamproc.log.connection import named_errors

log = logging.getLogger(__name__)

CLOCK_SYNC_S = 10.0
"""Interval at which Redis's clock is asked; in between it is extrapolated by our monotonic one."""
CLOCK_STEP_S = 10.0
"""Our idea of Redis's clock is off by more only if this host slept, Redis was away when we started, or Redis is another
server now."""


async def clock_us(client: Redis) -> int:
    """µs since 1970 by Redis's clock."""
    with named_errors():
        seconds, micros = await client.time()
    return int(seconds) * 1_000_000 + int(micros)


class Clock:
    """Redis's clock, asked now and then and extrapolated by the monotonic clock in between."""

    def __init__(self) -> None:
        self._offset_us = host_clock_us() - time.monotonic_ns() // 1000
        self._synced_at = float("-inf")
        self._host_s = 0.0
        self.steps = 0
        """How often it was found to be off: what was told before that is wrong."""

    def now_us(self) -> int:
        """µs since 1970 by Redis's clock, as far as it is known."""
        return time.monotonic_ns() // 1000 + self._offset_us

    def set(self, redis_now_us: int, waited_us: int = 0) -> None:
        """Take in what Redis's clock said at some moment of the last `waited_us`."""
        off_us = redis_now_us - self.now_us()
        off_us = max(off_us, min(0, off_us + waited_us))  # what the answer allows stays as it was
        self._offset_us += off_us
        if abs(off_us) > CLOCK_STEP_S * 1e6:
            self.steps += 1
            log.warning("Redis's clock is %.0f s from what it was taken to be", off_us / 1e6)
        self._synced_at = time.monotonic()
        self._host_s = time.time() - self._synced_at

    def is_stale(self) -> bool:
        """Whether it is time to ask again: after a while, or when this host's clock has left our monotonic one, which
        stands still while the host sleeps."""
        now = time.monotonic()
        has_slept = abs(time.time() - now - self._host_s) > CLOCK_STEP_S
        return has_slept or now - self._synced_at > CLOCK_SYNC_S

    def doubt(self) -> None:
        """Treat the clock as unknown, since another server may be Redis now: `sync` comes before its next use."""
        self._synced_at = float("-inf")

    async def sync(self, client: Redis) -> None:
        """Ask Redis for its time, and keep how far it is from our clocks. Raises LogUnavailable."""
        asked_ns = time.monotonic_ns()
        now_us = await clock_us(client)
        self.set(now_us, (time.monotonic_ns() - asked_ns) // 1000)
