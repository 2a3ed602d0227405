"""All that is known of one payout: the fold of its events (payouts.py), which Redis and Postgres keep."""

from collections.abc import Iterator
from typing import Literal

import msgspec
from msgspec import Struct, inspect

from streamproc.domain import facts as e
from streamproc.domain.copies import BankCopy
from streamproc.domain.intent import Intent
from streamproc.domain.notified import ASKING, Channel, NoticeKind
from streamproc.domain.states import State


class Reservation(Struct, frozen=True, kw_only=True, gc=False, omit_defaults=True):
    """A payout's amount in its budget windows. Settled once, except that a late reversal releases a commit."""

    state: Literal["reserved", "committed", "released"]
    amount: int
    number: int
    windows: list[e.WindowUse]
    count_fees: bool = False
    fees: int = 0
    """Committed with the amount (paise)."""


class Review(Struct, frozen=True, kw_only=True, gc=False, omit_defaults=True):
    """One reviewer's valid answer. `at`: µs; `via`: the account that it came from, or empty."""

    by: str
    via: str = ""
    action: Literal["approve", "reject"]
    why: str
    channel: str
    at: int


class HoldMessage(Struct, frozen=True, kw_only=True, gc=False, order=True, omit_defaults=True):
    """A message about a hold. `at` is µs; `ref` is Slack's `channel:ts`, or ntfy's message id."""

    at: int
    channel: Channel
    ref: str
    kind: NoticeKind
    shown_in: str = ""
    """The entry in which the payout was shown, if that is known."""


class PayoutRecord(Struct, frozen=True, kw_only=True, gc=False, omit_defaults=True):
    """All that is known of one payout: the fold of its events. Amounts in paise, times in µs."""

    payout: str
    account: str
    received_at: int
    amount: int = 0
    currency: str = ""
    agent: str = ""
    identity: e.Identity = "unknown"
    vendor_url: str = ""
    fund_account: str = ""
    reference_id: str = ""
    agent_sig: str = ""
    """The agent's signed note, as it was written (domain/agent_note.py)."""
    state: State = "received"
    bank_status: str = ""
    utr: str = ""
    fees: int = 0
    tax: int = 0
    decision: e.Decision | None = None
    decided_at: int = 0
    reason: str = ""
    reasons: list[str] = []
    findings: list[e.Finding] = []
    policy_version: int = 0
    beneficiary: e.BeneficiarySeen | None = None
    hold_expires_at: int = 0
    reputation_fresh_until: int = 0
    reservation: Reservation | None = None
    reviews: list[Review] = []
    bypassed: bool = False
    maybe_sent: bool = False
    """It was stopped after an attempt to send it, so only the bank can tell that no money moved."""
    bank_fee: bool = False
    updated_at: int = 0
    intent: Intent | None = None
    """What an agent asked us to make; None if the payout was made at the bank."""
    bank_payout: str = ""
    """An intent's id at the bank, once known. Empty for other payouts, whose id there is `payout`."""
    created_as: str = ""
    """That id, once the answer to our own call has named it."""
    copies: list[BankCopy] = []
    """Payouts at the bank under an intent's reference; the one with the id `bank_payout` is ours."""
    failure: str = ""
    """Why the bank refused to create the intent."""
    notices: list[HoldMessage] = []
    """Messages to people about the hold, the oldest first."""

    @property
    def told(self) -> bool:
        """Whether anybody was told that the payout waits for a decision."""
        return any(notice.kind in ASKING for notice in self.notices)

    @property
    def at_bank(self) -> str:
        """The id that the bank knows it by."""
        return self.bank_payout or self.payout


encode_record = msgspec.json.Encoder().encode
"""The record as Redis and Postgres keep it."""
decode_record = msgspec.json.Decoder(PayoutRecord).decode


def unknown_in(record: PayoutRecord, kept: bytes) -> list[str]:
    """Fields of a stored record that only a later version knows, and that would be lost if this one wrote the record
    back."""
    if encode_record(record) == kept:
        return []
    return sorted(set(_unknown(msgspec.json.decode(kept), inspect.type_info(PayoutRecord))))


def _unknown(found: object, kind: object) -> Iterator[str]:
    if isinstance(kind, inspect.UnionType):
        for option in kind.types:
            yield from _unknown(found, option)
    elif isinstance(kind, inspect.StructType) and isinstance(found, dict):
        known = {field.encode_name: field.type for field in kind.fields}
        for name, value in found.items():
            if name in known:
                yield from _unknown(value, known[name])
            else:
                yield f"{kind.cls.__name__}.{name}"
    elif isinstance(kind, inspect.ListType) and isinstance(found, list):
        for item in found:
            yield from _unknown(item, kind.item_type)
