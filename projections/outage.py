"""Waiting while a dependency is away, with backoff."""

import asyncio
import logging

import asyncpg

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
        self._said: str | None = None
        """Of which kind the problem was that was said last: ours, Postgres's, or its damage; None: all was well."""

    def over(self) -> None:
        """All is well again."""
        if self._said is not None:
            log.info("%s: goes on", self._who)
        self._said, self._retry_s = None, RETRY_S_MIN

    def failed(self, problem: BaseException) -> float:
        """Log the problem, if it is new; the seconds until the next try, more each time."""
        kind, what = _in_words(problem)
        if self._said != kind:
            log.warning("%s waits: %s", self._who, what)
        self._said = kind
        retry_s, self._retry_s = self._retry_s, min(2 * self._retry_s, RETRY_S_MAX)
        return retry_s

    async def wait(self, problem: BaseException, stopping: asyncio.Event) -> None:
        """Log the problem, if it is new, and wait until the next try."""
        await set_within(stopping, self.failed(problem))


def _in_words(problem: BaseException) -> tuple[str, str]:
    """A problem's kind, and what to say of it: a driver's own message may hold the DSN; ours do not, nor what Postgres
    says of its damage, which names the table or the index, and often what to do."""
    if isinstance(problem, StreamprocError):
        return "ours", str(problem)
    if isinstance(problem, asyncpg.InternalServerError):
        return "damage", f"Postgres: {kind_of(problem)}: {' '.join(str(problem).split())}"
    return "Postgres", f"Postgres: {kind_of(problem)}"


def heed_cancellation() -> None:
    """Raise the CancelledError that was lost on the way here.

    A transaction that is cancelled while its connection dies raises the error of its rollback, not the cancellation. A
    loop that waits out lost connections would then go on for ever, and whoever cancelled it would wait for ever.
    """
    task = asyncio.current_task()
    if task is not None and task.cancelling():
        raise asyncio.CancelledError
