"""The pace of calls to an outside system, kept by all processes together and counted in Redis (ADR 17)."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, NamedTuple

from streamproc.log.connection import connect, named_errors
from streamproc.log.names import SHARED_PARTITION, Names
from streamproc.log.script import Script

PROCESSES_MAX = 240
"""Processes that keep one pace together, each of which holds one turn at most."""
PAUSE_S_MAX = 60.0
"""The longest pause that all processes keep, whatever a system asks for: people wait, and a call is cheap."""

_take_turn, _put_off = Script("take_turn", "checks"), Script("put_off", "checks")


class Turn(NamedTuple):
    """What came of asking for a turn: whether it was taken, and the seconds until it comes or, if it was not, until one
    could be taken on the same terms."""

    taken: bool
    wait_s: float


class Pace:
    """Gives turns at `per_s` a second, `burst` at once after a rest."""

    def __init__(self, url: str, *, name: str, per_s: float, burst: int) -> None:
        self._url = url
        names = Names(SHARED_PARTITION)
        self._turn, self._asked, self._pause = names.pace(name), names.paced(name), names.pause(name)
        self._between_us = max(1, round(1_000_000 / per_s))
        self._longest_s = PROCESSES_MAX / per_s + PAUSE_S_MAX
        """No wait can be longer: all processes have a turn, the first of which comes after a pause."""
        self._burst = burst
        self._client = connect(url)
        self._one = asyncio.Lock()
        """The connection has one command at a time."""

    async def reserve(self) -> float:
        """Take the next turn; the seconds until it has come. Raises LogUnavailable."""
        return (await self.take(within_s=self._longest_s)).wait_s

    async def take(self, *, within_s: float, beside: int = 0) -> Turn:
        """Take the next turn if it comes within so many seconds, with so many more that are free by then. Raises
        LogUnavailable."""
        args = [self._between_us, self._burst, *map(_us, (self._longest_s, within_s)), beside]
        keys = [self._turn, self._asked]
        taken, wait_us = await self._ask(lambda: _take_turn(self._client, keys, args))
        return Turn(bool(taken), wait_us / 1_000_000)

    async def put_off(self, seconds: float) -> None:
        """Give nobody a turn for so long, PAUSE_S_MAX at most. Raises LogUnavailable."""
        longest_us = _us(self._longest_s)
        args = [max(1, _us(seconds)), _us(PAUSE_S_MAX), self._between_us, self._burst, longest_us]
        keys = [self._turn, self._asked, self._pause]
        await self._ask(lambda: _put_off(self._client, keys, args))

    async def pause_s(self) -> float:
        """Seconds until turns are given again; 0 if they are. Raises LogUnavailable."""
        left_s = int(await self._ask(lambda: self._client.pttl(self._pause))) / 1_000
        if left_s > PAUSE_S_MAX + 1:
            return 0.0  # of before the clock went back: it would last until the clock is there again
        return min(max(0.0, left_s), PAUSE_S_MAX)

    async def _ask(self, call: Callable[[], Awaitable[Any]]) -> Any:
        async with self._one:
            try:
                with named_errors():
                    return await call()
            except BaseException:
                # A reply may still be on its way on this connection: never use it again.
                await self._client.aclose()
                self._client = connect(self._url)
                raise

    async def aclose(self) -> None:
        """Close the connection."""
        await self._client.aclose()


def _us(seconds: float) -> int:
    return int(seconds * 1_000_000)
