"""An intent: a payout that an agent asks us to make. What it says, and what it is called. Pure.

Its id is a hash of account, agent and Idempotency-Key, so a retry names the same payout, and it is the bank's
`reference_id` (ADR 13).
"""

import re
from hashlib import sha256
from typing import Literal

from msgspec import Struct
from msgspec.structs import replace

_ID = re.compile(r"spi_[0-9a-z]{26}")
_ALPHABET = "0123456789abcdefghijklmnopqrstuvwxyz"
_ID_CHARS = 26


class Beneficiary(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Contact and fund account inline, as the bank takes them. Personal data: views and `explain` mask it."""

    contact_name: str
    contact_type: str = ""
    email: str = ""
    phone: str = ""
    account_type: Literal["bank_account", "vpa"]
    name: str = ""
    ifsc: str = ""
    account_number: str = ""
    vpa: str = ""


class Intent(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What the bank needs beside amount and currency. Exactly one of `fund_account_id` and `beneficiary` is there.

    Of a payout that was created, refused or rejected the record forgets the beneficiary: nobody needs it any more.
    """

    digest: str
    """SHA-256 of the request's body: another body under the same key is refused."""
    mode: str
    purpose: str
    narration: str = ""
    notes: dict[str, str] = {}
    fund_account_id: str = ""
    beneficiary: Beneficiary | None = None


def intent_id(account: str, agent: str, key: str) -> str:
    """The payout's id: `spi_` and 26 characters (134 bits), which fit into the bank's `reference_id` of 40."""
    number = int.from_bytes(sha256("\0".join(("intent", account, agent, key)).encode()).digest())
    digits = []
    for _ in range(_ID_CHARS):
        number, digit = divmod(number, len(_ALPHABET))
        digits.append(_ALPHABET[digit])
    return "spi_" + "".join(digits)


def is_intent(payout: str) -> bool:
    """Whether an id, or a reference at the bank, has exactly the shape of an intent's."""
    return payout.startswith("spi_") and _ID.fullmatch(payout) is not None


def without_beneficiary(intent: Intent) -> Intent:
    """The intent when nobody needs its beneficiary any more."""
    return intent if intent.beneficiary is None else replace(intent, beneficiary=None)


def without_personal(text: str, payee: Beneficiary | None) -> str:
    """A text of somebody else, the bank's for one, without what it repeats of the beneficiary."""
    if payee is None:
        return text
    values = (payee.account_number, payee.vpa, payee.email, payee.phone, payee.name, payee.contact_name)
    for value in sorted({value for value in values if value}, key=len, reverse=True):
        text = text.replace(value, masked(value))
    return text


MASK_SHOWS = 4
"""Last characters that a masked value shows."""


def masked(value: str) -> str:
    """The last characters of something personal; nothing of what is hardly longer than that."""
    shown = value[-MASK_SHOWS:] if len(value) >= 2 * MASK_SHOWS else ""
    return "*" * (len(value) - len(shown)) + shown
