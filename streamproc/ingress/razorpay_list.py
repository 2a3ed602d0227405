"""Reads the bank's whole list of payouts, which promises neither an order nor to stand still while it is read.

One page is one answer of the bank, taken at one moment. So a time window that does not fit on a page is halved until
each part does. Skipping over pages, which misses what moves between two calls, is only used for windows of at most
SPLIT_S seconds, and such a window is read again until a reading shows nothing new. Parts come in the order of time:
what was read up to a second stays read, whatever happens later. That is by the bank's clock, which made the payouts'
times: where ours is ahead, a page that was asked for up to our time shows nothing later than the bank's.
"""

import asyncio
from collections.abc import AsyncIterator

from msgspec import Struct

from streamproc.clients.razorpay import PAGE_COUNT_MAX, Page, Razorpay
from streamproc.clients.razorpay_entities import MalformedPayout
from streamproc.domain.events import BankPayout
from streamproc.errors import TryAgain

SPLIT_S = 3
"""Seconds. A shorter window is not halved: the halves share a second, so they would be no shorter."""
TRIES_MAX = 3
"""Calls for one page; after these the bank counts as away, and the next pass goes on."""
TRY_WAIT_S_MAX = 5.0
"""Longest wait between them. An open breaker or a bank that asks for more ends the reading."""
READINGS_MAX = 5
"""Readings of one crowded window; one that shows something new each time is not a list of the past."""


class Part(Struct, frozen=True, kw_only=True):
    """One page, whose items may come again. `upto`: all that was created up to that second was shown; None: not yet."""

    items: list[BankPayout | MalformedPayout]
    upto: int | None


async def read_list(bank: Razorpay, account_number: str, *, from_s: int, to_s: int) -> AsyncIterator[Part]:
    """Every payout created in [from_s, to_s], each at least once, in parts. Raises as the bank's client does."""
    waiting = [(from_s, to_s)]
    while waiting:
        start, end = waiting.pop()
        page = await _page(bank, account_number, start, end, 0)
        if page.raw_count < PAGE_COUNT_MAX:
            yield Part(items=page.items, upto=_upto(page, end))
            continue
        yield Part(items=page.items, upto=None)
        if end - start >= SPLIT_S:
            middle = (start + end) // 2
            # They share two seconds, since it is not said whether `from` and `to` are included.
            waiting += [(middle, end), (start, middle + 1)]
        else:
            async for part in _crowded(bank, account_number, start, end):
                yield part


async def _page(bank: Razorpay, account_number: str, start: int, end: int, skip: int) -> Page:
    """One page, with a few tries: of hundreds of calls one may fail, and the others need not be repeated."""
    for attempt in range(1, TRIES_MAX + 1):
        try:
            return await bank.list_page(account_number, from_s=start, to_s=end, skip=skip)
        except TryAgain as problem:
            if attempt == TRIES_MAX or problem.after_s > TRY_WAIT_S_MAX:
                raise
            await asyncio.sleep(problem.after_s)
    raise AssertionError("the last try returns or raises")


async def _crowded(bank: Razorpay, account_number: str, start: int, end: int) -> AsyncIterator[Part]:
    seen: set[str] = set()
    for _ in range(READINGS_MAX):
        before, skip, last, upto = len(seen), 0, False, end
        while not last:
            page = await _page(bank, account_number, start, end, skip)
            seen |= {_name(item) for item in page.items}
            skip += page.raw_count
            upto = min(upto, _upto(page, end))
            last = page.raw_count < PAGE_COUNT_MAX
            yield Part(items=page.items, upto=upto if last and before and len(seen) == before else None)
        if before and len(seen) == before:
            return
    raise TryAgain(f"the bank's list from {start} to {end} changed in each of {READINGS_MAX} readings")


def _upto(page: Page, end: int) -> int:
    """Up to which second a page that was asked for up to `end` can have shown all. A payout that it shows was made
    before it, whatever time it names: its header may be a proxy's, of a clock that is behind or stands still."""
    if page.at_s is None:
        return end
    return min(
        end, max(page.at_s, *(item.created_at for item in page.items if isinstance(item, BankPayout)), 0)
    )


def _name(item: BankPayout | MalformedPayout) -> str:
    return item.id if isinstance(item, BankPayout) else item.payout or item.fingerprint
