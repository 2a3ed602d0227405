"""A payout made directly at the bank, by an agent with the dashboard's password, say."""

from typing import Any

from msgspec import Struct

from ops.sandbox.bank import Outcome
from ops.sandbox.entities import FundAccount, Json
from ops.sandbox.orders import Order, check_amount, check_mode
from ops.sandbox.refusals import Refused
from ops.sandbox.world import World

COUNT_MAX = 10_000
"""Payouts made by one control call."""
FIRST_STATES = ("pending", "queued", "processing", "scheduled")
IMPS_MAX_PAISE = 50_000_000


class Vendor(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The vendor whom an outsider pays: with `vpa` by UPI, else to the bank account."""

    name: str = "Asha Paper Works"
    vpa: str = ""
    ifsc: str = "HDFC0000053"
    account_number: str = "50100012345678"


class OutsiderPayout(Struct, kw_only=True, forbid_unknown_fields=True):
    """A payout made directly at the bank. Amount in paise."""

    amount: int
    fund_account_id: str = ""
    vendor: Vendor = Vendor()
    mode: str = ""
    """Empty: UPI if the vendor has a VPA, else IMPS, or NEFT above the limit of IMPS."""
    purpose: str = "vendor bill"
    currency: str = "INR"
    reference_id: str | None = None
    narration: str = "Sandbox Fund Transfer"
    notes: dict[str, Any] | list[Any] = {}
    account: str = ""
    """One of SANDBOX_MORE_ACCOUNTS; empty: the account that API calls are about."""
    status: str = "pending"
    outcome: Outcome | None = None
    outcome_reason: str | None = None
    reverse_after_s: float | None = None
    count: int = 1


async def make_payouts(world: World, body: OutsiderPayout) -> Json:
    """`POST /_control/payouts`: the entity, or `items` when `count` is above 1."""
    now = world.clock.now()
    if not 1 <= body.count <= COUNT_MAX:
        raise Refused(f"count {body.count} is not within 1 to {COUNT_MAX}", field="count")
    if body.status not in FIRST_STATES:
        raise Refused(f"status {body.status}: not one of {FIRST_STATES}", field="status")
    if body.account not in world.config.accounts().values():
        raise Refused(f"account {body.account}: not one of SANDBOX_MORE_ACCOUNTS", field="account")
    account = _vendor_account(world, body, int(now))
    mode = body.mode or _usual_mode(account, body.amount)
    check_amount(body.amount, mode)
    check_mode(mode, account.account_type)
    order = Order(
        fund_account_id=account.id,
        amount=body.amount,
        mode=mode,
        purpose=body.purpose,
        currency=body.currency,
        reference_id=body.reference_id,
        narration=body.narration,
        notes=body.notes if isinstance(body.notes, dict) else {},
        origin="dashboard",
        account=body.account,
        status=body.status,
        outcome=body.outcome or "",
        outcome_reason=body.outcome_reason,
        reverse_after_s=body.reverse_after_s,
    )
    made = [world.bank.create(order, now).shown(world.bank.merchant_id) for _ in range(body.count)]
    return made[0] if body.count == 1 else {"entity": "collection", "count": len(made), "items": made}


def _vendor_account(world: World, body: OutsiderPayout, now: int) -> FundAccount:
    if body.fund_account_id:
        return world.directory.fund_account(body.fund_account_id)
    vendor = body.vendor
    details: Json = {"account_type": "vpa", "vpa": {"address": vendor.vpa}}
    if not vendor.vpa:
        bank = {"name": vendor.name, "ifsc": vendor.ifsc, "account_number": vendor.account_number}
        details = {"account_type": "bank_account", "bank_account": bank}
    contact = {"name": vendor.name, "type": "vendor"}
    return world.directory.composite({"fund_account": {**details, "contact": contact}}, now)


def _usual_mode(account: FundAccount, amount: int) -> str:
    if account.account_type == "vpa":
        return "UPI"
    return "IMPS" if amount <= IMPS_MAX_PAISE else "NEFT"
