"""What the bank accepts as an order for a payout: fields, amounts per mode, narration, notes.

Each refusal names the field, as the bank's own do. Limits: razorpay.com/docs, read 2026.
"""

import re
from collections.abc import Callable
from typing import Final, TypeVar

from msgspec import Struct
from msgspec.structs import replace

from ops.sandbox.entities import FundAccount, Json
from ops.sandbox.refusals import Refused

AMOUNT_MIN_PAISE = 100
NARRATION_MAX = 30
REFERENCE_ID_MAX = 40
NOTES_MAX = 15
NOTE_LENGTH_MAX = 256
PURPOSE_MAX = 400

MODES: Final[dict[str, tuple[str, int, int | None]]] = {
    "IMPS": ("bank_account", 100, 50_000_000),
    "NEFT": ("bank_account", 100, None),
    "RTGS": ("bank_account", 20_000_000, None),
    "UPI": ("vpa", 100, 10_000_000),
    "amazonpay": ("wallet", 100, 1_000_000),
    "card": ("card", 100, None),
}
"""Mode -> account type, least and greatest amount in paise. RTGS from exactly 2 lakh: a guess."""

NARRATION = re.compile(rf"[A-Za-z0-9 ]{{0,{NARRATION_MAX}}}")
T = TypeVar("T")


class Order(Struct, frozen=True, kw_only=True):
    """A payout as somebody wants it. `status` forces the first state (the control API only)."""

    fund_account_id: str
    amount: int
    mode: str
    purpose: str = "payout"
    currency: str = "INR"
    reference_id: str | None = None
    narration: str = "Sandbox Fund Transfer"
    notes: Json = {}
    queue_if_low_balance: bool = False
    origin: str = "api"
    account: str = ""
    status: str = ""
    outcome: str = ""
    outcome_reason: str | None = None
    reverse_after_s: float | None = None


def parse_order(body: Json, account_number: str, fund_account: Callable[[Json], FundAccount]) -> Order:
    """The order in an API request; `fund_account` resolves or makes the account once the rest is valid."""
    if required(body, "account_number", str) != account_number:
        raise Refused("The RazorpayX Account number is invalid.", field="account_number")
    amount = required(body, "amount", int)
    mode = required(body, "mode", str)
    purpose = required(body, "purpose", str)
    if required(body, "currency", str) != "INR":
        raise Refused("The selected currency is invalid.", field="currency")
    if len(purpose) > PURPOSE_MAX:
        raise Refused(f"Invalid purpose: longer than {PURPOSE_MAX} characters", field="purpose")
    check_amount(amount, mode)
    if "fund_account" not in body and "fund_account_id" not in body:
        raise Refused("The fund account id field is required.", field="fund_account_id")
    order = Order(
        fund_account_id="",
        amount=amount,
        mode=mode,
        purpose=purpose,
        reference_id=text(body, "reference_id", REFERENCE_ID_MAX),
        narration=narration(body),
        notes=notes(body),
        queue_if_low_balance=flag(body, "queue_if_low_balance"),
    )
    account = fund_account(body)
    if not account.active:
        raise Refused("Payouts cannot be made to an inactive fund account", field="fund_account_id")
    check_mode(mode, account.account_type)
    return replace(order, fund_account_id=account.id)


def check_amount(amount: int, mode: str) -> None:
    """Refuse an unknown mode, and an amount outside its limits. Paise."""
    if mode not in MODES:
        raise Refused(f"Payout mode is invalid: {mode}", field="mode")
    if amount < AMOUNT_MIN_PAISE:
        raise Refused(f"Minimum transaction amount should be {AMOUNT_MIN_PAISE} paise", field="amount")
    _, least, greatest = MODES[mode]
    if amount < least:
        raise Refused(f"The amount must be at least {least} paise for {mode}", field="amount")
    if greatest is not None and amount > greatest:
        raise Refused(f"The amount may not be greater than {greatest} paise for {mode}", field="amount")


def check_mode(mode: str, account_type: str) -> None:
    """Refuse a mode that does not pay to this kind of fund account."""
    if MODES[mode][0] != account_type:
        raise Refused(f"{mode} is not a valid mode for a fund account of type {account_type}", field="mode")


def required(body: Json, field: str, kind: type[T]) -> T:
    """The field's value. Raises the bank's refusal if it is absent, null or of another type."""
    value = body.get(field)
    words = field.replace("_", " ")
    if value is None or value == "":
        raise Refused(f"The {words} field is required.", field=field)
    if not isinstance(value, kind) or isinstance(value, bool):
        what = "an integer" if kind is int else "a string"
        raise Refused(f"The {words} must be {what}.", field=field)
    return value


def text(body: Json, field: str, length_max: int) -> str | None:
    """An optional text of at most `length_max` characters."""
    value = body.get(field)
    if value is None:
        return None
    words = field.replace("_", " ")
    if not isinstance(value, str):
        raise Refused(f"The {words} must be a string.", field=field)
    if len(value) > length_max:
        raise Refused(f"The {words} may not be greater than {length_max} characters.", field=field)
    return value


def narration(body: Json) -> str:
    """The narration, or the merchant's label when there is none."""
    value = body.get("narration")
    if value is None:
        return "Sandbox Fund Transfer"
    if not isinstance(value, str) or not NARRATION.fullmatch(value):
        raise Refused(
            f"The narration may have {NARRATION_MAX} letters, digits and spaces.", field="narration"
        )
    return value


def notes(body: Json) -> Json:
    """Up to 15 pairs; an empty list is an empty object, as the bank itself writes it."""
    value = body.get("notes")
    if value is None or value == []:
        return {}
    if not isinstance(value, dict):
        raise Refused("The notes must be an array.", field="notes")
    if len(value) > NOTES_MAX:
        raise Refused(f"Number of fields in notes should be less than or equal to {NOTES_MAX}", field="notes")
    for key, item in value.items():
        if isinstance(item, (dict, list)) or max(len(key), len(str(item))) > NOTE_LENGTH_MAX:
            raise Refused(
                f"A note must be a plain value of at most {NOTE_LENGTH_MAX} characters", field="notes"
            )
    return value


def flag(body: Json, field: str) -> bool:
    """An optional true or false; the bank also takes 0 and 1."""
    value = body.get(field, False)
    if value not in (True, False, None):
        raise Refused(f"The {field.replace('_', ' ')} field must be true or false.", field=field)
    return bool(value)
