"""Turns without Redis."""

import asyncio


class OwnTurns:
    """The turns of this process alone: `burst` at once, and then `per_s` a second. By the event loop's clock."""

    def __init__(self, per_s: float, burst: int) -> None:
        self._between_s, self._burst = 1 / per_s, burst
        self._next = float("-inf")

    async def take(self, *, within_s: float, beside: int = 0) -> tuple[bool, float]:
        """See `Take`."""
        now = asyncio.get_running_loop().time()
        turn = max(self._next, now - (self._burst - 1) * self._between_s)
        wait_s = max(0.0, turn + beside * self._between_s - now)
        if wait_s > within_s:
            return False, wait_s - within_s
        self._next = turn + self._between_s
        return True, wait_s
