"""The registry of beneficiaries: which fund accounts and vendors were approved together on an account. Pure.

Under a fund account it keeps the hosts that were paid there, under a host the fund accounts where it was paid, each
with the time when that was last noted. So each question of rule 13 is one look-up.
"""

from collections.abc import Mapping
from functools import lru_cache
from typing import TypeAlias

from msgspec import Struct

from streamproc.domain.budget import US
from streamproc.domain.domains import VendorUrl, parse_vendor_url
from streamproc.domain.events import BeneficiaryNoted, BeneficiarySeen

KEPT_S = 400 * 86_400
"""A pair is forgotten this long after it was last noted, and then is new again; a yearly invoice still finds it."""
RENEW_S = 30 * 86_400
"""A pair that was noted longer ago is noted again: one event a month, not one a payout."""
NAMES_MAX = 8
"""Names under one key, some 50 bytes each; the one noted longest ago is dropped."""

PAIRS_MAX = 4_096
"""Pairs that a process caches by how they were written, 300 bytes each, more with long URLs."""
TOLD_MAX = 2
"""Names that a decision lists, the latest first. They are in its events and its record, and two are evidence enough."""

NOTED = BeneficiarySeen(known=True, noted=True)
"""What is seen of a pair that was noted lately: nothing to object to, and nothing to note."""

Noted: TypeAlias = Mapping[str, int]
"""Name -> when it was last noted (µs)."""


class Pair(Struct, frozen=True):
    """A fund account on an account, and the vendor's host; empty where there is no usable URL."""

    account: str
    fund_account: str
    vendor: str


@lru_cache(maxsize=PAIRS_MAX)
def pair_of(account: str, fund_account: str, vendor_url: str) -> Pair:
    """The pair that a payout is for."""
    url = parse_vendor_url(vendor_url) if vendor_url else None
    return Pair(account, fund_account, url.host if type(url) is VendorUrl else "")


def look(pair: Pair, vendors: Noted, accounts: Noted, now_us: int) -> BeneficiarySeen:
    """What is known of a pair: `vendors` are the names under its fund account, `accounts` those under its host."""
    fresh = now_us - RENEW_S * US
    if pair.vendor and vendors.get(pair.vendor, 0) > fresh and accounts.get(pair.fund_account, 0) > fresh:
        return NOTED  # nearly always; the code below would give the same
    vendors, accounts = _live(vendors, now_us), _live(accounts, now_us)
    hosts = {name: at for name, at in vendors.items() if name}
    return BeneficiarySeen(
        known=bool(vendors),
        noted=not pair.vendor and vendors.get("", 0) > fresh,
        other_vendors=_newest(hosts) if pair.vendor and pair.vendor not in vendors else [],
        other_accounts=_newest(accounts) if pair.fund_account not in accounts else [],
    )


def _newest(names: Noted) -> list[str]:
    return sorted(names, key=lambda name: (-names[name], name))[:TOLD_MAX]


def _live(names: Noted, now_us: int) -> Noted:
    return {name: at for name, at in names.items() if at > now_us - KEPT_S * US}


def with_name(names: Noted, name: str, at: int) -> dict[str, int]:
    """The names after one more was noted, limited as beneficiaries.lua does."""
    after = {**names, name: max(at, names.get(name, 0))}
    if len(after) > NAMES_MAX:
        del after[min(after, key=lambda key: (after[key], key))]
    return after


def to_note(pair: Pair, seen: BeneficiarySeen | None) -> bool:
    """Whether an approval of a payout for which this was seen adds to the registry."""
    return bool(pair.fund_account) and (seen is None or not seen.noted)


def note(pair: Pair, payout: str, at: int) -> BeneficiaryNoted:
    """The event by which an approval is noted."""
    return BeneficiaryNoted(
        at=at, payout=payout, account=pair.account, fund_account=pair.fund_account, vendor=pair.vendor
    )
