"""The pace of calls to an outside system, kept by all processes together and counted in Redis (ADR 17)."""

from streamproc.log.connection import connect
from streamproc.log.names import SHARED_PARTITION, Names
from streamproc.log.scripts import Script

LONGEST_WAIT_S = 30.0
"""No wait can be longer: a process holds one turn at most, so this is 240 processes at 8 calls a second."""

_take_turn = Script("take_turn", "checks")


class Pace:
    """Gives turns at `per_s` a second, `burst` at once after a rest. For one caller at a time."""

    def __init__(self, url: str, *, name: str, per_s: float, burst: int) -> None:
        self._url = url
        self._key = Names(SHARED_PARTITION).pace(name)
        self._between_us = max(1, round(1_000_000 / per_s))
        self._burst = burst
        self._client = connect(url)

    async def reserve(self) -> float:
        """Take the next turn; the seconds until it has come. Raises LogUnavailable."""
        try:
            longest_us = int(LONGEST_WAIT_S * 1_000_000)
            args = [self._between_us, self._burst, longest_us]
            wait_us = int(await _take_turn(self._client, [self._key], args))
        except BaseException:
            # A reply may still be on its way on this connection: never use it again.
            await self._client.aclose()
            self._client = connect(self._url)
            raise
        return wait_us / 1_000_000

    async def aclose(self) -> None:
        """Close the connection."""
        await self._client.aclose()
