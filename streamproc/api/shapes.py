"""The API's answers as types, for `/openapi.json`. The values are made in domain/shown.py; tests compare them with
these."""

from typing import Any, Final, Literal

from msgspec import Struct

from streamproc.domain.facts import Decision, Identity
from streamproc.domain.intent_rules import MODES, NARRATION_CHARS_MAX, NOTES_MAX, URL_CHARS_MAX
from streamproc.domain.money import AMOUNT_MAX_PAISE, AMOUNT_MIN_PAISE
from streamproc.domain.states import State


class Finding(Struct, frozen=True):
    """A rule that fired."""

    stage: str
    code: str
    outcome: Literal["REJECTED", "HELD", "NOTED"]
    evidence: dict[str, Any]


class Window(Struct, frozen=True):
    """A budget window that the payout is charged to, as it was right before the charge. Paise. `limit` is null where
    nobody limits it."""

    scope: str
    window: str
    limit: int | None
    reserved: int
    committed: int


class Reservation(Struct, frozen=True):
    """What the payout takes from its budgets. Paise."""

    state: str
    amount: int
    fees: int
    number: int
    windows: list[Window]


class Review(Struct, frozen=True):
    """A reviewer's answer that counted."""

    by: str
    action: Literal["approve", "reject"]
    why: str
    channel: str
    at: str


class Payout(Struct, frozen=True):
    """A payout. `bank_payout` is null while nothing is known to be at the bank. `reason` and `reasons` are codes of
    docs/governance.md, and more may come. `state` ends at `rejected` (of what was asked for here), `processed` (or
    later `reversed`), `failed`, `cancelled`, `declined` or `bypassed`."""

    payout: str
    account: str
    agent: str
    identity: Identity
    amount: int
    currency: str
    vendor_url: str
    received_at: str
    decision: Decision | None
    reason: str
    reasons: list[str]
    findings: list[Finding]
    policy_version: int
    state: State
    bank_status: str
    bank_payout: str | None
    failure: str | None
    reservation: Reservation | None
    reviews: list[Review]


class StoryEvent(Struct, frozen=True):
    """An event of the log. `data` depends on `type`."""

    id: str
    type: str
    at: str
    data: dict[str, Any]


class Story(Struct, frozen=True):
    """Events in log order; `notes` say what may be missing."""

    items: list[StoryEvent]
    notes: list[str]


class Hold(Struct, frozen=True):
    """A payout that waits for a person."""

    payout: str
    account: str
    agent: str
    identity: Identity
    amount: int
    currency: str
    vendor_url: str
    reason: str
    reasons: list[str]
    received_at: str
    expires_at: str | None
    approved_by: list[str]
    notified: bool
    """Whether people were told of it."""


class HoldPage(Struct, frozen=True):
    """Give `next` as `after` to get more; null: there are no more. `notes` say what may be missing."""

    items: list[Hold]
    next: str | None
    notes: list[str]


class Recorded(Struct, frozen=True):
    """An answer that is in the log."""

    payout: str
    entry: str
    detail: str


_TEXT: Final = {"type": "string"}
_PAYEE: Final = {
    "type": "object",
    "description": "who is paid, as the bank takes it: bank_account for IMPS, NEFT and RTGS, vpa for UPI",
    "properties": {
        "account_type": {"enum": ["bank_account", "vpa"]},
        "contact": {
            "type": "object",
            "properties": {"name": _TEXT, "type": _TEXT, "email": _TEXT, "contact": _TEXT},
            "required": ["name"],
            "additionalProperties": False,
        },
        "bank_account": {
            "type": "object",
            "properties": {"name": _TEXT, "ifsc": _TEXT, "account_number": _TEXT},
            "required": ["name", "ifsc", "account_number"],
            "additionalProperties": False,
        },
        "vpa": {
            "type": "object",
            "properties": {"address": _TEXT},
            "required": ["address"],
            "additionalProperties": False,
        },
    },
    "required": ["account_type", "contact"],
    "additionalProperties": False,
}

ORDER: Final[dict[str, Any]] = {
    "type": "object",
    "properties": {
        "amount": {
            "type": "integer",
            "minimum": AMOUNT_MIN_PAISE,
            "maximum": AMOUNT_MAX_PAISE,
            "description": "in paise: 100 is one rupee",
        },
        "currency": {
            "type": "string",
            "pattern": "^[A-Z]{3}$",
            "default": "INR",
            "description": "one that the policy allows; the bank pays INR only",
        },
        "mode": {"enum": list(MODES)},
        "purpose": {**_TEXT, "description": "one that the account has at the bank, as `vendor bill`"},
        "narration": {
            "type": "string",
            "maxLength": NARRATION_CHARS_MAX,
            "pattern": "^[A-Za-z0-9 ]*$",
            "description": "what the bank prints on the statement",
        },
        "notes": {
            "type": "object",
            "additionalProperties": _TEXT,
            "maxProperties": NOTES_MAX,
            "description": "the bank's notes; `lei` may name the contact's legal entity by its LEI (ISO 17442)",
        },
        "vendor_url": {
            "type": "string",
            "maxLength": URL_CHARS_MAX,
            "description": "the vendor's site or invoice, by which the vendor's reputation is looked up",
        },
        "fund_account_id": {
            "type": "string",
            "pattern": "^fa_[A-Za-z0-9]{1,40}$",
            "description": "who is paid, by the bank's id; or else `fund_account`",
        },
        "fund_account": _PAYEE,
    },
    "required": ["amount", "mode", "purpose"],
    "oneOf": [{"required": ["fund_account_id"]}, {"required": ["fund_account"]}],
    "additionalProperties": False,
}
"""A request for a payout, as far as a schema can say it; domain/intent_rules.py has every rule."""
