"""The record of a payout approved at first sight, made in one copy, since copies are most of what `evolve` costs."""

from msgspec.structs import replace

from streamproc.domain import events as e
from streamproc.domain.payouts import PayoutRecord, fold
from streamproc.domain.record import Reservation
from streamproc.domain.states import state_of


def approved(
    record: PayoutRecord,
    screened: e.PayoutScreened,
    vetted: e.ReputationChecked,
    reserved: e.BudgetReserved,
    decided: e.PayoutDecided,
) -> PayoutRecord:
    """The same as `fold` of these events in this order, all of one time; a property test compares the two."""
    if record.intent is not None:
        after = fold((screened, vetted, reserved, decided), record)
        assert after is not None
        return after
    return replace(
        record,
        agent=screened.agent,
        identity=screened.identity,
        policy_version=screened.policy_version,
        beneficiary=screened.beneficiary,
        reputation_fresh_until=vetted.fresh_until,
        reservation=Reservation(
            state="reserved",
            amount=reserved.amount,
            number=reserved.number,
            windows=reserved.windows,
            count_fees=reserved.count_fees,
        ),
        state=state_of(decided.decision, record.bank_status, record.bypassed),
        decision=decided.decision,
        decided_at=decided.at,
        reason=decided.reason,
        reasons=decided.codes,
        findings=decided.findings,
        hold_expires_at=decided.hold_expires_at,
        updated_at=max(decided.at, record.updated_at),
    )
