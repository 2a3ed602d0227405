"""What the bank keeps, and how it shows each thing on the wire. Amounts in paise, times in Unix seconds."""

import random
import string
from typing import Any

from msgspec import Struct

from ops.sandbox.states import REASONS

BASE62 = string.digits + string.ascii_uppercase + string.ascii_lowercase
ID_LENGTH = 14
BANK_BY_PREFIX = {
    "HDFC": "HDFC Bank",
    "ICIC": "ICICI Bank",
    "SBIN": "State Bank of India",
    "UTIB": "Axis Bank",
}

ENDED_BADLY = ("failed", "reversed", "rejected")

Json = dict[str, Any]
"""A JSON object of the bank's. `Any`, because the bank's notes and details are free-form."""

NO_ERROR: Json = {
    "source": None,
    "reason": None,
    "description": None,
    "code": "NA",
    "step": "NA",
    "metadata": {},
}
"""The deprecated `error` of a payout, which the bank still sends."""


def new_id(rng: random.Random, prefix: str = "") -> str:
    """A bank id: prefix, underscore and 14 base62 characters, or the bare characters."""
    body = "".join(rng.choices(BASE62, k=ID_LENGTH))
    return f"{prefix}_{body}" if prefix else body


class Contact(Struct, kw_only=True):
    """A person or firm that can be paid."""

    id: str
    name: str
    contact: str | None = None
    email: str | None = None
    type: str | None = None
    reference_id: str | None = None
    notes: Json = {}
    active: bool = True
    created_at: int = 0

    def shown(self) -> Json:
        """As the API shows it."""
        return {
            "id": self.id,
            "entity": "contact",
            "name": self.name,
            "contact": self.contact,
            "email": self.email,
            "type": self.type,
            "reference_id": self.reference_id,
            "batch_id": None,
            "active": self.active,
            "notes": self.notes or [],
            "created_at": self.created_at,
        }


class FundAccount(Struct, kw_only=True):
    """Where a contact is paid: a bank account, a VPA, a wallet or a card."""

    id: str
    contact_id: str
    account_type: str
    details: Json
    active: bool = True
    created_at: int = 0

    def shown(self) -> Json:
        """As the API shows it; the details stand under the name of the account type."""
        return {
            "id": self.id,
            "entity": "fund_account",
            "contact_id": self.contact_id,
            "account_type": self.account_type,
            "batch_id": None,
            self.account_type: self._details_shown(),
            "active": self.active,
            "created_at": self.created_at,
        }

    def _details_shown(self) -> Json:
        if self.account_type == "vpa":
            username, _, handle = str(self.details["address"]).partition("@")
            return {"username": username, "handle": handle, "address": self.details["address"]}
        if self.account_type == "bank_account":
            bank = BANK_BY_PREFIX.get(str(self.details["ifsc"])[:4], "Sandbox Bank")
            return {"bank_name": bank, **self.details, "notes": []}
        return self.details


class Approval(Struct, frozen=True):
    """One level of the workflow passed, or the refusal that ended it."""

    action: str
    by: str
    remarks: str
    at: int


class Payout(Struct, kw_only=True):
    """One payout, with what the bank keeps for itself below the line."""

    id: str
    fund_account_id: str
    amount: int
    mode: str
    purpose: str
    status: str
    created_at: int
    currency: str = "INR"
    notes: Json = {}
    fees: int = 0
    tax: int = 0
    utr: str | None = None
    reference_id: str | None = None
    narration: str = ""
    reason: str | None = None
    debited: bool = False
    # -- not shown --
    number: int = 0
    """Dense, in order of creation: the queue's order and the list's."""
    origin: str = "api"
    account: str = ""
    """Whose it is; empty: of the account that API calls are about."""
    approvals_needed: int = 0
    approvals: list[Approval] = []
    outcome: str = "processed"
    """What becomes of it once it is processing; `stuck` stays there."""
    outcome_reason: str | None = None
    reverse_after_s: float | None = None
    """Seconds from `processed` to a late reversal."""
    due_at: float | None = None
    """When the clock moves it next, to `due_to`."""
    due_to: str = ""

    def status_details(self) -> Json | None:
        """A reason with its source, or one of the two shapes that the bank uses for none."""
        if self.reason is None:
            # Both shapes were captured; which one a payout gets is fixed by its number.
            return None if self.number % 2 else {"reason": None, "description": None, "source": None}
        source, description = REASONS.get(self.reason, ("internal", self.reason))
        return {"reason": self.reason, "description": description, "source": source}

    def shown(self, merchant_id: str) -> Json:
        """As the API shows it, deprecated and undocumented keys included."""
        details = self.status_details()
        failure = details["description"] if details and self.status in ENDED_BADLY else None
        return {
            "id": self.id,
            "entity": "payout",
            "fund_account_id": self.fund_account_id,
            "amount": self.amount,
            "currency": self.currency,
            "notes": self.notes or [],
            "fees": self.fees,
            "tax": self.tax,
            "status": self.status,
            "purpose": self.purpose,
            "utr": self.utr,
            "mode": self.mode,
            "reference_id": self.reference_id,
            "narration": self.narration,
            "batch_id": None,
            "failure_reason": failure,
            "created_at": self.created_at,
            "fee_type": "" if self.debited else None,
            "status_details": details,
            "merchant_id": merchant_id,
            "status_details_id": None,
            "error": dict(NO_ERROR),
        }


class Transaction(Struct, frozen=True, kw_only=True):
    """One line of the account's statement. Exactly one of `credit` and `debit` is above 0."""

    id: str
    account_number: str
    amount: int
    credit: int
    debit: int
    balance: int
    source_id: str
    source_entity: str
    created_at: int

    def shown(self) -> Json:
        """As the API shows it."""
        return {
            "id": self.id,
            "entity": "transaction",
            "account_number": self.account_number,
            "amount": self.amount,
            "currency": "INR",
            "credit": self.credit,
            "debit": self.debit,
            "balance": self.balance,
            "source": {"id": self.source_id, "entity": self.source_entity, "amount": self.amount},
            "created_at": self.created_at,
        }


class BankEvent(Struct, frozen=True, kw_only=True):
    """Something the bank tells its customer, as it was at that moment."""

    name: str
    entity: str
    """The key in `payload`, for example `payout`."""
    body: Json
    at: int
    about: str = ""
    """Id of what it is about, for the record; not on the wire."""
    account: str = ""
    """As in Payout."""
