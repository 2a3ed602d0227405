"""Settlement: what the bank says commits or releases the reservation, and what moved without an approval is a bypass.

Last in the chain, so that it sees a decision of the same pass: a rejection releases its reservation in the commit that
records it.
"""

from collections.abc import Sequence

from msgspec.structs import replace

from consumers.recall import by_execution
from consumers.verdicts import record_reservation, record_slot
from streamproc.domain.budget import RateAnswer
from streamproc.domain.copies import copy_of
from streamproc.domain.events import (
    BankCommandAnswered,
    BankFeeRecorded,
    CancelRequested,
    GovernanceBypassed,
    PayoutDecided,
    PayoutObserved,
    PayoutSettled,
    VelocityChecked,
)
from streamproc.domain.intent import is_intent
from streamproc.domain.ours import foreign_copies
from streamproc.domain.payouts import PayoutRecord, fold, is_open, settlement_due
from streamproc.domain.states import MOVED_STATUSES
from streamproc.log.work import BatchContext, Item, Stage, Work


def settle_stage(*, alone: bool = False) -> Stage:
    """`alone`: as a group of its own, where other groups have already folded an entry into the record."""

    async def settle(items: Sequence[Item], ctx: BatchContext) -> None:
        # Once for each work, however many of its events are consumed.
        for work in dict.fromkeys(work for work, _ in items):
            _name_lost_attempt(work)
            before = _without_its_own(work) if alone or by_execution(work) else work.loaded
            _settle_one(work, ctx, before)

    return Stage(
        name="settle",
        consumes=frozenset({PayoutObserved, BankCommandAnswered, PayoutDecided}),
        handle=settle,
    )


def _settle_one(work: Work, ctx: BatchContext, before: PayoutRecord | None) -> None:
    """`before`: the record without what this entry tells, so that comparing the two shows what is new."""
    record = work.known()
    if is_intent(record.payout):
        _tell_of_foreign(work, ctx, before)
    if _moved(work) and record.decision != "APPROVED" and not (record.bypassed or record.bank_fee):
        work.emit(_fee(work, ctx) or _bypass(record, ctx, record.amount, record.bank_status))
    _cancel(work, ctx, before)
    _adopt(work, ctx)
    record = work.known()
    due = settlement_due(record)
    if due is None or record.reservation is None:
        return
    work.settle = due
    work.fees = record.fees if record.reservation.count_fees else 0
    work.emit(
        PayoutSettled(
            at=ctx.now_us,
            payout=record.payout,
            settlement=due,
            amount=record.reservation.amount,
            why=_why(record),
            windows=[[w.scope, w.window] for w in record.reservation.windows],
            fees=record.fees,
        )
    )


def _name_lost_attempt(work: Work) -> None:
    """An execution worker of an earlier version leaves out of the record which payout it took for the lost attempt of a
    stopped intent: fold its answer again."""
    record = work.known()
    if record.intent is not None and record.maybe_sent and not record.created_as:
        work.record = fold((event for event in work.events if type(event) is BankCommandAnswered), record)


def _without_its_own(work: Work) -> PayoutRecord | None:
    """The loaded record, which has this entry's events already, without what they tell."""
    if work.loaded is None:
        return None
    record = work.known()
    shown = {(event.facts.id, event.facts.status) for event in work.events if type(event) is PayoutObserved}
    copies = [copy for copy in work.loaded.copies if (copy.id, copy.status) not in shown]
    if any(type(event) is BankCommandAnswered and event.command == "create" for event in work.events):
        copies = []  # it tells which one is the intent's, so any other may have become foreign by this entry
    status = "" if (record.at_bank, record.bank_status) in shown else work.loaded.bank_status
    return replace(work.loaded, copies=copies, bank_status=status)


def _why(record: PayoutRecord) -> str:
    if record.failure:
        return f"not created: {record.failure}"
    return record.reason if record.decision == "REJECTED" else f"bank: {record.bank_status}"


def _tell_of_foreign(work: Work, ctx: BatchContext, before: PayoutRecord | None) -> None:
    """Payouts under an intent's reference that are not the intent's, or whose reference no intent has.

    One that moved is a bypass; the intent itself does not change. One that waits, or would pay itself, was never
    decided and never will be: the bank is asked to end it.
    """
    record = work.known()
    asked = {(copy.id, copy.status) for copy in foreign_copies(before)} if before is not None else set()
    kept = {copy.id for copy in record.copies}
    seen = [copy_of(event.facts) for event in work.events if type(event) is PayoutObserved]
    unkept = [copy for copy in seen if copy.id not in kept]
    # One that the record does not keep is asked for at each sighting: execution checks its status before it acts.
    for copy in foreign_copies(record, unkept):
        if copy.status in ("pending", "queued") and (copy.id, copy.status) not in asked:
            why = f"{copy.id} bears the reference {record.payout}, and is not what was asked for by it"
            work.emit(CancelRequested(at=ctx.now_us, payout=record.payout, why=why, bank_payout=copy.id))
    for copy in (*foreign_copies(record), *unkept):
        if not copy.bypassed and copy.status in MOVED_STATUSES:
            work.emit(_bypass(record, ctx, copy.amount, copy.status, copy.id))


def _bypass(
    record: PayoutRecord, ctx: BatchContext, amount: int, status: str, bank_payout: str = ""
) -> GovernanceBypassed:
    return GovernanceBypassed(
        at=ctx.now_us,
        payout=record.payout,
        account=record.account,
        agent=record.agent,
        amount=amount,
        status=status,
        bank_payout=bank_payout,
    )


def _fee(work: Work, ctx: BatchContext) -> BankFeeRecorded | None:
    """The bank collecting its own fees: only to a fund account that the account's policy names, which no agent can
    write."""
    record = work.known()
    limits = ctx.book.account(record.account)
    if record.decision is not None or limits is None or record.fund_account not in limits.fee_fund_accounts:
        return None
    return BankFeeRecorded(
        at=ctx.now_us,
        payout=record.payout,
        account=record.account,
        amount=record.amount,
        fund_account=record.fund_account,
    )


def _moved(work: Work) -> bool:
    """Whether the bank shows, or showed, money on its way; a late webhook counts too."""
    if is_intent(work.payout):  # others may bear its reference; only the payout bound to it counts
        return work.known().bank_status in MOVED_STATUSES
    seen = [event.facts.status for event in work.events if type(event) is PayoutObserved]
    return not MOVED_STATUSES.isdisjoint((*seen, work.known().bank_status))


def _cancel(work: Work, ctx: BatchContext, before: PayoutRecord | None) -> None:
    """Have the bank end a payout that would pay itself although we did not approve it: one that somebody moved from
    `pending` to `queued`, or one of a stopped intent that turns up since an attempt had reached the bank after
    all."""
    record = work.known()
    if before is not None and before.bank_status == record.bank_status:
        return  # asked for when it came to this
    has_turned_up = record.bank_status == "pending" and record.intent is not None and record.maybe_sent
    if record.bank_status != "queued" and not has_turned_up:
        return
    if any(type(event) is PayoutDecided for event in work.out):
        return  # decided in this pass: execution acts on the decision itself
    agent = ctx.book.agent(record.agent)
    unheld = record.decision == "HELD" and (agent is None or agent.policy.queued_hold == "cancel")
    if record.decision == "REJECTED" or unheld:
        why = f"{record.decision} ({record.reason}), and the bank has it {record.bank_status} now"
        work.emit(CancelRequested(at=ctx.now_us, payout=record.payout, why=why))


def _adopt(work: Work, ctx: BatchContext) -> None:
    """Record a slot and a reservation that were admitted before a crash and that the second run did not record.

    A replay needs every number that was given out, and a what-if every slot and paisa that counted for others.
    """
    record = work.known()
    if not _is_over(record):
        return
    rate, budget = work.admission.rate, work.admission.budget
    has_room = budget is not None and budget.granted and record.reservation is None
    # With the room always, since whoever finds that recorded takes the slot for recorded too.
    ended = has_room or _ended_now(work) or _ended_meanwhile(work)
    if rate is not None and ended and not _tells_of(work, rate):
        record_slot(work, ctx, rate, [])
    if budget is not None and has_room:
        record_reservation(work, ctx, budget, [])


def _is_over(record: PayoutRecord) -> bool:
    return record.decision is not None or not (is_open(record) or is_intent(record.payout))


def _ended_now(work: Work) -> bool:
    """Whether this pass decides the payout for the first time, or finds that it moved without a decision."""
    if work.loaded is not None and (work.loaded.decision is not None or work.loaded.bypassed):
        return False
    return any(type(event) in (PayoutDecided, GovernanceBypassed) for event in work.out)


def _ended_meanwhile(work: Work) -> bool:
    """Whether another entry ended the payout since an earlier pass over this one took the slot, and by no rule behind
    the counters. That may not have seen the slot. If it did, the log has the slot twice, and readers count it once."""
    record = work.known()
    saw_slot = record.reservation is not None or any(
        f.outcome == "REJECTED" and f.stage != "screening" for f in record.findings
    )
    return (work.taken or work.stale_times > 0) and not saw_slot


def _tells_of(work: Work, rate: RateAnswer) -> bool:
    for event in (*work.events, *work.out):
        if type(event) is VelocityChecked:
            return True
        if type(event) is PayoutDecided and any(
            f.evidence.get("number") == rate.number for f in event.findings
        ):
            return True
    return False


STAGE = settle_stage()
