"""Recall: a payout from long ago, whose record has left Redis, is not decided again, and goes on from how it ended.

Redis keeps a finished payout's record for the retention time. For a delivery that comes later (replayed by the bank's
support, months after), and for an entry that waited for so long, it has none. So the archive is asked before any other
stage looks at the payout.

A young payout that moved before anybody looked is a bypass, unless Redis forgot it as its clock was ahead for a while.
The archive is asked about it too, but the alarm does not wait while that is away or slow.
"""

from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from time import monotonic
from typing import TypeAlias

from consumers.concurrency import run_bounded
from consumers.inputs import EXECUTION
from streamproc.domain.events import BankCommandAnswered, PayoutObserved, PayoutStopped
from streamproc.domain.intent import is_intent
from streamproc.domain.payouts import PayoutRecord, fold, is_terminal
from streamproc.domain.states import MOVED_STATUSES
from streamproc.domain.wire import written_by
from streamproc.errors import TryAgain
from streamproc.log.work import BatchContext, Item, Stage, Work

Archived: TypeAlias = Callable[[str], Awaitable[PayoutRecord | None]]
"""Gives a payout's record as the archive has it; raises TryAgain when Postgres is away, and at once while it hangs
(streamproc/archive/pool.py)."""

YOUNG_S_MAX = 86_400
"""A payout younger than this is still in Redis, if the retention time is two days or more."""
AT_ONCE_MAX = 4
"""Queries of one batch at the same time; old payouts are rare."""
PASS_S = 8.0
"""A pass ends its queries by then, well within a batch's time: while Postgres hangs, each takes some seconds, and a
batch that is cut off as a whole would put off payouts that need no archive."""
ALARMS_WAIT_S = 2.0
"""Of one batch, questions about what seems to be a bypass begin by then. The rest is told without an answer."""
_BY_EXECUTION = written_by(EXECUTION)


def recall_stage(archived: Archived, retention_s: float) -> Stage:
    """Gives works of payouts that Redis does not know, and that are old or moved, the archive's record."""
    young_s = young_s_of(retention_s)

    async def if_decided(until_s: float, payout: str) -> PayoutRecord | None:
        """The record of a payout that was decided or told as a bypass; None also where nobody can say."""
        if monotonic() >= until_s:
            return None
        try:
            record = await archived(payout)
        except TryAgain:
            return None
        return record if record is not None and (record.decision or record.bypassed) else None

    async def recall(items: Sequence[Item], ctx: BatchContext) -> None:
        async def look_up(work: Work, ask: Archived) -> None:
            record = await forgotten(work, ask)
            if record is not None:
                work.recall(record)
                # The archive may have these already: once more makes no difference.
                told = (
                    event for event in work.events if type(event) in (PayoutObserved, BankCommandAnswered)
                )
                work.record = fold(told, record)

        if_there = partial(if_decided, monotonic() + ALARMS_WAIT_S)
        asks: dict[Work, Archived] = {work: if_there for work, event in items if seems_to_bypass(work, event)}
        asks |= {
            work: archived for work, event in items if may_be_forgotten(work, event, ctx.now_us, young_s)
        }
        jobs = [(work, partial(look_up, work, ask)) for work, ask in asks.items()]
        await run_bounded(
            jobs, at_once=AT_ONCE_MAX, start_s=PASS_S, pass_s=PASS_S, waits_for="its turn at the archive"
        )

    return Stage(
        name="recall",
        consumes=frozenset({PayoutObserved, BankCommandAnswered, PayoutStopped}),
        handle=recall,
    )


async def forgotten(work: Work, archived: Archived) -> PayoutRecord | None:
    """The archive's record of a payout that Redis does not know; None where this is the first look at it.

    What was decided, or told to the bank, leaves Redis only when it is over. Raises TryAgain unless it is over in the
    archive too: the views have not come so far then, and by what they show it would be decided or settled once more.
    """
    record = await archived(work.payout)
    is_looked_at = any(type(event) is PayoutObserved for event in work.events) and not by_execution(work)
    if is_looked_at and (record is None or record.decision is None):
        return record
    if record is None or not is_terminal(record):
        raise TryAgain(f"Redis does not know {work.payout}, and the archive does not say yet how it ended")
    return record


def by_execution(work: Work) -> bool:
    """Whether execution wrote the entry; it commits the payout's record together with it."""
    return work.m.startswith(_BY_EXECUTION)


def young_s_of(retention_s: float) -> float:
    """The age (s) below which no payout's record has expired from Redis, by `STREAMPROC_RETENTION` in seconds."""
    return min(YOUNG_S_MAX, retention_s / 2)


def may_be_forgotten(work: Work, event: object, now_us: int, young_s: float) -> bool:
    """Whether Redis may have known this payout once and forgotten it."""
    if work.loaded is not None:
        return False
    if type(event) is not PayoutObserved or is_intent(event.payout):
        return True  # it began with another event, which is older
    return 0 < event.facts.created_at < gone_before(now_us, young_s)


def seems_to_bypass(work: Work, event: object) -> bool:
    """Whether the payout is seen for the first time, as far as Redis knows, and moved already."""
    return work.loaded is None and type(event) is PayoutObserved and event.facts.status in MOVED_STATUSES


def gone_before(now_us: int, young_s: float) -> float:
    """The time (Unix s) before which a payout must have been made for its record to have expired from Redis."""
    return now_us / 1_000_000 - young_s
