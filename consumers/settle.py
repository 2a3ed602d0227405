"""Lifecycle: what the bank says settles the reservation, and what moved without us is a bypass.

Last in the chain, so that a decision of the same pass already counts: a rejection gives its reservation back
in the commit that records it.
"""

from collections.abc import Sequence

from streamproc.domain.events import (
    BankCommandAnswered,
    BudgetReserved,
    GovernanceBypassed,
    PayoutDecided,
    PayoutObserved,
    PayoutSettled,
)
from streamproc.domain.governance import uses
from streamproc.domain.payouts import MOVING_STATUSES, OPEN_STATUSES, PayoutRecord, settlement_due
from streamproc.log.work import Desk, Item, Stage, Work


async def settle(items: Sequence[Item], desk: Desk) -> None:
    """Once for each payout of the batch, whatever number of its events is in hand."""
    for work in dict.fromkeys(work for work, _ in items):
        _settle_one(work, desk)


def _settle_one(work: Work, desk: Desk) -> None:
    record = work.known()
    if record.bank_status in MOVING_STATUSES and record.decision != "APPROVED" and not record.bypassed:
        work.emit(
            GovernanceBypassed(
                at=desk.now_us,
                payout=record.payout,
                account=record.account,
                agent=record.agent,
                amount=record.amount,
                status=record.bank_status,
            )
        )
    _adopt(work, desk)
    record = work.known()
    due = settlement_due(record)
    if due is None or record.reservation is None:
        return
    work.settle = due
    work.emit(
        PayoutSettled(
            at=desk.now_us,
            payout=record.payout,
            settlement=due,
            amount=record.reservation.amount,
            why=record.reason if record.decision == "REJECTED" else f"bank: {record.bank_status}",
            windows=[[w.scope, w.window] for w in record.reservation.windows],
        )
    )


def _adopt(work: Work, desk: Desk) -> None:
    """A reservation that was made before a crash, and that the second run did not come to, is recorded too."""
    record, budget = work.known(), work.admission.budget
    if budget is None or not budget.granted or record.reservation is not None:
        return
    if not _is_over(record):
        return
    work.emit(
        BudgetReserved(
            at=desk.now_us,
            payout=record.payout,
            amount=budget.amount,
            number=budget.number,
            windows=uses(budget.windows, budget.before),
            findings=[],
        )
    )


def _is_over(record: PayoutRecord) -> bool:
    return record.decision is not None or record.bank_status not in OPEN_STATUSES


STAGE = Stage(
    name="settle",
    consumes=frozenset({PayoutObserved, BankCommandAnswered, PayoutDecided}),
    handle=settle,
)
