"""Refusals become events, `access.refused`, and no outsider can fill the log with them.

The first refusal of a kind is written at once. Further ones are counted, and written together at most every
INTERVAL_S. Nobody who is refused waits for that, and what cannot be written is in this process's log.
"""

import asyncio
import logging
import math
import time
from collections.abc import Callable
from typing import Literal, NamedTuple, Self, TypeAlias

from streamproc.domain.events import AccessRefused
from streamproc.domain.plain import clean
from streamproc.errors import LogUnavailable
from streamproc.log.stream import Append, Producer
from streamproc.waiting import set_within

INTERVAL_S = 10.0
"""Interval of events of one kind: short enough for a person who watches, long enough for a log that is kept."""
KINDS_MAX = 32
"""Kinds counted apart; what goes beyond is one more kind. So a process writes at most 3.3 events a second."""
APPEND_S_MAX = 4.0
"""As long as a webhook waits for the log."""
LEAVE_S_MAX = 2.0
"""How long a stopping process tries to write what is left."""
TEXT_CHARS_MAX = 200
"""Of each text in the event, since whoever is refused may have chosen it."""

Channel: TypeAlias = Literal["slack", "api"]
_NO_ACCOUNT = ""
"""Accounts decide the partition; the hash of no account is 0, so these are in partition 0, as tokens are."""
log = logging.getLogger(__name__)


class ThrottledWarning:
    """A warning in this process's log of what anybody may cause: at most one every INTERVAL_S, with the number."""

    def __init__(
        self, logger: logging.Logger, what: str, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._logger = logger
        self._what = what
        self._clock = clock
        self._unlogged = 0
        self._logged_at = -math.inf

    def count(self, why: str = "") -> None:
        """Count one occurrence, and log the number if it is time, with the reason of this one if it has any."""
        self._unlogged += 1
        if self._clock() - self._logged_at >= INTERVAL_S:
            self._logger.warning("%s: %d%s", self._what, self._unlogged, why and f", the last: {why}")
            self._unlogged, self._logged_at = 0, self._clock()


class _Kind(NamedTuple):
    channel: Channel
    subject: str
    what: str
    problem: str


class _Seen:
    def __init__(self, due_at: float) -> None:
        self.due_at = due_at
        self.count = 0
        self.payout = ""


class Refusals:
    """Use as an async context manager; `note` is for handlers."""

    def __init__(
        self,
        producer: Producer,
        *,
        interval_s: float = INTERVAL_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._producer = producer
        self._interval_s = interval_s
        self._clock = clock
        self._kinds: dict[_Kind, _Seen] = {}
        self._wake = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        self._task = asyncio.create_task(self._run(), name="refusals")
        self._task.add_done_callback(_loud)
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        for seen in self._kinds.values():
            seen.due_at = 0.0
        try:
            async with asyncio.timeout(LEAVE_S_MAX):
                await self._write_due()
        except TimeoutError:
            left = {kind: seen.count for kind, seen in self._kinds.items() if seen.count}
            log.warning("the log did not answer within %g s; refusals not written: %s", LEAVE_S_MAX, left)

    def note(self, *, channel: Channel, subject: str, what: str, problem: str, payout: str = "") -> None:
        """Record that somebody was refused. Returns at once and never fails.

        `problem` and `what` are from a few texts of ours, since each text is a kind of its own. `payout`: the one
        named, or empty.
        """
        kind = _Kind(channel, _cut(subject), _cut(what), _cut(problem))
        seen = self._kinds.get(kind)
        if seen is None and len(self._kinds) >= KINDS_MAX:
            kind = _Kind(channel, "", "several", f"more than {KINDS_MAX} kinds of refusals at a time")
            seen, payout = self._kinds.get(kind), ""
        if seen is None:
            seen = self._kinds[kind] = _Seen(self._clock())
        seen.count += 1
        seen.payout = _cut(payout)
        self._wake.set()

    async def _run(self) -> None:
        while True:
            self._wake.clear()
            wait_s = await self._write_due()
            await set_within(self._wake, wait_s)

    async def _write_due(self) -> float | None:
        """Write what is due; the seconds until the next is due, None if nothing waits."""
        for kind, seen in list(self._kinds.items()):
            if seen.due_at > self._clock():
                continue
            if not seen.count:
                del self._kinds[kind]
                continue
            count, seen.count = seen.count, 0
            seen.due_at = self._clock() + self._interval_s
            written = False
            try:
                written = await self._write(kind, seen.payout, count)
            finally:
                if not written:  # cancelled too: what may be there already is rather counted twice
                    seen.count += count
        dues = [seen.due_at for seen in self._kinds.values()]
        return max(0.0, min(dues) - self._clock()) if dues else None

    async def _write(self, kind: _Kind, payout: str, count: int) -> bool:
        event = AccessRefused(
            at=self._producer.now_us(),
            channel=kind.channel,
            subject=kind.subject,
            what=kind.what,
            payout_named=payout,
            problem=kind.problem,
            count=count,
        )
        try:
            async with asyncio.timeout(APPEND_S_MAX):
                await self._producer.append(Append(_NO_ACCOUNT, (), (event,)))
        except (LogUnavailable, TimeoutError) as problem:
            why = str(problem) or f"no answer within {APPEND_S_MAX:g} s"
            log.warning("%d refusals are not in the log yet (%s): %s", count, why, _said(event))
            return False
        return True


def _loud(task: asyncio.Task[None]) -> None:
    """Log a defect that ended the writer at once: from then on refusals are only counted."""
    if not task.cancelled() and task.exception() is not None:
        log.error("ALARM, refusals are not written to the log any more", exc_info=task.exception())


def _cut(text: str) -> str:
    return clean(text, TEXT_CHARS_MAX)


def _said(event: AccessRefused) -> str:
    who = event.subject or "somebody unknown"
    return f"{event.channel} refused {who}, {event.what}: {event.problem}"
