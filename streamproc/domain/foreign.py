"""Payouts at the bank that bear an intent's reference and are not the intent's. Pure."""

from collections.abc import Iterable

from streamproc.domain.copies import BankCopy, agrees
from streamproc.domain.payouts import PayoutRecord


def could_be(record: PayoutRecord, copy: BankCopy) -> bool:
    """Whether a copy may be what the intent asks for."""
    return agrees(copy, record.amount, record.currency, record.fund_account)


def foreign_copies(record: PayoutRecord, unkept: Iterable[BankCopy] = ()) -> list[BankCopy]:
    """Payouts under an intent's reference that are surely not the intent's by now: copies that the record keeps, and
    `unkept` ones, which were seen when it had COPIES_MAX already."""
    awaited = record.intent is not None and (record.decision == "APPROVED" or record.maybe_sent)
    if record.created_as or record.failure:
        awaited = False
    return [
        copy
        for copy in (*record.copies, *unkept)
        if copy.id != record.bank_payout and not (awaited and could_be(record, copy))
    ]
