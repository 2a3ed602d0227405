"""Reads the bank's payout entity, however odd, as a `BankPayout`, or says why it cannot. Pure.

Shared by the client (answers), the poller (list items) and the webhook. Legitimate oddities are accepted:
`notes` as `[]` or with numbers, `fund_account` in place of its id, null where text is usual, extra keys.
What rule 1 calls malformed is not repaired: if the amount is not an integer, it is not guessed.
Nothing of the beneficiary (account numbers, VPAs, names) is read.
"""

import json
import re
from functools import lru_cache
from hashlib import sha256
from typing import TypeAlias

from msgspec import Struct

from streamproc.domain.events import BankPayout
from streamproc.domain.money import AMOUNT_MAX_PAISE, AMOUNT_MIN_PAISE
from streamproc.domain.plain import clean
from streamproc.domain.states import BANK_RANK

NOTES_MAX = 32
"""Keys kept of `notes`: the bank allows 15 and adds some of its own."""
NOTE_CHARS_MAX = 256
"""The bank's own limit for a note."""
KEYS_KNOWN_MAX = 1024
"""Note keys that are cached: at most some 1 MB, if each has NOTE_CHARS_MAX of the widest characters."""
GOVERNING_NOTES = frozenset({"agent_id", "vendor_url"})
"""Always kept: many other notes must not push them out."""
TEXT_CHARS_MAX = 64
"""For utr, reference_id (the bank allows 40), narration (30), mode, purpose and reason."""
CURRENCY_CHARS_MAX = 16
"""A currency that is not a three-letter code is kept, so that the policy refuses it."""
SHOWN_CHARS_MAX = 40
"""Characters of an odd value that a problem text shows."""
UNIX_S_MAX = 2**40
"""A number beyond this (year 36,812) is not taken for a time."""

Object: TypeAlias = dict[str, object]

_ID = re.compile(r"[A-Za-z0-9_]{1,64}")
_NO_BREAKS = str.maketrans("", "", "\t\n\r")
_BENEFICIARY = re.compile(r"vpa|ifsc|upi|iban|payee|beneficiary|account_?n", re.IGNORECASE)


class MalformedPayout(Struct, frozen=True):
    """A payout that cannot be governed. `payout` is its id, or empty if that is unusable."""

    payout: str
    problem: str
    fingerprint: str
    """16 hex digits of the entity's SHA-256: tells two payouts without an id apart."""


def read_payout(entity: object) -> BankPayout | MalformedPayout:
    """The payout in a decoded entity. Never raises."""
    if not isinstance(entity, dict):
        return _malformed(entity, "", f"the payout is {shown(entity)}, not an object")
    payout = id_or_empty(entity.get("id"))
    problem = _problem(entity, payout)
    if problem:
        return _malformed(entity, payout, problem)
    details = entity.get("status_details")
    return BankPayout(
        id=payout,
        amount=entity["amount"],
        currency=clean(entity["currency"], CURRENCY_CHARS_MAX),
        status=entity["status"],
        created_at=count_or_zero(entity.get("created_at"), UNIX_S_MAX),
        fund_account_id=_fund_account(entity),
        mode=_text(entity.get("mode")),
        purpose=_text(entity.get("purpose")),
        reference_id=_text(entity.get("reference_id")),
        narration=_text(entity.get("narration")),
        utr=_text(entity.get("utr")),
        fees=count_or_zero(entity.get("fees"), AMOUNT_MAX_PAISE),
        tax=count_or_zero(entity.get("tax"), AMOUNT_MAX_PAISE),
        reason=_text(details.get("reason")) if isinstance(details, dict) else "",
        notes=read_notes(entity.get("notes")),
    )


def _malformed(entity: object, payout: str, problem: str) -> MalformedPayout:
    return MalformedPayout(payout, problem, sha256(_json(entity).encode()).hexdigest()[:16])


def _problem(entity: Object, payout: str) -> str:
    """Why rule 1 fires; empty if it does not."""
    amount, currency, status = entity.get("amount"), entity.get("currency"), entity.get("status")
    if not payout:
        return f"id {shown(entity.get('id'))} is not 1 to 64 letters, digits or underscores"
    if type(amount) is not int:  # not isinstance, for which `true` is an int: it is not one paisa
        return f"amount {shown(amount)} is not an integer of paise"
    if not AMOUNT_MIN_PAISE <= amount <= AMOUNT_MAX_PAISE:
        return f"amount {shown(amount)} paise is not between {AMOUNT_MIN_PAISE} and {AMOUNT_MAX_PAISE}"
    if not isinstance(currency, str) or not currency.strip():
        return f"currency {shown(currency)} is not text"
    if not isinstance(status, str) or status not in BANK_RANK:
        return f"status {shown(status)} is not one of {', '.join(BANK_RANK)}"
    return ""


def read_notes(notes: object) -> dict[str, str]:
    """`notes` as text to text. `[]`, null and anything but an object are empty; a list of objects is their union.

    Notes about the beneficiary's account are dropped: the bank itself adds `VPA_HANDLE`, `payee_ifsc` and
    `payee_bank_name`.
    """
    if isinstance(notes, list):
        notes = {key: value for part in notes if isinstance(part, dict) for key, value in part.items()}
    if not isinstance(notes, dict) or not notes:
        return {}
    kept = [(key, name) for key in notes if (name := _kept_as(key)) is not None]
    if len(kept) > NOTES_MAX:
        kept = sorted(kept, key=lambda one: one[0] not in GOVERNING_NOTES)[:NOTES_MAX]
    return {name: _note(key, notes[key]) for key, name in kept}


def _kept_as(key: str) -> str | None:
    """The name under which a note is kept; None: it is about the beneficiary. Cached, since senders use few keys."""
    return _known_key(key) if len(key) <= NOTE_CHARS_MAX else _read_key(key)


def _read_key(key: str) -> str | None:
    return None if _BENEFICIARY.search(key) else clean(key, NOTE_CHARS_MAX)


_known_key = lru_cache(KEYS_KNOWN_MAX)(_read_key)


def id_or_empty(value: object) -> str:
    """An id that is safe in a key and a path, or empty."""
    return value if isinstance(value, str) and _ID.fullmatch(value) else ""


def count_or_zero(value: object, most: int) -> int:
    """An integer in [0, most], or 0 for anything else."""
    return value if type(value) is int and 0 <= value <= most else 0


def shown(value: object) -> str:
    """A value, short enough for a problem text."""
    return clean(_json(value), SHOWN_CHARS_MAX)


def _text(value: object) -> str:
    if not isinstance(value, str):
        return ""
    return value[:TEXT_CHARS_MAX] if value.isprintable() else clean(value, TEXT_CHARS_MAX)


def _note(key: str, value: object) -> str:
    if not isinstance(value, str):
        value = "" if value is None else _json(value)
    if value.isprintable():
        return value[:NOTE_CHARS_MAX]
    # Browsers drop line breaks inside a URL, and the rules must see what a browser would open.
    return clean(value.translate(_NO_BREAKS) if key == "vendor_url" else value, NOTE_CHARS_MAX)


def _json(value: object) -> str:
    try:
        return json.dumps(value, separators=(",", ":"))
    except ValueError:  # Python does not print integers of thousands of digits
        return "a number too long to write"


def _fund_account(entity: Object) -> str:
    expanded = entity.get("fund_account")
    inner = expanded.get("id") if isinstance(expanded, dict) else None
    return id_or_empty(entity.get("fund_account_id")) or id_or_empty(inner)
