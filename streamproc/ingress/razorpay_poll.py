"""The poller: reads the bank's list and appends what it sees, as the webhook does.

Each pass lists the payouts created since a cursor, less an overlap, in every status, and looks again at some that are
open and older. The keys are those of the webhook, so a payout that was delivered is not appended again. The cursor
moves with each part of the list that was read whole, so a pass that fails has not been for nothing.

One poller of an account is active, the others stand by (streamproc/log/lease.py). Two that are active for a moment, as
after a freeze, do no harm: both append the same keys, and whichever cursor is saved last, up to it all was read.
A cursor that a recovery has set back meanwhile stays there.
"""

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable

from msgspec import Struct

from streamproc.clients.http import backoff_s
from streamproc.clients.limiter import NoTurn
from streamproc.clients.razorpay import Razorpay
from streamproc.clients.razorpay_entities import MalformedPayout
from streamproc.domain.events import BankPayout
from streamproc.errors import LogUnavailable, TryAgain, Unprocessable
from streamproc.ingress.razorpay_list import read_list
from streamproc.ingress.razorpay_watch import Looked, Watcher
from streamproc.ingress.translate import append_of
from streamproc.log.cursor import PollCursor
from streamproc.log.stream import Appended, Producer

OVERLAP_S = 15 * 60
"""How far before the cursor a long look back lists again: the bank's list is said to lag by minutes."""
LONG_LOOK_EVERY_S = 120
"""Interval of long looks back: at some hundred payouts a minute one costs dozens of calls, too many for each pass."""
SHORT_OVERLAP_S = 60
"""How far before the cursor the other passes list again."""
FIRST_LOOK_S = 24 * 3600
"""How far back the first pass looks: as long as the bank keeps trying to deliver a webhook."""
CALLS_MAX = 1_000
"""Pages in one pass: two minutes of the bank's advised limit. The next pass goes on from there."""
WAIT_S_MAX = 15 * 60.0
"""Longest wait after failures of the bank in a row, so that a repaired bank is soon noticed."""

log = logging.getLogger(__name__)


class Pass(Struct, kw_only=True):
    """What one pass did. `problem` is empty when it came to its end."""

    server: str = ""
    """Which server had the log when it began; '' while a recovery was not complete."""
    from_s: int = 0
    to_s: int
    pages: int = 0
    listed: int = 0
    """Items on the pages; a payout may be on several."""
    new: int = 0
    malformed: int = 0
    looked: Looked = Looked()
    problem: str = ""
    after_s: float = 0.0
    """The least wait (s) that the failure asks for."""
    is_ours: bool = False
    """The failure is that of our own Redis, and not the bank's."""


Tell = Callable[[Pass, int, float], Awaitable[None]]
"""Saves the result of a pass, the failures in a row, and the seconds until the next one."""


class Listing:
    """Reads one bank account's list into the log, a pass at a time. `account` is the id that its webhooks carry: the
    same payout, the same partition."""

    def __init__(
        self,
        bank: Razorpay,
        producer: Producer,
        cursor: PollCursor,
        *,
        account: str,
        account_number: str,
        watch: Watcher | None = None,
    ) -> None:
        self._bank = bank
        self._producer = producer
        self._cursor = cursor
        self._account = account
        self._account_number = account_number
        self._watch = watch
        self._long_look: tuple[str, int] = ("", 0)
        """The last long look back: into the log of which server, and when."""
        self._left_at = 0
        """Where it left the cursor."""

    async def read(self) -> Pass:
        """Do one pass. Failures of the bank or the log are in `problem`; the cursor stays at what was read."""
        done = Pass(to_s=self._producer.now_us() // 1_000_000)
        try:
            done.server = await self._cursor.server()
            await self._producer.sync()  # a pass that finds nothing appends nothing, which would ask
            done.to_s = self._producer.now_us() // 1_000_000
            await self._read_list(done)
            if self._watch is not None:
                done.looked = await self._watch.look()
        except (TryAgain, Unprocessable, LogUnavailable) as problem:
            done.problem = str(problem)
            done.after_s = problem.after_s if isinstance(problem, TryAgain) else 0.0
            done.is_ours = isinstance(problem, LogUnavailable | NoTurn)
        return done

    async def _read_list(self, done: Pass) -> None:
        cursor = at = await self._cursor.load()
        # One that is later than now is of a clock that went back since. Where the log was set back, as another server's
        # may have been, it has lost what long looks added before the cursor, too.
        server, last_s = self._long_look
        is_set_back = server != done.server or (cursor or 0) < self._left_at
        is_long = is_set_back or not last_s <= done.to_s < last_s + LONG_LOOK_EVERY_S
        if is_long:
            # Until it has come to its end: what it reads first may move the cursor already.
            self._long_look = ("", 0)
        overlap_s = OVERLAP_S if is_long else SHORT_OVERLAP_S
        done.from_s, read_to = _from_s(cursor, done.to_s, overlap_s), cursor or 0
        if read_to > done.to_s:
            read_to = 0
        parts = read_list(self._bank, self._account_number, from_s=done.from_s, to_s=done.to_s)
        async for part in parts:
            done.pages += 1
            done.listed += len(part.items)
            done.malformed += sum(isinstance(item, MalformedPayout) for item in part.items)
            done.new += await self._append(part.items)
            if part.upto is not None and part.upto > read_to:
                read_to = part.upto
                await self._cursor.save(read_to, after=at)
                at = self._left_at = read_to
            if done.pages >= CALLS_MAX and read_to < done.to_s:
                raise TryAgain(
                    f"after {CALLS_MAX} pages the list from {done.from_s} to {done.to_s} is read up to {read_to}"
                    " only; the next pass goes on"
                )
        if is_long:
            self._long_look = done.server, done.to_s

    async def _append(self, items: list[BankPayout | MalformedPayout]) -> int:
        """Append a page's payouts together, so that they are coalesced; how many were new."""

        async def append_one(item: BankPayout | MalformedPayout) -> Appended:
            # The time is told as it is appended: in between the clock may be found to be another one.
            now_us = self._producer.now_us()
            append = append_of(item, account=self._account, source="poll", now_us=now_us)
            return await self._producer.append(append)

        answers = await asyncio.gather(*map(append_one, items), return_exceptions=True)
        for answer in answers:
            if isinstance(answer, BaseException):
                raise answer
        if self._watch is not None:
            await self._watch.note(items)
        return sum(not isinstance(answer, BaseException) and answer.new for answer in answers)


def _from_s(cursor: int | None, to_s: int, overlap_s: int) -> int:
    """Where a pass begins; a cursor in the future (the clock was wrong) does not count."""
    start = to_s - FIRST_LOOK_S if cursor is None else min(cursor, to_s) - overlap_s
    return max(0, start)


class Poller:
    """Reads an account's list again and again, as long as this is the active poller."""

    def __init__(
        self,
        listing: Listing,
        *,
        interval_s: float,
        is_active: Callable[[], bool],
        tell: Tell,
    ) -> None:
        self._listing = listing
        self._interval_s = interval_s
        self._is_active = is_active
        self._tell = tell
        self.failures_in_a_row = 0
        """Passes that failed since the last good one: a metric, and an alert when it grows."""
        self._bank_failures = 0
        """Of these, the bank's own."""

    async def run(self, stopping: asyncio.Event) -> None:
        """Poll until `stopping`; a pass under way is then abandoned, which loses nothing."""
        while not stopping.is_set():
            done = asyncio.create_task(self._turn(), name="poll")
            stopped = asyncio.create_task(stopping.wait(), name="poll-stopping")
            try:
                await asyncio.wait({done, stopped}, return_when=asyncio.FIRST_COMPLETED)
                if not done.done():
                    return
                await asyncio.wait({stopped}, timeout=done.result())
            finally:
                for task in (done, stopped):
                    task.cancel()
                await asyncio.wait({done, stopped})

    async def _turn(self) -> float:
        """Do one pass, if we are the active poller; the seconds to wait after it."""
        if not self._is_active():
            return self._interval_s
        done = await self.poll_once()
        wait_s = self._wait_s(done)
        try:
            await self._tell(done, self.failures_in_a_row, wait_s)
        except LogUnavailable as problem:
            log.warning("the result of this poll could not be written to Redis: %s", problem)
        return wait_s

    async def poll_once(self) -> Pass:
        """Do one pass, and count and log its failure."""
        done = await self._listing.read()
        self.failures_in_a_row = self.failures_in_a_row + 1 if done.problem else 0
        self._bank_failures = self._bank_failures + (not done.is_ours) if done.problem else 0
        if done.problem:
            log.warning("poll failed, %d in a row: %s", self.failures_in_a_row, done.problem)
        for unknown in done.looked.unknown:
            log.error("the bank does not know a payout that is open here: %s", unknown)
        if done.looked.failed:
            count, first = len(done.looked.failed), done.looked.failed[0]
            log.warning("%d of %d open payouts got no answer; %s", count, done.looked.looks, first)
        return done

    def _wait_s(self, done: Pass) -> float:
        """The wait, never below the interval, whatever backoff and the bank say. Backoff spares the bank, so there is
        none after a failure of Redis: otherwise nothing was polled for a quarter of an hour after Redis was back."""
        if not done.problem or done.is_ours:
            return max(self._interval_s, done.after_s)
        backoff = backoff_s(self._bank_failures, self._interval_s, WAIT_S_MAX, random.random)
        return max(self._interval_s, done.after_s, backoff)
