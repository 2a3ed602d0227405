"""Waiting out a dependency that is away."""

import asyncio
import logging

from streamproc.errors import LogUnavailable

RETRY_S_MIN = 0.2
RETRY_S_MAX = 5.0

log = logging.getLogger(__name__)


class Outage:
    """Backoff, and one log line when something goes away and one when it is back."""

    def __init__(self, who: str) -> None:
        self._who = who
        self._retry_s = RETRY_S_MIN
        self._said = False

    def over(self) -> None:
        """All is well: batches commit, or there is nothing to do."""
        if self._said:
            log.info("%s: goes on", self._who)
        self._said, self._retry_s = False, RETRY_S_MIN

    async def wait(self, problem: BaseException, stopping: asyncio.Event) -> None:
        """Wait before the next try, longer each time."""
        if not self._said:
            # Not the message: a driver's may hold the DSN.
            what = (
                str(problem) if isinstance(problem, LogUnavailable) else f"Postgres: {type(problem).__name__}"
            )
            log.warning("%s waits: %s", self._who, what)
        self._said = True
        retry_s, self._retry_s = self._retry_s, min(2 * self._retry_s, RETRY_S_MAX)
        try:
            async with asyncio.timeout(retry_s):
                await stopping.wait()
        except TimeoutError:
            return
