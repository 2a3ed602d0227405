"""Copies: the payouts at the bank that bear an intent's reference. Pure.

Anybody with the bank's keys can make another payout with that reference. So each is kept apart by its own id at the
bank, in whatever order they are seen, and none takes the intent's place.
"""

from collections.abc import Iterable, Sequence

from msgspec import Struct

from streamproc.domain.events import BankPayout
from streamproc.domain.intent import is_intent
from streamproc.domain.states import BANK_RANK

COPIES_MAX = 8
"""Copies kept of one reference. Normally there is one; more mean that somebody abuses the reference. Any beyond the
limit is judged when it is seen, by that sighting alone (consumers/settle.py)."""


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
    """It moved although it is not ours, which is recorded."""


def name_here(facts: BankPayout) -> str:
    """Our id of a payout at the bank: the reference if that is an intent's, else the bank's own id."""
    return facts.reference_id if is_intent(facts.reference_id) else facts.id


def copy_of(facts: BankPayout) -> BankCopy:
    """A copy of what the bank showed."""
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
    """The copies with a sighting merged in, in an order that does not depend on the order of sightings.

    Beyond COPIES_MAX no new one is kept, unless it is `ours`.
    """
    known = {copy.id: copy for copy in copies}
    if seen.id not in known and len(known) >= COPIES_MAX and not ours:
        return list(copies)
    known[seen.id] = _merged(known[seen.id], seen) if seen.id in known else seen
    return sorted(known.values(), key=lambda copy: copy.id)


def _merged(known: BankCopy, seen: BankCopy) -> BankCopy:
    forward = BANK_RANK.get(seen.status, 0) > BANK_RANK.get(known.status, 0)
    return BankCopy(
        id=known.id,
        amount=max(known.amount, seen.amount),
        currency=max(known.currency, seen.currency),
        fund_account=max(known.fund_account, seen.fund_account),
        created_at=max(known.created_at, seen.created_at),
        status=seen.status if forward else known.status,
        utr=max(known.utr, seen.utr),
        fees=max(known.fees, seen.fees),
        tax=max(known.tax, seen.tax),
        bypassed=known.bypassed or seen.bypassed,
    )


def agrees(copy: BankCopy, amount: int, currency: str, fund_account: str) -> bool:
    """Whether a copy could be what an intent asks for. Fund accounts are compared only if both are known."""
    if copy.amount != amount or copy.currency != currency:
        return False
    return not fund_account or not copy.fund_account or copy.fund_account == fund_account


def first_of(copies: Iterable[BankCopy]) -> BankCopy | None:
    """The oldest copy."""
    return min(copies, key=lambda copy: (copy.created_at, copy.id), default=None)


def furthest_of(copies: Iterable[BankCopy]) -> BankCopy | None:
    """The copy whose status is the furthest on, so that one that moved comes before one that never did; of several the
    oldest."""
    return min(
        copies, key=lambda copy: (-BANK_RANK.get(copy.status, 0), copy.created_at, copy.id), default=None
    )
