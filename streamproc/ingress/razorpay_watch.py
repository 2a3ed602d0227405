"""Looks again at open payouts, however old: the bank's list goes by creation time, and some moves (cancelled, for one)
send no webhook.

A watch list has every open payout with the time of its next look: those that the poller lists and, added each hour,
those that are open in our records, since a webhook may tell of a payout older than all that is listed. Each pass looks
at up to LOOKS_MAX that are due, the longest due first; older payouts are looked at less often. Final ones leave the
list: a later reversal is seen by its webhook, or by `reconcile`.
"""

import asyncio
from collections.abc import Iterable, Sequence

from msgspec import Struct

from streamproc.clients.razorpay import Razorpay
from streamproc.clients.razorpay_entities import MalformedPayout
from streamproc.domain.copies import name_here
from streamproc.domain.events import BankPayout
from streamproc.domain.intent import is_intent
from streamproc.domain.payouts import PayoutRecord
from streamproc.domain.states import OPEN_STATUSES
from streamproc.errors import TryAgain, Unprocessable
from streamproc.ingress.translate import append_of_look
from streamproc.log.stream import Producer
from streamproc.log.watch_list import WatchList

LOOKS_MAX = 16
"""Payouts fetched in one pass: two seconds of the bank's advised limit, in each poll interval."""
FIRST_LOOK_S = 15 * 60
"""Age up to which a payout is in the part of the list that each pass reads anyway."""
AGE_SHARE = 8
"""Between two looks passes the payout's age divided by this, within BETWEEN_S_MIN and BETWEEN_S_MAX."""
BETWEEN_S_MIN, BETWEEN_S_MAX = 60, 6 * 3600
"""At most six hours: so late is seen that a payout was cancelled at the bank after two months."""
UNKNOWN_AGAIN_S = 600
"""Delay until a payout is looked at again that the bank did not know."""
WATCHED_STATUSES = OPEN_STATUSES | {"processing"}


UNKNOWN_SHOWN_MAX = 8


class Looked(Struct, frozen=True):
    """How many were looked at, and how many had moved; `unknown`: those that the bank does not know, by name."""

    looks: int = 0
    moved: int = 0
    unknown: tuple[str, ...] = ()
    failed: tuple[str, ...] = ()
    """How many of them got no answer; that delays neither the others nor the list."""


class Watcher:
    """Looks at open payouts of one account."""

    def __init__(self, bank: Razorpay, producer: Producer, watch_list: WatchList, *, account: str) -> None:
        self._bank = bank
        self._producer = producer
        self._watch_list = watch_list
        self._account = account
        self._unknown: dict[str, str] = {}

    async def note(self, items: Iterable[BankPayout | MalformedPayout]) -> None:
        """Watch the open payouts of a page."""
        when = {
            name_here(item): item.created_at + FIRST_LOOK_S
            for item in items
            if isinstance(item, BankPayout) and item.status in WATCHED_STATUSES
        }
        if when:
            await self._watch_list.add(when)

    async def look(self) -> Looked:
        """Look at what is due. Raises LogUnavailable.

        A payout without an answer is looked at again in a minute: the bank may be away, or fail for this payout for
        good.
        """
        now_s = self._producer.now_us() // 1_000_000
        await self._watch_list.seed(seeds, now_s)
        due = await self._watch_list.due(now_s, LOOKS_MAX, longest_s=BETWEEN_S_MAX)
        answers = await asyncio.gather(
            *(self._look_at(payout, record) for payout, record in due), return_exceptions=True
        )
        moves: dict[str, int | None] = {}
        moved, failed, problem = 0, list[str](), None
        for (payout, record), answer in zip(due, answers, strict=True):
            match answer:
                case Unprocessable():
                    self._unknown[payout] = f"{payout}: {str(answer).removeprefix(f'payout {payout}: ')}"
                    moves[payout] = now_s + UNKNOWN_AGAIN_S
                case TryAgain():
                    failed.append(f"{payout}: {answer}")
                    moves[payout] = now_s + BETWEEN_S_MIN
                case BaseException():
                    problem = problem or answer
                case (facts, new):
                    moved += new
                    self._unknown.pop(payout, None)
                    moves[payout] = next_look_s(facts, record, now_s)
        if moves:
            await self._watch_list.move(moves)
        if problem is not None:
            raise problem
        return Looked(len(due), moved, tuple(self._unknown.values())[:UNKNOWN_SHOWN_MAX], tuple(failed))

    async def _look_at(self, payout: str, record: PayoutRecord | None) -> tuple[BankPayout | None, bool]:
        """The bank's answer, or None if nothing has to be asked; and whether it was news."""
        if record is not None and record.bank_status not in WATCHED_STATUSES:
            return None, False
        if record is None and is_intent(payout):
            return None, False  # nobody asked for it here: what the list shows of it is all there is
        facts = await self._bank.fetch(record.at_bank if record is not None else payout)
        account = record.account if record is not None else self._account
        append = append_of_look(facts, record, account=account, now_us=self._producer.now_us())
        return facts, append is not None and (await self._producer.append(append)).new


def next_look_s(facts: BankPayout | None, record: PayoutRecord | None, now_s: int) -> int | None:
    """When to look again (Unix seconds); None: it is final."""
    if facts is None or facts.status not in WATCHED_STATUSES:
        return None
    since_s = facts.created_at or (record.received_at // 1_000_000 if record is not None else now_s)
    return now_s + min(BETWEEN_S_MAX, max(BETWEEN_S_MIN, (now_s - since_s) // AGE_SHARE))


def seeds(records: Sequence[PayoutRecord]) -> dict[str, int]:
    """Payouts that are open here and may be on no list, as after a recovery; due as if listed when they came, so the
    oldest first."""
    return {
        record.payout: record.received_at // 1_000_000 + FIRST_LOOK_S
        for record in records
        if record.bank_status in WATCHED_STATUSES
    }
