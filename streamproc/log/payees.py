"""The registry of beneficiaries in Redis: which keys a payout asks about, and what an approval notes there."""

from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

from msgspec import Struct

from streamproc.domain.beneficiaries import Pair, pair_of
from streamproc.domain.events import BeneficiaryNoted, Event, PayoutObserved, PayoutRequested
from streamproc.domain.states import OPEN_STATUSES
from streamproc.log.names import Names, Note
from streamproc.log.work import Work

PAIRS_MAX = 4_096
"""Pairs whose keys a process keeps, some 500 bytes each: most payouts go to somebody who was paid before."""


class Whom(NamedTuple):
    """A beneficiary, and the keys of the two hashes that know of it: by fund account, and by vendor."""

    pair: Pair
    keys: tuple[str, str]


class First(Struct, frozen=True, eq=False):
    """What may be the first look at a payout, and its beneficiary, which many payouts share."""

    work: Work
    whom: Whom


def first_looks(names: Names, works: Sequence[Work]) -> list[First]:
    """The works that may be the first look at their payout, in order."""
    firsts = []
    for work in works:
        for event in work.events:
            if type(event) is PayoutObserved and event.facts.status in OPEN_STATUSES:
                facts = event.facts
                whom = _whom(names, event.account, facts.fund_account_id, facts.notes.get("vendor_url", ""))
            elif type(event) is PayoutRequested:
                whom = _whom(names, event.account, event.intent.fund_account_id, event.vendor_url)
            else:
                continue
            firsts.append(First(work, whom))
            break
    return firsts


@lru_cache(maxsize=PAIRS_MAX)
def _whom(names: Names, account: str, fund_account: str, vendor_url: str) -> Whom:
    pair = pair_of(account, fund_account, vendor_url)
    return Whom(pair, keys_of(names, pair))


def keys_of(names: Names, pair: Pair) -> tuple[str, str]:
    """The hash of the vendors paid at a fund account, and the hash of the fund accounts at which a vendor was paid."""
    return _keys_of(names, pair.account, pair.fund_account, pair.vendor)


@lru_cache(maxsize=PAIRS_MAX)
def _keys_of(names: Names, account: str, fund_account: str, vendor: str) -> tuple[str, str]:
    return names.paid_for(account, fund_account), names.paid_at(account, vendor)


def notes_of(names: Names, work: Work, out: Sequence[Event]) -> list[Note]:
    """The notes that a commit makes for the events that a work emits."""
    notes = []
    for event in out:
        if type(event) is BeneficiaryNoted:
            by_account, by_vendor = keys_of(names, Pair(event.account, event.fund_account, event.vendor))
            notes.append((by_account, event.vendor, event.at, by_account in work.unpaid))
            if event.vendor:
                notes.append((by_vendor, event.fund_account, event.at, by_vendor in work.unpaid))
    return notes
