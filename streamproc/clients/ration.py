"""Turns for calls that had rather not be made than late: a turn that nobody wants by the time it comes is not taken.

Payouts wait for such calls, and so do those of the same batch that need none. So calls wait for turns only once in a
while: waiting makes no turns, and a flood of new questions would make every batch wait.
"""

import asyncio
from collections.abc import Awaitable
from typing import Protocol

from streamproc.errors import LogBroken, LogUnavailable, TryAgain

NONE_FREE = "no turn for a call came in time"


class NoneFree(TryAgain):
    """No turn was taken: none comes in time."""


class Take(Protocol):
    """Takes the next turn if it comes within `within_s` seconds, with `beside` more that are free by then."""

    def __call__(self, *, within_s: float, beside: int = 0) -> Awaitable[tuple[bool, float]]:
        """Whether it was taken, and the seconds until it comes or, if not, until one could be taken on these terms.
        Raises LogUnavailable and LogBroken."""
        ...


PAUSE_S = 15.0
"""After calls waited for turns, none does for so long."""
LOOK_AGAIN_S = 0.05
"""Least time between two looks for turns by a call that waits until several are free."""


class Ration:
    """Turns by `take`. After it refused one that does not wait, none like it is asked for until it could be given: of
    a flood of calls that will not be made, one asks."""

    def __init__(self, take: Take) -> None:
        self._take = take
        self._impatient_until = 0.0
        """By the event loop's clock, as the others."""
        self._refused_beside = 0
        self._refused_until = float("-inf")

    def patience(self, wait_s: float) -> float:
        """Until when calls that begin now may wait for turns, by the event loop's clock: `wait_s` from now; 0 if others
        waited less than PAUSE_S ago."""
        now = asyncio.get_running_loop().time()
        return now + wait_s if now >= self._impatient_until else 0.0

    async def turn(self, by: float = 0.0, *, beside: int = 0) -> None:
        """Take a turn and wait for it, until `by`; after that it must be free at once. Where so many more must be free
        `beside` it, it is taken once they are, and until then is anybody's. Raises NoneFree, and TryAgain if turns
        cannot be counted now: uncounted calls could exceed the rate."""
        loop = asyncio.get_running_loop()
        waits = by > loop.time()
        if not waits and beside >= self._refused_beside and loop.time() < self._refused_until:
            raise NoneFree(NONE_FREE)
        while True:
            within_s = 0.0 if beside else max(0.0, by - loop.time())
            taken, wait_s = await self._asked(within_s, beside)
            if waits and (wait_s or not taken):
                self._impatient_until = loop.time() + PAUSE_S
            if taken:
                break
            wait_s = max(wait_s, LOOK_AGAIN_S)
            if not (waits and beside) or loop.time() + wait_s > by:
                self._refused_beside, self._refused_until = beside, loop.time() + within_s + wait_s
                raise NoneFree(NONE_FREE)
            await asyncio.sleep(wait_s)
        if wait_s > 0:
            await asyncio.sleep(wait_s)

    async def _asked(self, within_s: float, beside: int) -> tuple[bool, float]:
        try:
            return await self._take(within_s=within_s, beside=beside)
        except (LogUnavailable, LogBroken) as problem:
            raise TryAgain(f"no turn for a call can be counted: {problem}") from problem


class Unlimited:
    """The `RateLimiter` of a client whose calls have their turns before they are made."""

    queued = 0

    def wait_s(self, *, urgent: bool = False) -> float:
        """Nothing."""
        return 0.0

    async def take(self, *, urgent: bool = False) -> None:
        """Nothing is waited for."""

    async def put_off(self, seconds: float) -> None:
        """Nothing: no call waits here."""
