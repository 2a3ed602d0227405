"""What becomes of entries that failed: each is deferred, left to the slow lane, or made a dead letter.

What waits for the outside is tried again for as long as it takes, with an alarm once it has waited for too long. What
fails by itself has a limited number of attempts; at once a dead letter is only what nobody can ever handle.
"""

import logging
from collections.abc import Sequence
from math import inf
from time import monotonic

from redis.asyncio import Redis

from streamproc.domain.events import EntrySetAside
from streamproc.domain.wire import encode_events
from streamproc.errors import StreamprocError, TryAgain, Unprocessable, named
from streamproc.log import scripts
from streamproc.log.batch_telemetry import BatchTelemetry
from streamproc.log.names import Names
from streamproc.log.scripts import Deferral, Handover
from streamproc.log.work import Group, LeaveToSlowLane, Work, written_ms

log = logging.getLogger(__name__)

ATTEMPTS_MAX = 5
"""Attempts at an entry that fails by itself; after these it becomes a dead letter."""
BACKOFF = scripts.Backoff(first_s=0.5, longest_s=60.0, longest_wait_s=10.0)
"""A dependency that is back is noticed within `longest_wait_s`; an entry that fails by itself can wait longer."""
LATE_S = 600.0
"""An entry that waits for a dependency for longer raises an alarm: a rejection that the bank does not know of may be
paid by somebody else's approval."""


class Failures:
    """Disposes of the failed works of one group on one partition."""

    def __init__(
        self, names: Names, group: Group, consumer: str, telemetry: BatchTelemetry, *, say_s: float
    ) -> None:
        """`consumer`: only entries that are pending with it are deferred; '' where no other consumer can take them.
        `say_s`: how long the log says nothing more of what is deferred, once it has said something."""
        self._names, self._group, self._consumer, self._telemetry = names, group, consumer, telemetry
        self._where = f"{group.name}/{names.partition}"
        self._say_s, self._said_s, self._unsaid = say_s, -inf, 0
        self._oldest_unsaid: list[Work] = []

    async def dispose(self, client: Redis, works: Sequence[Work]) -> list[Work]:
        """Defer these works or make dead letters of them, by their problem. Returns those that the slow lane gets."""
        for_slow_lane: list[Work] = []
        dead: list[tuple[Work, str]] = []
        deferred: list[tuple[Work, Deferral]] = []
        for work in works:
            match work.problem:
                case LeaveToSlowLane():
                    for_slow_lane.append(work)
                case TryAgain(after_s=after_s):
                    deferred.append((work, self._deferral(work, after_s, counts=False)))
                case Unprocessable():
                    dead.append((work, str(work.problem)))
                case problem:
                    log.error(
                        "%s: entry %s failed unexpectedly; it is retried, and in the end a dead letter",
                        self._where,
                        self._id_of(work),
                        exc_info=problem,
                        extra={"payout": work.payout},
                    )
                    deferred.append((work, self._deferral(work, 0.0, counts=True)))
        if deferred:
            await self._log_deferred(client, [work for work, _ in deferred])
            await self.defer(client, deferred)
        if dead:
            await self.dead_letter(client, dead)
        return for_slow_lane

    def _deferral(self, work: Work, least_s: float, *, counts: bool) -> Deferral:
        unsent = not (work.maybe_sent or work.sent) if self._group.notes_sending else None
        return Deferral(work.entry, least_s, counts, unsent)

    async def defer(self, client: Redis, works: Sequence[tuple[Work, Deferral]]) -> None:
        """Defer works. One that has no attempt left becomes a dead letter."""
        self._telemetry.deferred([work for work, _ in works])
        deferrals = [deferral for _, deferral in works]
        times = await scripts.defer(client, self._names, self._group.name, deferrals, BACKOFF, self._consumer)
        spent = []
        for (work, deferral), n in zip(works, times, strict=True):
            if deferral.counts and n >= ATTEMPTS_MAX:
                work.taken = True
                why = f"failed {n} times, the limit is {ATTEMPTS_MAX}; last: {_named(work.problem)}"
                spent.append((work, why))
        if spent:
            await self.dead_letter(client, spent)

    async def dead_letter(self, client: Redis, works: Sequence[tuple[Work, str]]) -> None:
        """Make dead letters, with the reason; the log gets an event about each."""
        self._telemetry.dead_lettered([work for work, _ in works])
        now_us, *_ = await scripts.load(client, self._names, [])
        group, handovers = self._group, []
        for work, why in works:
            entry = work.entry.decode()
            log.error(
                "%s: entry %s became a dead letter: %s",
                self._where,
                self._id_of(work),
                why,
                extra={"payout": work.payout},
            )
            event = EntrySetAside(
                at=now_us, payout=work.payout, group=group.name, entry=entry, stage="", problem=why
            )
            e, m = encode_events([event]), group.meta_of_output(work.entry)
            handovers.append(Handover(entry=work.entry, e=e, m=m, taken=True, problem=why))
        await scripts.commit(client, self._names, group.name, handovers)

    async def _log_deferred(self, client: Redis, works: list[Work]) -> None:
        """Log what is deferred, as an alarm where it has waited too long."""
        self._unsaid += len(works)
        oldest = min([*works, *self._oldest_unsaid], key=lambda work: written_ms(work.entry))
        self._oldest_unsaid = [oldest]
        if monotonic() < self._said_s + self._say_s:
            return
        count, self._unsaid, self._said_s, self._oldest_unsaid = self._unsaid, 0, monotonic(), []
        now_us, *_ = await scripts.load(client, self._names, [])
        late_s = now_us / 1e6 - written_ms(oldest.entry) / 1e3
        level, alarm = (logging.ERROR, "ALARM, ") if late_s > LATE_S else (logging.WARNING, "")
        what = "%s%s: %d entries deferred; the oldest, %s, waits for %d s: %s"
        oldest_id, problem = self._id_of(oldest), _named(oldest.problem)
        log.log(level, what, alarm, self._where, count, oldest_id, late_s, problem)

    def _id_of(self, work: Work) -> str:
        """The entry as the commands take it, with its partition."""
        return f"{self._names.partition}:{work.entry.decode()}"


def _named(problem: Exception | None) -> str:
    if isinstance(problem, StreamprocError):
        return str(problem)
    return named(problem)[:300]
