"""Waiting while a dependency is away, with backoff."""

import asyncio
import logging

from streamproc.errors import StreamprocError, kind_of
from streamproc.waiting import set_within

RETRY_S_MIN = 0.2
RETRY_S_MAX = 5.0

log = logging.getLogger(__name__)


class Outage:
    """Backoff, with one log line when something goes away, one when it is something else, and one when all is back."""

    def __init__(self, who: str) -> None:
        self._who = who
        self._retry_s = RETRY_S_MIN
        self._said: bool | None = None
        """Of which kind the problem was that was said last: ours, or Postgres's; None: all was well."""

    def over(self) -> None:
        """All is well again."""
        if self._said is not None:
            log.info("%s: goes on", self._who)
        self._said, self._retry_s = None, RETRY_S_MIN

    def failed(self, problem: BaseException) -> float:
        """Log the problem, if it is new; the seconds until the next try, more each time."""
        ours = isinstance(problem, StreamprocError)
        if self._said is not ours:
            # A driver's own message may hold the DSN; ours do not.
            what = str(problem) if ours else f"Postgres: {kind_of(problem)}"
            log.warning("%s waits: %s", self._who, what)
        self._said = ours
        retry_s, self._retry_s = self._retry_s, min(2 * self._retry_s, RETRY_S_MAX)
        return retry_s

    async def wait(self, problem: BaseException, stopping: asyncio.Event) -> None:
        """Log the problem, if it is new, and wait until the next try."""
        await set_within(stopping, self.failed(problem))


def heed_cancellation() -> None:
    """Raise the CancelledError that was lost on the way here.

    A transaction that is cancelled while its connection dies raises the error of its rollback, not the cancellation. A
    loop that waits out lost connections would then go on for ever, and whoever cancelled it would wait for ever.
    """
    task = asyncio.current_task()
    if task is not None and task.cancelling():
        raise asyncio.CancelledError
