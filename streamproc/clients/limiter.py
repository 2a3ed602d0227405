"""Turns for calls to one outside system: first come, first served, with a lane for urgent calls.

An urgent call (rejecting or cancelling races the bank) overtakes waiting calls, but at most every second turn goes
to the urgent lane while others wait, so nobody starves. `Limiter` counts for this process alone; `SharedLimiter` gets
each turn from a counter that all processes share, one at a time, so that they take turns too.
"""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Protocol, TypeAlias

from streamproc.errors import LogBroken, LogUnavailable, TryAgain

QUEUE_MAX = 1_000
"""Waiting calls: two minutes' worth at the 8 a second that the bank advises, longer than any caller waits."""
Reserve: TypeAlias = Callable[[], Awaitable[float]]
"""Reserves the next turn among all processes; returns the seconds until it comes. Raises LogUnavailable."""


class NoTurn(TryAgain):
    """The call was not made, since Redis, which counts the turns of all processes, cannot be asked."""


class NotItsTurn(TryAgain):
    """The call was not made, since its turn did not come within the time that it may wait. Nothing has failed."""


class RateLimiter(Protocol):
    """What a client needs of the limit on its calls."""

    @property
    def queued(self) -> int:
        """Calls that wait for a turn."""
        ...

    def wait_s(self, *, urgent: bool = False) -> float:
        """About how long a call that came now would wait, in seconds."""
        ...

    async def take(self, *, urgent: bool = False) -> None:
        """Wait for a turn. Raises TryAgain if there can be none."""
        ...

    async def put_off(self, seconds: float) -> None:
        """The system asks for no calls for so long."""
        ...


class Pauses(Protocol):
    """Pauses that the outside system asked for, which all processes keep. Each call raises LogUnavailable."""

    async def pause_s(self) -> float:
        """Seconds until it may be called again; 0 if it may now."""
        ...

    async def put_off(self, seconds: float) -> None:
        """Begin a pause."""
        ...


class _Lanes:
    """The calls that wait, in order."""

    def __init__(self) -> None:
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._urgent: deque[asyncio.Future[None]] = deque()
        self._urgent_was_last = False

    def __len__(self) -> int:
        return len(self._waiting) + len(self._urgent)

    def ahead(self, *, urgent: bool) -> int:
        """How many calls would be served before one that came now."""
        return min(2 * len(self._urgent), len(self)) if urgent else len(self)

    def join(self, *, urgent: bool) -> asyncio.Future[None]:
        """Take a place at the end of a lane."""
        place = asyncio.get_running_loop().create_future()
        (self._urgent if urgent else self._waiting).append(place)
        return place

    def leave(self, place: asyncio.Future[None]) -> bool:
        """Give up the place of a call that was cancelled; False if it had its turn already.

        A place that is not in a lane any more may have had none: it was passed over, or refused.
        """
        for lane in (self._urgent, self._waiting):
            if place in lane:
                lane.remove(place)
        return place.cancelled() or place.exception() is not None

    def serve(self) -> bool:
        """Give a turn to the next call; False if none waits."""
        while len(self):
            urgent = bool(self._urgent) and not (self._urgent_was_last and self._waiting)
            place = (self._urgent if urgent else self._waiting).popleft()
            self._urgent_was_last = urgent
            if not place.done():
                place.set_result(None)
                return True
        return False

    def refuse(self, problem: Exception) -> None:
        """Fail every waiting call with `problem`."""
        for lane in (self._urgent, self._waiting):
            while lane:
                place = lane.popleft()
                if not place.done():
                    place.set_exception(problem)


class Limiter:
    """At most `per_s` calls a second in the long run and `burst` at once. For one event loop."""

    def __init__(self, per_s: float, burst: int) -> None:
        if per_s <= 0 or burst < 1:
            raise ValueError(f"a limit of {per_s} calls/s with burst {burst} lets nothing through")
        self._per_s = per_s
        self._burst = burst
        self._tokens = float(burst)
        self._refilled: float | None = None
        self._lanes = _Lanes()
        self._timer: asyncio.TimerHandle | None = None

    @property
    def queued(self) -> int:
        """Calls that wait for a token."""
        return len(self._lanes)

    def wait_s(self, *, urgent: bool = False) -> float:
        """About how long a call that came now would wait, in seconds."""
        self._refill()
        return max(0.0, (self._lanes.ahead(urgent=urgent) + 1 - self._tokens) / self._per_s)

    async def take(self, *, urgent: bool = False) -> None:
        """Wait for a token. Cancelling gives up the place, and gives back a token that was just given."""
        self._refill()
        if self._tokens >= 1 and not self.queued:
            self._tokens -= 1
            return
        place = self._lanes.join(urgent=urgent)
        self._schedule()
        try:
            await place
        except asyncio.CancelledError:
            if not self._lanes.leave(place):
                self._tokens = min(self._burst, self._tokens + 1)
                self._serve()
            raise

    async def put_off(self, seconds: float) -> None:
        """Nothing: other calls are tried, until the breaker opens."""

    def _refill(self) -> None:
        now = asyncio.get_running_loop().time()
        if self._refilled is not None:
            self._tokens = min(self._burst, self._tokens + (now - self._refilled) * self._per_s)
        self._refilled = now

    def _serve(self) -> None:
        self._refill()
        while self._tokens >= 1 and self._lanes.serve():
            self._tokens -= 1
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


class SharedLimiter:
    """Turns of a rate that all processes share. For one event loop.

    It reserves one turn at a time and gives it, when it comes, to the most urgent call that waits then. So a process
    never holds more than one turn, and waiting processes alternate. An urgent call overtakes all calls that wait in
    this process, and waits for at most one turn of each other process.

    `pauses`: during one that the system asked for no call is made, by any process; a turn that comes then lapses.
    Without it only the call is delayed that was answered so. Calls wait for the end of a pause of `patience_s` at most.
    """

    def __init__(
        self, reserve: Reserve, per_s: float, *, pauses: Pauses | None = None, patience_s: float = 0.0
    ) -> None:
        self._reserve, self._pauses, self._patience_s = reserve, pauses, patience_s
        self._least_s = 1 / per_s
        self._spacing_s = self._least_s
        self._lanes = _Lanes()
        self._pump: asyncio.Task[None] | None = None

    @property
    def queued(self) -> int:
        """Calls that wait for a turn here; other processes have queues of their own."""
        return len(self._lanes)

    def wait_s(self, *, urgent: bool = False) -> float:
        """About how long a call that came now would wait, by the recent spacing of turns; 0 if none waits."""
        return self._lanes.ahead(urgent=urgent) * self._spacing_s

    async def take(self, *, urgent: bool = False) -> None:
        """Wait for a turn. Cancelling gives up the place; a turn that was just given passes to the next.

        Raises TryAgain if turns cannot be counted now: uncounted calls could exceed the rate.
        """
        place = self._lanes.join(urgent=urgent)
        if self._pump is None or self._pump.done():
            self._pump = asyncio.create_task(self._serve(), name="turns")
        try:
            await place
        except asyncio.CancelledError:
            if not self._lanes.leave(place):
                self._lanes.serve()
            raise

    async def put_off(self, seconds: float) -> None:
        """Begin a pause, if they are kept. Where Redis is away, or its key is broken, the call has failed all the same
        as it did."""
        if self._pauses is not None:
            with suppress(LogUnavailable, LogBroken):
                await self._pauses.put_off(seconds)

    async def _serve(self) -> None:
        while self.queued:
            try:
                if await self._paused():
                    continue
                wait_s = await self._reserve()
                self._spacing_s = max(self._least_s, wait_s)
                if wait_s > 0:
                    await asyncio.sleep(wait_s)
                    if await self._paused():
                        continue
            except LogUnavailable as problem:
                self._lanes.refuse(NoTurn(f"no turn for a call can be counted: {problem}"))
                return
            except BaseException:
                self._lanes.refuse(TryAgain("no turn for a call can be counted now"))
                raise
            self._lanes.serve()

    async def _paused(self) -> bool:
        """Whether there was a pause; it is over, or the calls were refused that would have waited for too long."""
        pause_s = 0.0 if self._pauses is None else await self._pauses.pause_s()
        if pause_s > self._patience_s:
            self._lanes.refuse(TryAgain(f"a pause of {pause_s:.0f} s was asked for", after_s=pause_s))
        elif pause_s > 0:
            await asyncio.sleep(pause_s)
        return pause_s > 0
