"""What was stopped is rejected as long as that is possible, and what a later decision replaced is not carried out."""

from typing import Any

import pytest
from msgspec.structs import replace

from consumers import stop
from consumers.enact import execution
from consumers.verdicts import decision_of
from streamproc.bench.pure import NoCache
from streamproc.domain.budget import NOTHING_ASKED
from streamproc.domain.events import Event, Finding, PayoutDecided, PayoutStopped
from streamproc.domain.governance import conclude
from streamproc.domain.payouts import PayoutRecord, fold
from streamproc.domain.policy import PolicyBook
from streamproc.log.work import BatchContext, Stage, Work
from tests.consumers.test_refuted import at_once
from tests.words import NOW, observed

FROZEN = Finding(stage="screening", code="FROZEN", outcome="REJECTED", evidence={})


async def handled(stage: Stage, event: Event, record: PayoutRecord) -> Work:
    """The work of a stage that got this event of a payout with this record."""
    work, book = Work(b"5-1", [event], record.payout), PolicyBook({})
    work.open(b"1", record, NOTHING_ASKED, keep=False)

    async def book_now() -> PolicyBook:
        return book

    ctx: Any = BatchContext(NOW, 0, book, at_once, NoCache(), book_now, at_once)  # type: ignore[arg-type]
    await stage.handle([(work, event)], ctx)
    return work


def approved(status: str = "pending") -> tuple[PayoutRecord, PayoutDecided]:
    record = fold([observed(status=status)])
    assert record is not None
    decided = decision_of(record, None, "claimed", conclude(()), NOW)
    record = fold([decided], record)
    assert record is not None
    return record, decided


@pytest.mark.parametrize(
    ("status", "decisions"),
    [
        ("pending", ["REJECTED"]),
        ("queued", ["REJECTED"]),
        ("processing", []),
        ("processed", []),
        ("cancelled", []),
        ("failed", []),
    ],
)
async def test_what_was_frozen_before_it_was_sent_is_rejected_while_it_still_waits_at_the_bank(
    status: str, decisions: list[str]
) -> None:
    """What moved meanwhile, or ended, cannot be rejected any more, and its money is settled by what the bank says."""
    stopped = PayoutStopped(
        at=NOW, payout="pout_1", command="approve", finding=FROZEN, maybe_sent=False, caused_by="0:1-1:0"
    )
    record, _ = approved()
    work = await handled(stop.STAGE, stopped, replace(record, bank_status=status))
    assert [event.decision for event in work.out if isinstance(event, PayoutDecided)] == decisions


@pytest.mark.parametrize(
    "later",
    [{"decision": "REJECTED"}, {"decided_at": NOW + 1}],
    ids=["another decision in the same microsecond", "the same decision, taken anew"],
)
async def test_a_decision_that_a_later_one_replaced_sends_nothing_to_the_bank(later: dict[str, Any]) -> None:
    bank: Any = object()  # it takes no command
    record, decided = approved()
    (stage,) = execution(bank, at_once).stages
    work = await handled(stage, decided, replace(record, **later))
    assert (work.problem, work.out) == (None, [])
    assert (await handled(stage, decided, record)).problem is not None  # it would have been sent
