"""What an agent may ask for: the request's fields against the bank's own rules, so that it can be paid. Pure.

Every problem is reported at once, by field. No problem repeats a value that may be personal. Source of the limits:
RazorpayX docs (payout entity, payouts, contacts, fund accounts), read 2026-11; where they are silent the narrower
reading is taken.
"""

import json
import re
from collections.abc import Mapping
from hashlib import sha256
from typing import Any, Final, NamedTuple

from msgspec import Struct

from streamproc.domain.intent import Beneficiary, Intent
from streamproc.domain.money import AMOUNT_MAX_PAISE, AMOUNT_MIN_PAISE, rupees
from streamproc.domain.plain import HARMFUL

PURPOSE_CHARS_MAX = 400
NARRATION_CHARS_MAX = 30
NOTES_MAX = 15
NOTE_CHARS_MAX = 256
URL_CHARS_MAX = 2_048
EMAIL_CHARS_MAX = 254
RESERVED_NOTES = frozenset({"agent_id", "vendor_url"})
"""Of a payout that is made at the bank, notes tell these. Here the token says who, and `vendor_url` is a field."""


class Mode(NamedTuple):
    """What a mode of payment pays to, and how much. Paise."""

    pays_to: str
    least: int
    most: int


MODES: Final[Mapping[str, Mode]] = {
    "IMPS": Mode("bank_account", AMOUNT_MIN_PAISE, 5_00_000_00),
    "NEFT": Mode("bank_account", AMOUNT_MIN_PAISE, AMOUNT_MAX_PAISE),
    "RTGS": Mode("bank_account", 2_00_000_00, AMOUNT_MAX_PAISE),
    "UPI": Mode("vpa", AMOUNT_MIN_PAISE, 1_00_000_00),
}
"""Cards and wallets need another contract with the bank. RTGS from exactly two lakh rupees: the bank itself refuses
more narrowly if it does."""

FUND_ACCOUNT_ID = re.compile(r"fa_[A-Za-z0-9]{1,40}")
_CURRENCY = re.compile(r"[A-Z]{3}")
"""Any: the bank pays rupees only, but to refuse another currency is the policy's (rule 4), so that the log shows who
asked for it."""
_NARRATION = re.compile(rf"[A-Za-z0-9 ]{{0,{NARRATION_CHARS_MAX}}}")
_CONTACT_NAME = re.compile(r"[A-Za-z0-9 ’'().,&/:_\-]{3,50}")
_CONTACT_TYPE = re.compile(r"[A-Za-z0-9 _\-]{1,40}")
_HOLDER = re.compile(r"[\s\S]{3,120}")
_IFSC = re.compile(r"[A-Z]{4}0[A-Z0-9]{6}")
_ACCOUNT_NUMBER = re.compile(r"[A-Za-z0-9]{5,35}")
_VPA = re.compile(r"(?=.{3,100}\Z)[A-Za-z0-9._\-]+@[A-Za-z0-9.\-]+")
_EMAIL = re.compile(rf"(?=.{{3,{EMAIL_CHARS_MAX}}}\Z)[^@\s]+@[^@\s]+")
_PHONE = re.compile(r"\+?[0-9]{8,15}")
_NOT_PLAIN = "must be without control characters, line ends, changes of direction and hidden characters"


class Problem(Struct, frozen=True):
    """One field, and what is wrong with it."""

    field: str
    problem: str


class Wanted(Struct, frozen=True, kw_only=True):
    """A request that the bank would take."""

    amount: int
    currency: str
    vendor_url: str
    intent: Intent


class _Reading:
    """Reads one object of a request and collects what is wrong."""

    def __init__(self, fields: Mapping[str, Any], problems: list[Problem], path: str = "") -> None:
        self._fields, self._problems, self._path = fields, problems, path

    def wrong(self, field: str, problem: str) -> None:
        self._problems.append(Problem(self._path + field, problem))

    def only(self, *known: str) -> None:
        """Nothing else may be there: what is misspelt would be lost."""
        for field in sorted(self._fields.keys() - set(known))[:NOTES_MAX]:
            self._problems.append(
                Problem(_sayable(f"{self._path}{field}"[:80]), "is no field of this object")
            )

    def text(self, field: str, shape: re.Pattern[str], must: str, *, default: str | None = None) -> str:
        """A text of a shape; `default` None: it must be there."""
        value = self._fields.get(field)
        if value is None:
            if default is None:
                self.wrong(field, f"is missing; it must be {must}")
            return default or ""
        if not isinstance(value, str) or not shape.fullmatch(value):
            self.wrong(field, f"must be {must}")
            return ""
        if HARMFUL.search(value):
            self.wrong(field, _NOT_PLAIN)
            return ""
        return value

    def inner(self, field: str) -> "_Reading | None":
        """An object within; None where it is missing or none."""
        value = self._fields.get(field)
        if not isinstance(value, dict):
            self.wrong(field, "is missing; it must be an object" if value is None else "must be an object")
            return None
        return _Reading(value, self._problems, f"{self._path}{field}.")

    def get(self, field: str) -> Any:
        return self._fields.get(field)

    def must(self, field: str, what: str) -> None:
        """Report the field, as missing where it is."""
        self.wrong(field, f"is missing; it must be {what}" if self.get(field) is None else f"must be {what}")


def read_request(body: Mapping[str, Any]) -> Wanted | list[Problem]:
    """A decoded body as what is wanted, or everything that is wrong with it."""
    problems: list[Problem] = []
    top = _Reading(body, problems)
    top.only(
        *("amount", "currency", "mode", "purpose", "narration", "notes", "vendor_url"),
        *("fund_account_id", "fund_account"),
    )
    currency = top.text("currency", _CURRENCY, "three capital letters, as INR", default="INR")
    mode = _mode(top)
    amount = _amount(top, mode)
    fund_account_id, payee = _payee(top, mode)
    intent = Intent(
        digest=_digest(body),
        mode=mode,
        purpose=_purpose(top),
        narration=top.text(
            "narration",
            _NARRATION,
            f"at most {NARRATION_CHARS_MAX} of A-Z a-z 0-9 and blanks, as the bank prints it",
            default="",
        ),
        notes=_notes(top),
        fund_account_id=fund_account_id,
        beneficiary=payee,
    )
    url = top.text("vendor_url", _URL, f"text of at most {URL_CHARS_MAX} characters", default="")
    return problems or Wanted(amount=amount, currency=currency, vendor_url=url, intent=intent)


def _sayable(name: str) -> str:
    """A name from outside, as any answer can hold and any reader can see it."""
    return HARMFUL.sub("\ufffd", name)


def _digest(body: Mapping[str, Any]) -> str:
    """The same for the same JSON, however it is spaced and in whatever order its fields stand."""
    return sha256(json.dumps(body, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


_URL = re.compile(rf"[\s\S]{{0,{URL_CHARS_MAX}}}")
_PURPOSE = re.compile(rf"[\s\S]{{1,{PURPOSE_CHARS_MAX}}}")


def _purpose(top: _Reading) -> str:
    must = "one that the account has, as `vendor bill` or `refund`"
    return top.text("purpose", _PURPOSE, f"text of 1 to {PURPOSE_CHARS_MAX} characters, {must}")


def _mode(top: _Reading) -> str:
    value = top.get("mode")
    if not isinstance(value, str) or value not in MODES:
        top.must("mode", f"one of {', '.join(MODES)}")
        return ""
    return value


def _amount(top: _Reading, mode: str) -> int:
    value = top.get("amount")
    if type(value) is not int:  # bool is an int to isinstance, and true is not one paisa
        top.must("amount", "a whole number of paise")
        return 0
    least, most = (MODES[mode].least, MODES[mode].most) if mode else (AMOUNT_MIN_PAISE, AMOUNT_MAX_PAISE)
    if not least <= value <= most:
        by = f" by {mode}" if mode else ""
        top.wrong(
            "amount",
            f"must be {least} to {most} paise{by} ({rupees(least)} to {rupees(most)})",
        )
    return value


def _notes(top: _Reading) -> dict[str, str]:
    value = top.get("notes")
    if value is None or value == []:
        return {}
    if not isinstance(value, dict):
        top.wrong("notes", "must be an object of texts")
        return {}
    if len(value) > NOTES_MAX:
        top.wrong("notes", f"has {len(value)} pairs, the limit is {NOTES_MAX}")
    for name, note in list(value.items())[: NOTES_MAX + 1]:
        shown = _sayable(f"notes.{name[:40]}")
        if name in RESERVED_NOTES:
            top.wrong(shown, "is reserved: the token says who asks, and `vendor_url` is a field of its own")
        elif not isinstance(note, str) or max(len(name), len(note)) > NOTE_CHARS_MAX:
            top.wrong(shown, f"must be text; name and text have {NOTE_CHARS_MAX} characters at most")
        elif HARMFUL.search(name) or HARMFUL.search(note):
            top.wrong(shown, _NOT_PLAIN)
    return {str(name): str(note) for name, note in value.items()}


def _payee(top: _Reading, mode: str) -> tuple[str, Beneficiary | None]:
    by_id, inline = top.get("fund_account_id"), top.get("fund_account")
    if (by_id is None) == (inline is None):
        top.wrong("fund_account_id", "give either this or `fund_account`, and not both")
        return "", None
    if by_id is not None:
        must = "the bank's id of a fund account, as fa_00000000000001"
        return top.text("fund_account_id", FUND_ACCOUNT_ID, must), None
    account = top.inner("fund_account")
    return "", None if account is None else _beneficiary(account, mode)


def _beneficiary(account: _Reading, mode: str) -> Beneficiary | None:
    kind = account.get("account_type")
    if kind != "bank_account" and kind != "vpa":
        account.wrong("account_type", "must be bank_account or vpa")
        return None
    account.only("account_type", kind, "contact")
    if mode and MODES[mode].pays_to != kind:
        account.wrong("account_type", f"{mode} pays to a {MODES[mode].pays_to}, not to a {kind}")
    contact, details = account.inner("contact"), account.inner(kind)
    if contact is None or details is None:
        return None
    contact.only("name", "type", "email", "contact")
    name = contact.text("name", _CONTACT_NAME, "3 to 50 letters, digits, blanks and ’'().,&/:_-")
    kind_of = contact.text(
        "type", _CONTACT_TYPE, "a type that the account has, 40 characters at most", default=""
    )
    email = contact.text("email", _EMAIL, f"an e-mail address of at most {EMAIL_CHARS_MAX}", default="")
    phone = contact.text("contact", _PHONE, "a phone number of 8 to 15 digits", default="")
    if kind == "vpa":
        details.only("address")
        vpa = details.text("address", _VPA, "a VPA of 3 to 100 characters with one @")
        return Beneficiary(
            contact_name=name, contact_type=kind_of, email=email, phone=phone, account_type="vpa", vpa=vpa
        )
    details.only("name", "ifsc", "account_number")
    return Beneficiary(
        contact_name=name,
        contact_type=kind_of,
        email=email,
        phone=phone,
        account_type="bank_account",
        name=details.text("name", _HOLDER, "the holder's name, 3 to 120 characters"),
        ifsc=details.text("ifsc", _IFSC, "an IFSC: 4 capitals, 0, and 6 capitals or digits"),
        account_number=details.text("account_number", _ACCOUNT_NUMBER, "5 to 35 letters and digits"),
    )
