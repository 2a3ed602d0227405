"""A payout's life: the bank's states, ours, and `evolve`, the fold whose result both Redis and Postgres keep.

The bank's webhooks come late, twice and out of order, so a status counts only if it moves the payout forward, by
`BANK_RANK`. Two payouts with the same history have the same record.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal

from msgspec.structs import replace

from streamproc.domain import events as e
from streamproc.domain.agent_note import NOTE
from streamproc.domain.copies import BankCopy, copy_of, with_copy
from streamproc.domain.intent import is_intent, without_beneficiary
from streamproc.domain.notified import ASKING, NOTICES_MAX
from streamproc.domain.ours import meant_before, own_copy
from streamproc.domain.record import HoldMessage, Reservation, Review
from streamproc.domain.record import PayoutRecord as PayoutRecord
from streamproc.domain.record import decode_record as decode_record
from streamproc.domain.record import encode_record as encode_record
from streamproc.domain.record import unknown_in as unknown_in
from streamproc.domain.states import (
    BANK_RANK,
    MOVING_STATUSES,
    OPEN_STATUSES,
    RELEASING_STATUSES,
    TERMINAL_STATES,
    state_of,
)

UNKNOWN_AGENT = "unknown"
"""The agent of a payout that names none (rule 3)."""

ASKED: frozenset[type[e.Fact]] = frozenset({e.PayoutObserved, e.PayoutRequested})
"""What a payout begins with. Producers append these without touching the record, so whoever handles them folds them."""


def is_terminal(record: PayoutRecord) -> bool:
    """Whether nothing but a late reversal is expected, and no attempt is looked for. Only then may the record leave
    Redis."""
    ended = record.bank_status in RELEASING_STATUSES or not (record.bank_status or record.maybe_sent)
    return record.state in TERMINAL_STATES or (record.state == "rejected" and ended)


def is_open(record: PayoutRecord) -> bool:
    """Whether no money has moved, so that governance can still say no."""
    return record.bank_status in OPEN_STATUSES or (record.intent is not None and not record.bank_status)


def moves_forward(record: PayoutRecord | None, status: str) -> bool:
    """Whether an observed bank status is further on than the known one."""
    known = BANK_RANK.get(record.bank_status, 0) if record else 0
    return BANK_RANK.get(status, 0) > known


def evolve(record: PayoutRecord | None, event: e.Event) -> PayoutRecord | None:
    """The record after `event`; unchanged by events that are not about a payout.

    Observations commute with everything else: workers handle entries in another order than the log's, and readers of
    the log must still get the same record. So a status only moves forward, the earliest observation gives the facts,
    and `state` follows from decision, bank status and bypass alone. For an intent the request gives the facts, and
    every payout under its reference is kept as a copy of its own. Raises ValueError for an event that cannot come now.
    """
    if type(event) is e.PayoutObserved:
        return _sighted(record, event) if is_intent(event.payout) else _observed(record, event)
    if type(event) is e.PayoutRequested:
        return _requested(record, event)
    kind = type(event)
    step = _STEPS.get(kind)
    if step is None:
        if kind in _CHANGING_NOTHING:
            return record
        raise ValueError(f"evolve does not know {kind.__name__}")
    if record is None:
        if kind is e.NotificationSent:
            return None  # an alert can be about something that was never observed: a malformed payout, a dead letter
        payout = getattr(event, "payout", "")
        raise ValueError(f"{kind.__name__} of payout {payout} comes before the payout was observed")
    at = event.at
    return step(record, event, at if at > record.updated_at else record.updated_at)


def fold(events: Iterable[e.Event], record: PayoutRecord | None = None) -> PayoutRecord | None:
    """`evolve` over a history."""
    for event in events:
        record = evolve(record, event)
    return record


def _observed(record: PayoutRecord | None, event: e.PayoutObserved) -> PayoutRecord:
    facts = event.facts
    if record is None:
        return _first_observed(event, facts)
    if event.at < record.received_at:
        record = replace(
            record,
            received_at=event.at,
            amount=facts.amount,
            currency=facts.currency,
            fund_account=facts.fund_account_id,
            vendor_url=facts.notes.get("vendor_url", ""),
            reference_id=facts.reference_id,
            agent_sig=facts.notes.get(NOTE, ""),
        )
    status, state = record.bank_status, record.state
    if moves_forward(record, facts.status):
        status, state = facts.status, state_of(record.decision, facts.status, record.bypassed)
    return replace(
        record,
        state=state,
        bank_status=status,
        utr=facts.utr if facts.utr > record.utr else record.utr,
        fees=facts.fees if facts.fees > record.fees else record.fees,
        tax=facts.tax if facts.tax > record.tax else record.tax,
        updated_at=event.at if event.at > record.updated_at else record.updated_at,
    )


def _first_observed(event: e.PayoutObserved, facts: e.BankPayout) -> PayoutRecord:
    record = PayoutRecord(
        payout=event.payout,
        account=event.account,
        received_at=event.at,
        amount=facts.amount,
        currency=facts.currency,
        agent=facts.notes.get("agent_id", "") or UNKNOWN_AGENT,
        vendor_url=facts.notes.get("vendor_url", ""),
        fund_account=facts.fund_account_id,
        reference_id=facts.reference_id,
        agent_sig=facts.notes.get(NOTE, ""),
        state=state_of(None, facts.status, False),
        bank_status=facts.status,
        updated_at=event.at,
    )
    has_rare = facts.utr or facts.fees or facts.tax  # apart: with over 15 keywords a call is slow
    return replace(record, utr=facts.utr, fees=facts.fees, tax=facts.tax) if has_rare else record


def _requested(record: PayoutRecord | None, event: e.PayoutRequested) -> PayoutRecord:
    if record is not None and record.intent is not None:
        return record
    asked = PayoutRecord(
        payout=event.payout,
        account=event.account,
        received_at=event.at,
        amount=event.amount,
        currency=event.currency,
        agent=event.agent,
        identity="verified",
        vendor_url=event.vendor_url,
        fund_account=event.intent.fund_account_id,
        updated_at=event.at,
        intent=event.intent,
    )
    if record is None:
        return asked
    # Somebody had made a payout under this reference before the request: it stays a copy.
    return _bound(replace(asked, copies=record.copies, updated_at=max(event.at, record.updated_at)))


def _sighted(record: PayoutRecord | None, event: e.PayoutObserved) -> PayoutRecord:
    """The bank showed a payout under an intent's reference, which may not be that of any intent."""
    at = event.at
    if record is None:
        record = PayoutRecord(
            payout=event.payout, account=event.account, received_at=at, agent=UNKNOWN_AGENT, updated_at=at
        )
    return _bound(
        replace(
            record,
            copies=with_copy(record.copies, copy_of(event.facts)),
            received_at=record.received_at if record.intent is not None else min(at, record.received_at),
            updated_at=max(at, record.updated_at),
        )
    )


def _bound(record: PayoutRecord) -> PayoutRecord:
    """The record with what follows from an intent's copies: which one is its own, and where that stands."""
    if record.intent is None:
        return record
    mine = own_copy(record)
    status = mine.status if mine is not None else "failed" if record.failure else ""
    is_over = record.created_as or record.failure or record.decision == "REJECTED"
    return replace(
        record,
        intent=without_beneficiary(record.intent) if is_over else record.intent,
        state=state_of(record.decision, status, record.bypassed),
        bank_payout=mine.id if mine is not None else "",
        bank_status=status,
        utr=mine.utr if mine is not None else "",
        fees=mine.fees if mine is not None else 0,
        tax=mine.tax if mine is not None else 0,
    )


# ---- one step for each event; each copies the record once, since copies cost. `at`: the new `updated_at` ----


def _screened(record: PayoutRecord, event: e.PayoutScreened, at: int) -> PayoutRecord:
    return replace(
        record,
        agent=event.agent,
        identity=event.identity,
        policy_version=event.policy_version,
        beneficiary=event.beneficiary,
        updated_at=at,
    )


def _checked(record: PayoutRecord, event: e.VelocityChecked, at: int) -> PayoutRecord:
    return record if at == record.updated_at else replace(record, updated_at=at)


def _vetted(record: PayoutRecord, event: e.ReputationChecked, at: int) -> PayoutRecord:
    return replace(record, reputation_fresh_until=event.fresh_until, updated_at=at)


def _reserved(record: PayoutRecord, event: e.BudgetReserved, at: int) -> PayoutRecord:
    reservation = Reservation(
        state="reserved",
        amount=event.amount,
        number=event.number,
        windows=event.windows,
        count_fees=event.count_fees,
    )
    return replace(record, reservation=reservation, updated_at=at)


def _decided(record: PayoutRecord, event: e.PayoutDecided, at: int) -> PayoutRecord:
    decided = replace(
        record,
        state=state_of(event.decision, record.bank_status, record.bypassed),
        agent=event.agent,
        identity=event.identity if event.identity != "unknown" else record.identity,
        decision=event.decision,
        decided_at=event.at,
        reason=event.reason,
        reasons=event.codes,
        findings=event.findings,
        policy_version=event.policy_version,
        hold_expires_at=event.hold_expires_at,
        updated_at=at,
    )
    return decided if decided.intent is None else _bound(decided)


def _counted(record: PayoutRecord, event: e.ReviewCounted, at: int) -> PayoutRecord:
    review = Review(
        by=event.by, via=event.via, action=event.action, why=event.why, channel=event.channel, at=event.at
    )
    return replace(record, reviews=[*record.reviews, review], updated_at=at)


def _bypassed(record: PayoutRecord, event: e.GovernanceBypassed, at: int) -> PayoutRecord:
    if event.bank_payout:
        flagged = BankCopy(id=event.bank_payout, bypassed=True)
        copies = with_copy(record.copies, flagged)
        return _bound(replace(record, copies=copies, updated_at=at))
    return replace(
        record,
        state=state_of(record.decision, record.bank_status, True),
        bypassed=True,
        agent=event.agent,
        updated_at=at,
    )


def _stopped(record: PayoutRecord, event: e.PayoutStopped, at: int) -> PayoutRecord:
    return _bound(replace(record, maybe_sent=record.maybe_sent or event.maybe_sent, updated_at=at))


def _fee(record: PayoutRecord, event: e.BankFeeRecorded, at: int) -> PayoutRecord:
    return replace(record, bank_fee=True, updated_at=at)


def _answered(record: PayoutRecord, event: e.BankCommandAnswered, at: int) -> PayoutRecord:
    status = event.bank_status
    if is_intent(record.payout):
        return _answered_of_intent(record, event, at)
    if not moves_forward(record, status):
        return record if at == record.updated_at else replace(record, updated_at=at)
    state = state_of(record.decision, status, record.bypassed)
    return replace(record, state=state, bank_status=status, updated_at=at)


def _answered_of_intent(record: PayoutRecord, event: e.BankCommandAnswered, at: int) -> PayoutRecord:
    if event.command == "create" and event.outcome == "refused":
        failure = ": ".join(part for part in (event.code, event.problem) if part) or "the bank refused it"
        return _bound(replace(record, failure=failure, updated_at=at))
    if event.command == "create" and event.outcome == "not_needed":
        return _bound(replace(record, maybe_sent=False, updated_at=at))  # it was searched for long enough
    if event.command != "create" and event.bank_payout not in ("", record.created_as):
        # About another payout under the reference, whose status its sighting tells.
        return replace(record, updated_at=at)
    created_as = event.bank_payout or record.created_as or meant_before(record, event.bank_status)
    if not created_as:
        return replace(record, updated_at=at)
    copies = with_copy(record.copies, BankCopy(id=created_as, status=event.bank_status), ours=True)
    return _bound(replace(record, created_as=created_as, copies=copies, updated_at=at))


def _settled(record: PayoutRecord, event: e.PayoutSettled, at: int) -> PayoutRecord:
    if record.reservation is None:
        raise ValueError(f"payout {event.payout} is settled but nothing was reserved")
    charged = event.fees if record.reservation.count_fees and event.settlement == "committed" else 0
    reservation = replace(record.reservation, state=event.settlement, fees=charged)
    return _bound(replace(record, reservation=reservation, updated_at=at))


def _told(record: PayoutRecord, event: e.NotificationSent, at: int) -> PayoutRecord:
    """Messages about the hold, sorted and limited, so that the order of folding does not matter."""
    if event.kind not in ASKING and event.kind != "outcome":
        return record
    message = HoldMessage(
        at=event.at, channel=event.channel, ref=event.ref, kind=event.kind, shown_in=event.shown_in
    )
    notices = sorted({*record.notices, message})[:NOTICES_MAX]
    return replace(record, notices=notices, updated_at=at)


_STEPS: Mapping[type[e.Fact], Callable[[PayoutRecord, Any, int], PayoutRecord]] = {
    e.PayoutScreened: _screened,
    e.VelocityChecked: _checked,
    e.ReputationChecked: _vetted,
    e.BudgetReserved: _reserved,
    e.PayoutDecided: _decided,
    e.ReviewCounted: _counted,
    e.GovernanceBypassed: _bypassed,
    e.PayoutStopped: _stopped,
    e.BankFeeRecorded: _fee,
    e.BankCommandAnswered: _answered,
    e.PayoutSettled: _settled,
    e.NotificationSent: _told,
}
"""By class, not by `match`: each class pattern asks a Struct's metaclass, some 0.3 µs."""
CHANGING: frozenset[type[e.Fact]] = ASKED | frozenset(_STEPS)
"""Events that may change a payout's record."""
_CHANGING_NOTHING: frozenset[type[e.Fact]] = frozenset(
    {
        e.PayoutMalformed,
        e.BankEventIgnored,
        e.BankDowntimeReported,
        e.PolicyChanged,
        e.PolicyProposed,
        e.ProposalConfirmed,
        e.ProposalWithdrawn,
        e.TokenCreated,
        e.TokenRevoked,
        e.ReviewSubmitted,
        e.ReviewRefused,
        e.BeneficiaryNoted,
        e.TimerFired,
        e.ReconcileMismatch,
        e.ReconcileDone,
        e.EntrySetAside,
        e.DeadLetterClosed,
        e.EntryDisowned,
        e.NotificationFailed,
        e.CancelRequested,
        e.AccessRefused,
    }
)


def settlement_due(record: PayoutRecord) -> Literal["committed", "released"] | None:
    """What must happen to the reservation now, by bank status and decision; None: nothing.

    A committed reservation is committed again if fees count and the bank named more of them.
    """
    if record.reservation is None:
        return None
    held = record.reservation.state
    if held == "released":
        return None
    if record.bank_status in RELEASING_STATUSES:
        return "released"
    if held == "committed" and record.reservation.count_fees and record.fees > record.reservation.fees:
        return "committed"
    if held == "reserved":
        if record.bank_status == "processed":
            return "committed"
        stays = record.maybe_sent or record.bank_status in MOVING_STATUSES
        if record.decision == "REJECTED" and not stays:
            return "released"
    return None
