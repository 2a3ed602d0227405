"""A token bucket for calls to one outside system: first come, first served, with a lane for urgent calls.

An urgent call (cancelling a queued payout races the bank) overtakes waiting calls, but at most every
second token goes to the urgent lane while others wait, so nobody starves.
"""

import asyncio
from collections import deque

QUEUE_MAX = 1_000
"""Waiting calls: at the bank's advised 8 a second that is two minutes, longer than any caller waits."""


class Limiter:
    """At most `per_s` calls a second in the long run and `burst` at once. For one event loop."""

    def __init__(self, per_s: float, burst: int) -> None:
        if per_s <= 0 or burst < 1:
            raise ValueError(f"a limit of {per_s} calls/s with burst {burst} lets nothing through")
        self._per_s = per_s
        self._burst = burst
        self._tokens = float(burst)
        self._refilled: float | None = None
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._urgent: deque[asyncio.Future[None]] = deque()
        self._urgent_was_last = False
        self._timer: asyncio.TimerHandle | None = None

    @property
    def queued(self) -> int:
        """Calls that wait for a token."""
        return len(self._waiting) + len(self._urgent)

    def wait_s(self, *, urgent: bool = False) -> float:
        """About how long a call that came now would wait, in seconds."""
        self._refill()
        ahead = min(2 * len(self._urgent), self.queued) if urgent else self.queued
        return max(0.0, (ahead + 1 - self._tokens) / self._per_s)

    async def take(self, *, urgent: bool = False) -> None:
        """Wait for a token. Cancelling gives up the place, and gives back a token that was just given."""
        self._refill()
        if self._tokens >= 1 and not self.queued:
            self._tokens -= 1
            return
        place = asyncio.get_running_loop().create_future()
        lane = self._urgent if urgent else self._waiting
        lane.append(place)
        self._schedule()
        try:
            await place
        except asyncio.CancelledError:
            self._give_up(place, lane)
            raise

    def _give_up(self, place: asyncio.Future[None], lane: deque[asyncio.Future[None]]) -> None:
        if place in lane:
            lane.remove(place)
            return
        self._tokens = min(self._burst, self._tokens + 1)
        self._serve()

    def _refill(self) -> None:
        now = asyncio.get_running_loop().time()
        if self._refilled is not None:
            self._tokens = min(self._burst, self._tokens + (now - self._refilled) * self._per_s)
        self._refilled = now

    def _serve(self) -> None:
        self._refill()
        while self._tokens >= 1 and self.queued:
            urgent = bool(self._urgent) and not (self._urgent_was_last and self._waiting)
            place = (self._urgent if urgent else self._waiting).popleft()
            self._urgent_was_last = urgent
            if not place.done():
                self._tokens -= 1
                place.set_result(None)
        self._schedule()

    def _schedule(self) -> None:
        """One timer for the next token; the queue needs no task of its own."""
        if self._timer is not None or not self.queued:
            return
        delay_s = max(0.0, (1 - self._tokens) / self._per_s)
        self._timer = asyncio.get_running_loop().call_later(delay_s, self._tick)

    def _tick(self) -> None:
        self._timer = None
        self._serve()
