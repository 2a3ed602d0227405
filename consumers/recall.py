"""Recall: a payout from long ago, whose record has left Redis, is not decided again.

Redis keeps a finished payout's record for the retention time. For a delivery that comes later (replayed by the bank's
support, months after) it has none, so the archive is asked before any other stage looks at the payout.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import TypeAlias

from streamproc.domain.events import PayoutObserved
from streamproc.domain.intent import is_intent
from streamproc.domain.payouts import PayoutRecord, fold
from streamproc.errors import TryAgain
from streamproc.log.work import Desk, Item, Stage, Work

Archived: TypeAlias = Callable[[str], Awaitable[PayoutRecord | None]]
"""Gives a payout's record as the archive has it; raises TryAgain when Postgres is away."""

YOUNG_S_MAX = 86_400
"""A payout younger than this is still in Redis, if the retention time is two days or more."""
AT_ONCE_MAX = 4
"""Queries of one batch at the same time; old payouts are rare."""


def recall_stage(archived: Archived, retention_s: float) -> Stage:
    """Gives works of old payouts that Redis does not know the archive's record."""
    young_s = young_s_of(retention_s)

    async def recall(items: Sequence[Item], desk: Desk) -> None:
        turns = asyncio.Semaphore(AT_ONCE_MAX)
        old = {work: None for work, event in items if may_be_forgotten(work, event, desk.now_us, young_s)}

        async def look_up(work: Work) -> None:
            try:
                async with turns:
                    record = await archived(work.payout)
            except TryAgain as problem:  # only this payout waits for Postgres
                work.fail(problem)
                return
            if record is not None:
                work.recall(record)
                work.record = fold((event for event in work.events if type(event) is PayoutObserved), record)

        await asyncio.gather(*(look_up(work) for work in old))

    return Stage(name="recall", consumes=frozenset({PayoutObserved}), handle=recall)


def young_s_of(retention_s: float) -> float:
    """The age (s) up to which a payout has surely not left Redis."""
    return min(YOUNG_S_MAX, retention_s / 2)


def may_be_forgotten(work: Work, event: object, now_us: int, young_s: float) -> bool:
    """Whether Redis may have known this payout once and forgotten it."""
    if work.loaded is not None or type(event) is not PayoutObserved:
        return False
    if is_intent(event.payout):
        return True  # it began with its request, which is older than anything that the bank shows
    return 0 < event.facts.created_at < gone_before(now_us, young_s)


def gone_before(now_us: int, young_s: float) -> float:
    """Payouts made before this time (Unix s) may have left Redis."""
    return now_us / 1_000_000 - young_s
