"""What execution hears of the bank, as events: how a payout stands there, and what came of a command."""

from streamproc.domain.events import (
    BankCommand,
    BankCommandAnswered,
    BankPayout,
    CommandOutcome,
    PayoutObserved,
)
from streamproc.log.work import BatchContext, Work


def record_sighting(work: Work, ctx: BatchContext, facts: BankPayout) -> None:
    """Record that execution asked the bank about the work's payout, and how the bank shows it."""
    account = work.known().account
    work.emit(PayoutObserved(at=ctx.now_us, payout=work.payout, account=account, source="fetch", facts=facts))


def record_answer(
    work: Work,
    ctx: BatchContext,
    command: BankCommand,
    outcome: CommandOutcome,
    bank_status: str,
    *,
    http_status: int = 0,
    code: str = "",
    problem: str = "",
    caused_by: str = "",
    bank_payout: str = "",
) -> None:
    """Record what came of a command to the bank.

    `bank_status`: the payout's status at the bank after it. `bank_payout`: its id there, where the record does not have
    it.
    """
    work.emit(
        BankCommandAnswered(
            at=ctx.now_us,
            payout=work.payout,
            command=command,
            outcome=outcome,
            http_status=http_status,
            bank_status=bank_status,
            code=code,
            problem=problem,
            caused_by=caused_by,
            bank_payout=bank_payout,
        )
    )
