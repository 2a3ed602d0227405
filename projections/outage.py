"""Waiting out a dependency that is away."""

import asyncio
import logging

from streamproc.errors import StreamprocError

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

    def failed(self, problem: BaseException) -> float:
        """Say it, if it is new; the seconds to wait before the next try, more each time."""
        if not self._said:
            # A driver's own message may hold the DSN; ours do not.
            ours = isinstance(problem, StreamprocError)
            what = str(problem) if ours else f"Postgres: {type(problem).__name__}"
            log.warning("%s waits: %s", self._who, what)
        self._said = True
        retry_s, self._retry_s = self._retry_s, min(2 * self._retry_s, RETRY_S_MAX)
        return retry_s

    async def wait(self, problem: BaseException, stopping: asyncio.Event) -> None:
        """Wait before the next try, longer each time."""
        await pause(stopping, self.failed(problem))


def heed_cancellation() -> None:
    """Raise the CancelledError that was lost on the way here.

    A transaction that is cancelled as its connection dies raises what its rollback met, not the cancellation; whoever
    waits out lost connections in a loop would then go on for ever, and who cancelled it wait for ever.
    """
    task = asyncio.current_task()
    if task is not None and task.cancelling():
        raise asyncio.CancelledError


async def pause(stopping: asyncio.Event, seconds: float) -> None:
    """Wait, but no longer than until `stopping`."""
    try:
        async with asyncio.timeout(seconds):
            await stopping.wait()
    except TimeoutError:
        return
