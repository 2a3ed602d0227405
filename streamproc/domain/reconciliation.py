"""Where the bank and we do not agree on a payout, or counters and their fold on a window. Pure."""

from collections.abc import Mapping
from typing import TypeAlias

from msgspec import Struct

from streamproc.domain.budget import must_be_counted
from streamproc.domain.copies import name_here
from streamproc.domain.events import BankPayout, MismatchKind
from streamproc.domain.intent import is_intent
from streamproc.domain.payouts import PayoutRecord, moves_forward

Counted: TypeAlias = Mapping[tuple[str, str], tuple[int, int]]
"""(scope, window) -> paise reserved, committed."""
_LATER_ALL_THE_SAME = frozenset({("reversed", "failed")})
"""Ours and the bank's. On current accounts a reversed payout may become failed: the money is ours either way."""


class Mismatch(Struct, frozen=True):
    """`payout` is empty where a window does not agree; `subject` then names it."""

    payout: str
    kind: MismatchKind
    ours: str
    theirs: str
    subject: str = ""


def compared(record: PayoutRecord | None, facts: BankPayout) -> Mismatch | None:
    """What the bank shows of a payout beside what we have; None where they agree.

    Of an intent only the payout that it is bound to is compared: another one under its reference is never its own, and
    is found out where it moves (GovernanceBypassed).
    """
    name = name_here(facts)
    if record is None:
        return Mismatch(name, "unknown_here", "", f"{facts.status}, {facts.amount} paise")
    if is_intent(name) and record.bank_payout != facts.id:
        known = any(copy.id == facts.id and copy.status == facts.status for copy in record.copies)
        return None if known else Mismatch(name, "behind", "", f"{facts.id}, {facts.status}")
    if record.amount != facts.amount:
        return Mismatch(name, "amount", f"{record.amount} paise", f"{facts.amount} paise")
    ours, theirs = record.bank_status, facts.status
    if (ours, theirs) in _LATER_ALL_THE_SAME:
        return None
    if ours != theirs:
        return Mismatch(name, "behind" if moves_forward(record, theirs) else "ahead", ours, theirs)
    if bank_adds_details(record, facts):
        return Mismatch(name, "behind", _named(record, ours), _named(facts, theirs))
    if _contradicts_details(record, facts):
        return Mismatch(name, "ahead", _named(record, ours), _named(facts, theirs))
    return None


def bank_adds_details(record: PayoutRecord, facts: BankPayout) -> bool:
    """Whether the bank names a UTR, fees or tax that the record lacks, and would have after an observation."""
    return facts.utr > record.utr or facts.fees > record.fees or facts.tax > record.tax


def _contradicts_details(record: PayoutRecord, facts: BankPayout) -> bool:
    """Whether the bank names another UTR, fees or tax. What it leaves out, it may name later."""
    pairs = ((facts.utr, record.utr), (facts.fees, record.fees), (facts.tax, record.tax))
    return any(theirs and theirs != ours for theirs, ours in pairs)


def _named(of: PayoutRecord | BankPayout, status: str) -> str:
    return f"{status}, UTR {of.utr or 'none'}, fees {of.fees} paise, tax {of.tax} paise"


def windows_apart(
    counters: Counted, folded: Counted, *, now_s: float, retention_s: float
) -> dict[tuple[str, str], Mismatch]:
    """Windows whose counter is not what its fold says. None that may still run may be missing, ended ones may."""
    missing = folded.keys() - counters.keys()
    lost = {window: (0, 0) for window in missing if must_be_counted(window[1], now_s, retention_s)}
    return {
        window: Mismatch("", "budget", _paise(held), _paise(folded.get(window, (0, 0))), " ".join(window))
        for window, held in {**counters, **lost}.items()
        if held != folded.get(window, (0, 0))
    }


def _paise(held: tuple[int, int]) -> str:
    return f"{held[0]} reserved, {held[1]} committed"
