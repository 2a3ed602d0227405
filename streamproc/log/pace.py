"""The pace of calls to an outside system, kept by all processes together and counted in Redis (ADR 17)."""

import asyncio
from typing import NamedTuple

from streamproc.log.connection import connect
from streamproc.log.names import SHARED_PARTITION, Names
from streamproc.log.scripts import Script

LONGEST_WAIT_S = 30.0
"""No wait can be longer: a process holds one turn at most, so this is 240 processes at 8 calls a second."""

_take_turn = Script("take_turn", "checks")


class Turn(NamedTuple):
    """What came of asking for a turn: whether it was taken, and the seconds until it comes or, if it was not, until one
    could be taken on the same terms."""

    taken: bool
    wait_s: float


class Pace:
    """Gives turns at `per_s` a second, `burst` at once after a rest."""

    def __init__(self, url: str, *, name: str, per_s: float, burst: int) -> None:
        self._url = url
        self._key = Names(SHARED_PARTITION).pace(name)
        self._between_us = max(1, round(1_000_000 / per_s))
        self._burst = burst
        self._client = connect(url)
        self._one_at_a_time = asyncio.Lock()

    async def reserve(self) -> float:
        """Take the next turn; the seconds until it has come. Raises LogUnavailable."""
        return (await self.take(within_s=LONGEST_WAIT_S)).wait_s

    async def take(self, *, within_s: float, beside: int = 0) -> Turn:
        """Take the next turn if it comes within so many seconds, with so many more that are free by then. Raises
        LogUnavailable."""
        args = [self._between_us, self._burst, *map(_us, (LONGEST_WAIT_S, within_s)), beside]
        async with self._one_at_a_time:
            try:
                taken, wait_us = await _take_turn(self._client, [self._key], args)
            except BaseException:
                # A reply may still be on its way on this connection: never use it again.
                await self._client.aclose()
                self._client = connect(self._url)
                raise
        return Turn(bool(taken), wait_us / 1_000_000)

    async def aclose(self) -> None:
        """Close the connection."""
        await self._client.aclose()


def _us(seconds: float) -> int:
    return int(seconds * 1_000_000)
