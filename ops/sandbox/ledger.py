"""The account: its balance and its statement, and what a payout costs."""

import random

from msgspec import Struct

from ops.sandbox.entities import Transaction, new_id

GST_PER_CENT = 18
FEE_FLAT_PAISE = 500
"""NEFT, RTGS and the rest, before tax."""
FEE_SLABS_PAISE = ((100_000, 200), (2_500_000, 900), (None, 1500))
"""IMPS and UPI: up to this amount, this fee before tax. The sandbox's own tariff."""


def fee_and_tax(amount: int, mode: str) -> tuple[int, int]:
    """What is charged on top of `amount`, and the tax within that charge. Paise: (fees, tax)."""
    base = FEE_FLAT_PAISE
    if mode in ("IMPS", "UPI"):
        base = next(fee for upto, fee in FEE_SLABS_PAISE if upto is None or amount <= upto)
    tax = base * GST_PER_CENT // 100
    return base + tax, tax


class Ledger(Struct, kw_only=True):
    """Balance in paise, never below 0, and the transactions that made it."""

    account_number: str
    balance: int
    transactions: list[Transaction] = []

    def debit(self, amount: int, *, source_id: str, entity: str, at: int, rng: random.Random) -> Transaction:
        """Take `amount` paise. Raises ValueError if the balance is too low: callers ask `affords` first."""
        if amount > self.balance:
            raise ValueError(f"debit of {amount} paise from a balance of {self.balance}")
        self.balance -= amount
        return self._note(-amount, source_id, entity, at, rng)

    def credit(self, amount: int, *, source_id: str, entity: str, at: int, rng: random.Random) -> Transaction:
        """Add `amount` paise."""
        self.balance += amount
        return self._note(amount, source_id, entity, at, rng)

    def affords(self, amount: int) -> bool:
        """Whether a debit of `amount` paise would go through."""
        return amount <= self.balance

    def _note(self, change: int, source_id: str, entity: str, at: int, rng: random.Random) -> Transaction:
        line = Transaction(
            id=new_id(rng, "txn"),
            account_number=self.account_number,
            amount=abs(change),
            credit=max(change, 0),
            debit=max(-change, 0),
            balance=self.balance,
            source_id=source_id,
            source_entity=entity,
            created_at=at,
        )
        self.transactions.append(line)
        return line
