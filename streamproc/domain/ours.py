"""Which payout under an intent's reference is the intent's own, and which surely are not. Pure."""

from collections.abc import Iterable

from streamproc.domain.copies import BankCopy, agrees, first_of, furthest_of
from streamproc.domain.record import PayoutRecord
from streamproc.domain.states import RELEASING_STATUSES


def could_be(record: PayoutRecord, copy: BankCopy) -> bool:
    """Whether a copy may be what the intent asks for."""
    return agrees(copy, record.amount, record.currency, record.fund_account)


def own_copy(record: PayoutRecord) -> BankCopy | None:
    """The copy that counts as the intent's payout now.

    That is the one that the answer to our call named. Before that answer, if the intent is approved, or was stopped
    when an attempt may have reached the bank, it is the oldest copy that agrees; not one that ended unpaid while ours
    may still turn up. Of a stopped one that is settled it may have ended: what was paid comes back if it is reversed.
    """
    if record.created_as:
        return next((copy for copy in record.copies if copy.id == record.created_as), None)
    if not is_awaited(record):
        return None
    same = [copy for copy in record.copies if not copy.bypassed and could_be(record, copy)]
    mine = first_of(copy for copy in same if copy.status not in RELEASING_STATUSES)
    is_settled = record.reservation is not None and record.reservation.state != "reserved"
    if mine is None and record.maybe_sent and is_settled:
        mine = furthest_of(same)
    return mine


def is_awaited(record: PayoutRecord) -> bool:
    """Whether a payout of ours may be at the bank, or come there, that no answer to our call has named yet."""
    if record.intent is None or record.created_as or record.failure:
        return False
    return record.decision == "APPROVED" or record.maybe_sent


def meant_before(record: PayoutRecord, status: str) -> str:
    """The bank's id of what an earlier version had ended without naming it: a stopped intent's lost attempt, which it
    had found, and whose `status` alone its answer tells. '' where there is none."""
    same = [copy for copy in record.copies if copy.status == status and not copy.bypassed]
    mine = first_of(copy for copy in same if could_be(record, copy))
    return mine.id if mine is not None else ""


def foreign_copies(record: PayoutRecord, unkept: Iterable[BankCopy] = ()) -> list[BankCopy]:
    """Payouts under an intent's reference that are surely not the intent's by now: copies that the record keeps, and
    `unkept` ones, which were seen when it had COPIES_MAX already."""
    awaited = is_awaited(record)
    return [
        copy
        for copy in (*record.copies, *unkept)
        if copy.id != record.bank_payout and not (awaited and could_be(record, copy))
    ]
