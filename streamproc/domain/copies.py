"""What the bank has under an intent's reference. Pure.

Anybody with the bank's keys can make another payout with that reference. So each is kept apart by its own id at the
bank, whatever comes first, and never takes the intent's place.
"""

from collections.abc import Iterable, Sequence

from msgspec import Struct

from streamproc.domain.events import BankPayout
from streamproc.domain.intent import is_intent
from streamproc.domain.states import BANK_RANK

COPIES_MAX = 8
"""Payouts at the bank that are kept of one reference. There is one, or somebody plays with the reference. Any
further one is judged when it is seen, by that look alone (consumers/settle.py)."""


class BankCopy(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A payout at the bank that bears an intent's reference, as it was last seen."""

    id: str
    amount: int = 0
    currency: str = ""
    fund_account: str = ""
    created_at: int = 0
    status: str = ""
    utr: str = ""
    fees: int = 0
    tax: int = 0
    bypassed: bool = False
    """It moved although it is not ours, and that is recorded."""


def name_here(facts: BankPayout) -> str:
    """What a payout is called here: an intent's reference is its name, everything else bears the bank's own id."""
    return facts.reference_id if is_intent(facts.reference_id) else facts.id


def copy_of(facts: BankPayout) -> BankCopy:
    """A payout as the bank showed it, as a copy."""
    return BankCopy(
        id=facts.id,
        amount=facts.amount,
        currency=facts.currency,
        fund_account=facts.fund_account_id,
        created_at=facts.created_at,
        status=facts.status,
        utr=facts.utr,
        fees=facts.fees,
        tax=facts.tax,
    )


def with_copy(copies: Sequence[BankCopy], seen: BankCopy, *, ours: bool = False) -> list[BankCopy]:
    """The copies with another look at one of them, in an order that does not depend on that of the looks.

    Beyond COPIES_MAX no other one is kept, unless it is `ours`.
    """
    known = {copy.id: copy for copy in copies}
    if seen.id not in known and len(known) >= COPIES_MAX and not ours:
        return list(copies)
    known[seen.id] = _later(known[seen.id], seen) if seen.id in known else seen
    return sorted(known.values(), key=lambda copy: copy.id)


def _later(one: BankCopy, other: BankCopy) -> BankCopy:
    forward = BANK_RANK.get(other.status, 0) > BANK_RANK.get(one.status, 0)
    return BankCopy(
        id=one.id,
        amount=max(one.amount, other.amount),
        currency=max(one.currency, other.currency),
        fund_account=max(one.fund_account, other.fund_account),
        created_at=max(one.created_at, other.created_at),
        status=other.status if forward else one.status,
        utr=max(one.utr, other.utr),
        fees=max(one.fees, other.fees),
        tax=max(one.tax, other.tax),
        bypassed=one.bypassed or other.bypassed,
    )


def agrees(copy: BankCopy, amount: int, currency: str, fund_account: str) -> bool:
    """Whether a copy could be what an intent asks for; the fund account counts where both are known."""
    if copy.amount != amount or copy.currency != currency:
        return False
    return not fund_account or not copy.fund_account or copy.fund_account == fund_account


def first_of(copies: Iterable[BankCopy]) -> BankCopy | None:
    """The oldest one."""
    return min(copies, key=lambda copy: (copy.created_at, copy.id), default=None)
