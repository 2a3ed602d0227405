"""The poller: pages through the bank's list and appends what it sees, through the same door as webhooks.

First form. Each pass lists the payouts created since a cursor, less an overlap, in every status. The keys are
those of the webhook, so a payout that was delivered is not appended again. The list filters by creation time:
a payout older than the overlap that changes later is seen by its webhooks only.
"""

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable
from typing import Protocol

from msgspec import Struct

from streamproc.clients.http import backoff_s
from streamproc.clients.razorpay import PAGE_COUNT_MAX, Page
from streamproc.clients.razorpay_entities import MalformedPayout
from streamproc.errors import LogUnavailable, TryAgain, Unprocessable
from streamproc.ingress.door import Door
from streamproc.ingress.translate import append_of

OVERLAP_S = 15 * 60
"""Listed again each pass: the bank's list is said to lag minutes behind."""
FIRST_LOOK_S = 24 * 3600
"""How far back the first pass looks: as long as the bank keeps trying to deliver a webhook."""
PAGES_MAX = 1_000
"""100,000 payouts in one pass. Beyond that the pass fails and says so: its window must be made smaller."""
WAIT_S_MAX = 15 * 60.0
"""Longest wait after failures in a row; below it a repaired bank would be noticed too late."""

_log = logging.getLogger(__name__)


class Lister(Protocol):
    """The part of the bank's client that is used here."""

    async def list_page(
        self, account_number: str, *, from_s: int, to_s: int, skip: int, count: int = PAGE_COUNT_MAX
    ) -> Page:
        """One page of payouts created in [from_s, to_s], Unix seconds."""
        ...


class Pass(Struct, frozen=True, kw_only=True):
    """What one pass did. `problem` is empty when it reached the end of the list."""

    from_s: int
    to_s: int
    pages: int = 0
    listed: int = 0
    new: int = 0
    malformed: int = 0
    problem: str = ""
    after_s: float = 0.0
    """The least wait in seconds that the failure asks for."""


class Poller:
    """Lists one bank account. `account` is the id that its webhooks carry: the same payout, the same partition.

    `load_cursor` gives the Unix second up to which the list was read, or None; `save_cursor` keeps it.
    """

    def __init__(
        self,
        bank: Lister,
        producer: Door,
        *,
        account: str,
        account_number: str,
        interval_s: float,
        load_cursor: Callable[[], Awaitable[int | None]],
        save_cursor: Callable[[int], Awaitable[None]],
    ) -> None:
        self._bank = bank
        self._producer = producer
        self._account = account
        self._account_number = account_number
        self._interval_s = interval_s
        self._load_cursor = load_cursor
        self._save_cursor = save_cursor
        self.failures_in_a_row = 0
        """Passes that failed since the last good one: a metric, and an alert when it grows."""

    async def run(self, stopping: asyncio.Event) -> None:
        """Poll until `stopping` is set; a pass that is under way then is given up, which loses nothing."""
        while not stopping.is_set():
            done = asyncio.create_task(self.poll_once(), name="poll")
            stopped = asyncio.create_task(stopping.wait(), name="poll-stopping")
            try:
                await asyncio.wait({done, stopped}, return_when=asyncio.FIRST_COMPLETED)
                if not done.done():
                    return
                await asyncio.wait({stopped}, timeout=self._wait_s(done.result()))
            finally:
                for task in (done, stopped):
                    task.cancel()
                await asyncio.wait({done, stopped})

    async def poll_once(self) -> Pass:
        """One pass. Failures of the bank or the log are in `problem`, and the cursor stays where it was."""
        to_s = self._producer.now_us() // 1_000_000
        cursor = None
        try:
            cursor = await self._load_cursor()
            done = await self._read_list(_from_s(cursor, to_s), to_s)
            if not done.problem:
                await self._save_cursor(to_s)
        except (TryAgain, Unprocessable, LogUnavailable) as problem:
            after_s = problem.after_s if isinstance(problem, TryAgain) else 0.0
            done = Pass(from_s=_from_s(cursor, to_s), to_s=to_s, problem=str(problem), after_s=after_s)
        self.failures_in_a_row = self.failures_in_a_row + 1 if done.problem else 0
        if done.problem:
            _log.warning("poll failed, %d in a row: %s", self.failures_in_a_row, done.problem)
        return done

    def _wait_s(self, done: Pass) -> float:
        """Never below the interval, whatever backoff and the bank say."""
        if not done.problem:
            return self._interval_s
        backoff = backoff_s(self.failures_in_a_row, self._interval_s, WAIT_S_MAX, random.random)
        return max(self._interval_s, done.after_s, backoff)

    async def _read_list(self, from_s: int, to_s: int) -> Pass:
        listed = new = malformed = 0
        for number in range(1, PAGES_MAX + 1):
            page = await self._bank.list_page(self._account_number, from_s=from_s, to_s=to_s, skip=listed)
            new += await self._append(page)
            listed += page.raw_count
            malformed += sum(isinstance(item, MalformedPayout) for item in page.items)
            if page.raw_count < PAGE_COUNT_MAX:
                return Pass(
                    from_s=from_s, to_s=to_s, pages=number, listed=listed, new=new, malformed=malformed
                )
        problem = f"the list from {from_s} to {to_s} has more than {PAGES_MAX} pages of {PAGE_COUNT_MAX}"
        return Pass(from_s=from_s, to_s=to_s, pages=PAGES_MAX, listed=listed, new=new, problem=problem)

    async def _append(self, page: Page) -> int:
        """Append a page's payouts together, so that the door coalesces them; how many were new."""
        now_us = self._producer.now_us()
        appends = [
            append_of(item, account=self._account, source="poll", now_us=now_us) for item in page.items
        ]
        answers = await asyncio.gather(
            *(self._producer.append(append) for append in appends), return_exceptions=True
        )
        for answer in answers:
            if isinstance(answer, BaseException):
                raise answer
        return sum(not isinstance(answer, BaseException) and answer.new for answer in answers)


def _from_s(cursor: int | None, to_s: int) -> int:
    """Where a pass begins. A cursor in the future (a clock was wrong) is none."""
    start = to_s - FIRST_LOOK_S if cursor is None else min(cursor, to_s) - OVERLAP_S
    return max(0, start)
