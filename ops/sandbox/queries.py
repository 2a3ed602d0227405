"""What can be read at the bank: lists with their filters and page sizes. Newest first (not documented)."""

import re
from collections.abc import Callable, Iterable, Mapping
from itertools import islice
from typing import TypeVar

from ops.sandbox.entities import Contact, FundAccount, Json, Payout, Transaction
from ops.sandbox.refusals import Refused, unknown_id
from ops.sandbox.world import World

INTEGER = re.compile(r"-?[0-9]{1,18}")
COUNT_DEFAULT = 10
COUNT_MAX = 100
PAYOUT_FILTERS = ("status", "mode", "reference_id", "fund_account_id")
T = TypeVar("T", Payout, Contact, FundAccount, Transaction)


def payouts(world: World, query: Mapping[str, str]) -> Json:
    """`GET /payouts`: filters combine; `account_number` is required."""
    account = _check_account(world, query)
    matches, contact = _matching(query, *PAYOUT_FILTERS), query.get("contact_id")

    def fits(payout: Payout) -> bool:
        if payout.account != account:
            return False
        if contact and world.directory.fund_account(payout.fund_account_id).contact_id != contact:
            return False
        return matches(payout)

    rows = _between(reversed(world.bank.payouts.values()), query)
    return _page(rows, query, fits, lambda payout: payout.shown(world.bank.merchant_id))


def contacts(world: World, query: Mapping[str, str]) -> Json:
    """`GET /contacts`."""
    rows = _between(reversed(world.directory.contacts.values()), query)
    fits = _matching(query, "name", "email", "contact", "reference_id", "type")
    return _page(rows, query, fits, lambda row: row.shown())


def fund_accounts(world: World, query: Mapping[str, str]) -> Json:
    """`GET /fund_accounts`."""
    rows = _between(reversed(world.directory.fund_accounts.values()), query)
    return _page(rows, query, _matching(query, "contact_id", "account_type"), lambda row: row.shown())


def _matching(query: Mapping[str, str], *names: str) -> Callable[[object], bool]:
    """Whether a row has the values that the query gives for these of its fields."""
    wanted = {name: query[name] for name in names if query.get(name)}
    return lambda row: all(getattr(row, name) == value for name, value in wanted.items())


def transactions(world: World, query: Mapping[str, str]) -> Json:
    """`GET /transactions`."""
    _check_account(world, query)
    rows = _between(reversed(world.bank.ledger.transactions), query)
    return _page(rows, query, lambda _: True, lambda row: row.shown())


def transaction(world: World, transaction_id: str) -> Json:
    """`GET /transactions/:id`."""
    for line in world.bank.ledger.transactions:
        if line.id == transaction_id:
            return line.shown()
    raise unknown_id()


def balances(world: World, query: Mapping[str, str]) -> Json:
    """`GET /banking_balances`: the one account there is."""
    _number(query, "count", COUNT_DEFAULT, least=1, greatest=COUNT_MAX)
    ledger = world.bank.ledger
    item = {
        "entity": "banking_balance",
        "currency": "INR",
        "account_number": ledger.account_number,
        "account_type": "current_account",
        "bank_name": "RBL Bank",
        "bank_code": "RATN",
        "amount": ledger.balance,
        "available_amount": ledger.balance,
        "refreshed_at": int(world.clock.now()),
    }
    items = [item] if query.get("account_type", "current_account") == "current_account" else []
    return {"entity": "collection", "count": len(items), "items": items}


def _page(
    rows: Iterable[T], query: Mapping[str, str], fits: Callable[[T], bool], show: Callable[[T], Json]
) -> Json:
    count = _number(query, "count", COUNT_DEFAULT, least=1, greatest=COUNT_MAX)
    skip = _number(query, "skip", 0, least=0, greatest=None)
    items = [show(row) for row in islice(filter(fits, rows), skip, skip + count)]
    return {"entity": "collection", "count": len(items), "items": items}


def _between(rows: Iterable[T], query: Mapping[str, str]) -> Iterable[T]:
    start = _number(query, "from", 0, least=0, greatest=None)
    end = _number(query, "to", 2**62, least=0, greatest=None)
    return (row for row in rows if start <= row.created_at <= end)


def _number(query: Mapping[str, str], field: str, default: int, *, least: int, greatest: int | None) -> int:
    text = query.get(field, "")
    if text == "":
        return default
    if not INTEGER.fullmatch(text):
        raise Refused(f"The {field} must be an integer.", field=field)
    value = int(text)
    if value < least:
        raise Refused(f"The {field} must be at least {least}.", field=field)
    if greatest is not None and value > greatest:
        raise Refused(f"The {field} may not be greater than {greatest}", field=field)
    return value


def _check_account(world: World, query: Mapping[str, str]) -> str:
    """The account with the query's number, as payouts name it."""
    number = query.get("account_number", "")
    if not number:
        raise Refused("The account number field is required", field="account_number")
    account = world.config.accounts().get(number)
    if account is None:
        raise Refused("The RazorpayX Account number is invalid.", field="account_number")
    return account
