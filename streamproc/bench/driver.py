"""The load driver: a process that sends payouts and sees them decided, with the real producer and a groupless reader.

`pace` is an open loop: payout n is due at its time, whatever became of those before it, and its latencies are counted
from then, so a stall is charged to every payout that waits for it. `flood` is a closed loop: it sends as fast as the
system takes payouts, with a bounded number under way, until Postgres shows all of them. With a port the payouts go as
signed webhooks to `streamproc serve`, otherwise through the producer that `serve` uses.

Run as a process, with the arguments (`arguments.py`) `pace REDIS_URL RATE WARM COUNTED` or
`flood REDIS_URL POSTGRES_DSN PAYOUTS PORT` (0: no webhooks). It prints one line of JSON.
"""

import asyncio
import sys
import time
from collections import Counter
from collections.abc import Callable, Coroutine, Sequence
from contextlib import AsyncExitStack
from functools import partial
from typing import Any

import asyncpg
import msgspec
import uvloop
from msgspec import Struct

import consumers
from streamproc.bench import cost, job
from streamproc.bench.arguments import given
from streamproc.bench.site import VIEWS_AT
from streamproc.bench.ticker import ticking
from streamproc.bench.webhooks import Webhooks, request
from streamproc.domain.entry_ids import ZERO
from streamproc.domain.events import PayoutDecided, PayoutObserved
from streamproc.domain.wire import tag_of, written_by
from streamproc.errors import JobFailed, StreamprocError
from streamproc.gc_tuning import tune_for_batches
from streamproc.host_clock import host_clock_us
from streamproc.log.stream import LogView, Producer

S_NS = 1_000_000_000
LEAD_S = 0.2
"""Time until the first payout is due; by then everything is set up."""
READ_MAX = 1_000
READ_BLOCK_MS = 500
STALLED_MAX_S = 30.0
"""Limit without a decision or anything new in Postgres; after it nothing more is expected."""
UNDER_WAY_MAX = 1_024
"""Payouts that are sent and not decided: two of the engine's batches in hand, and two that wait."""
BEHIND_MAX = 16_000
"""Entries that Postgres does not show yet: two of the views' batches in hand, and two that wait."""
LOOK_S, SHOWN_LOOK_S = 0.01, 0.05
_DECIDED = tag_of(PayoutDecided)
_BY_GOVERNANCE = written_by(consumers.GOVERNANCE)

Send = Callable[[int], "asyncio.Future[Any]"]
"""Sends the payout with this number, as a webhook or into the log; done when it is in the log."""


class _Counted(Struct, gc=False):
    """The fields of an event that are counted here."""

    type: str
    payout: str = ""
    reason: str = ""


_decode_counted = msgspec.json.Decoder(list[_Counted]).decode


class Paced(Struct, frozen=True):
    """Times of each counted payout in µs after it was due: handed to the producer, appended, seen decided."""

    outcomes: dict[str, int]
    handed_us: list[int]
    appended_us: list[int]
    decided_us: list[int]


class Flooded(Struct, frozen=True):
    """Seconds from the first append until the last decision (`decided_s`), and until Postgres showed everything."""

    outcomes: dict[str, int]
    decided_s: float
    shown_s: float
    entries: int
    cpu_s: float
    machine_s: float
    """CPU seconds of all programs on the machine."""


class Drive:
    """The payouts under way: when each was handed over, appended and decided (monotonic ns; 0: not yet)."""

    def __init__(self, send: Send, view: LogView, payouts: int) -> None:
        self._send, self._view = send, view
        self.handed_ns, self.appended_ns, self.decided_ns = [0] * payouts, [0] * payouts, [0] * payouts
        self.handed = self.appended = self.decided = self.entries = 0
        self.outcomes: Counter[str] = Counter()
        self._tasks: set[asyncio.Task[None]] = set()
        self._problem: BaseException | None = None

    def hand_over(self) -> None:
        """Send the next payout."""
        number, self.handed = self.handed, self.handed + 1
        self.handed_ns[number] = time.monotonic_ns()
        self._send(number).add_done_callback(partial(self._sent, number))

    def _sent(self, number: int, sent: "asyncio.Future[Any]") -> None:
        if sent.cancelled():
            return
        if (problem := sent.exception()) is not None:
            self._problem = self._problem or problem
            return
        self.appended_ns[number] = time.monotonic_ns()
        self.appended += 1

    def watch(self) -> None:
        """Start reading the log from its beginning."""
        self.start(self._read())

    async def _read(self) -> None:
        after = ZERO
        while True:
            entries = await self._view.read(after, READ_MAX, READ_BLOCK_MS)
            now_ns = time.monotonic_ns()
            for entry in entries:
                after = entry.id
                if entry.m.startswith(_BY_GOVERNANCE):
                    self._note(entry.e, now_ns)
            self.entries += len(entries)

    def _note(self, e: bytes, now_ns: int) -> None:
        events = _decode_counted(e)
        for event in events:
            if event.type == _DECIDED:
                payout = event.payout or events[0].payout
                number = job.number_of(payout)
                if self.decided_ns[number]:
                    raise JobFailed(f"payout {payout} was decided twice")
                self.decided_ns[number] = now_ns
                self.decided += 1
                self.outcomes[event.reason] += 1

    def start(self, work: Coroutine[None, None, None]) -> None:
        """Run `work` as a task; an error in it ends the drive."""
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: "asyncio.Task[None]") -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (problem := task.exception()) is not None:
            self._problem = self._problem or problem

    async def until(self, done: Callable[[], bool], progress: Callable[[], int]) -> None:
        """Wait until `done`. Raises JobFailed if a task failed, or if `progress` stands still for STALLED_MAX_S."""
        before, moved_at = progress(), time.monotonic()
        while not done():
            if self._problem is not None:
                raise JobFailed(f"the drive ended: {self._problem}") from self._problem
            if (now := progress()) != before:
                before, moved_at = now, time.monotonic()
            elif time.monotonic() - moved_at > STALLED_MAX_S:
                raise JobFailed(
                    f"{self.handed} payouts were sent, {self.decided} are decided,"
                    f" and nothing more came within {STALLED_MAX_S:g} s"
                )
            await asyncio.sleep(LOOK_S)

    async def aclose(self) -> None:
        """Stop reading."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)


async def _opened(stack: AsyncExitStack, url: str, events: Sequence[PayoutObserved], port: int = 0) -> Drive:
    send = await (_by_webhook(stack, port, events) if port else _by_producer(stack, url, events))
    view = await stack.enter_async_context(LogView(url, 0))
    drive = Drive(send, view, len(events))
    stack.push_async_callback(drive.aclose)
    drive.watch()
    return drive


async def _by_producer(stack: AsyncExitStack, url: str, events: Sequence[PayoutObserved]) -> Send:
    producer = await stack.enter_async_context(Producer(url, partitions=1, name="webhook"))

    appends = [job.appended(event) for event in events]
    return lambda number: producer.submit(appends[number])


async def _by_webhook(stack: AsyncExitStack, port: int, events: Sequence[PayoutObserved]) -> Send:
    """Requests are signed before the clock starts, since the bank signs on another machine."""
    webhooks = await stack.enter_async_context(Webhooks(port))
    requests = [request(event, port) for event in events]

    return lambda number: asyncio.ensure_future(webhooks.deliver(requests[number]))


async def pace(url: str, rate: int, warm: int, counted: int) -> Paced:
    """Send `rate` payouts per second: `warm` that are not counted, then `counted`."""
    payouts, interval_ns = warm + counted, S_NS // rate
    async with AsyncExitStack() as stack:
        begin_us = host_clock_us()
        events = [job.observed(n, begin_us + n * interval_ns // 1000, job.PAYEES) for n in range(payouts)]
        drive = await _opened(stack, url, events)
        tune_for_batches()
        first_ns = time.monotonic_ns() + int(LEAD_S * S_NS)
        due_ns = [first_ns + n * interval_ns for n in range(payouts)]

        def send_due() -> None:
            now_ns = time.monotonic_ns()
            while drive.handed < payouts and due_ns[drive.handed] <= now_ns:
                drive.hand_over()

        with ticking(first_ns, interval_ns, send_due):
            # Both, since a decision may be seen before its append is answered.
            await drive.until(
                lambda: drive.decided == drive.appended == payouts, lambda: drive.decided + drive.appended
            )

    def times(at_ns: list[int]) -> list[int]:
        return [(at_ns[n] - due_ns[n]) // 1000 for n in range(warm, payouts)]

    return Paced(
        dict(drive.outcomes), times(drive.handed_ns), times(drive.appended_ns), times(drive.decided_ns)
    )


async def flood(url: str, dsn: str, payouts: int, port: int = 0) -> Flooded:
    """Send payouts as fast as they are decided and shown, with a bounded number under way."""
    async with AsyncExitStack() as stack:
        begin_us = host_clock_us()
        events = [job.observed(n, begin_us + n, job.PAYEES) for n in range(payouts)]
        drive = await _opened(stack, url, events, port)
        db = await asyncpg.connect(dsn)
        stack.push_async_callback(db.close)
        tune_for_batches()
        used_s, machine_s, shown = time.process_time(), cost.machine_cpu_s(), 0
        began_ns = time.monotonic_ns()

        def send_more() -> bool:
            room = UNDER_WAY_MAX - (drive.handed - drive.decided)
            if drive.entries - shown < BEHIND_MAX:
                for _ in range(min(room, payouts - drive.handed)):
                    drive.hand_over()
            return drive.decided == payouts

        async def look() -> None:
            nonlocal shown
            while True:
                shown = await db.fetchval(VIEWS_AT) or 0
                await asyncio.sleep(SHOWN_LOOK_S)

        drive.start(look())
        await drive.until(send_more, lambda: drive.decided + shown)
        await drive.until(lambda: shown >= drive.entries, lambda: shown)
        return Flooded(
            outcomes=dict(drive.outcomes),
            decided_s=(max(drive.decided_ns) - began_ns) / S_NS,
            shown_s=(time.monotonic_ns() - began_ns) / S_NS,
            entries=drive.entries,
            cpu_s=time.process_time() - used_s,
            machine_s=cost.machine_cpu_s() - machine_s,
        )


def main(kind: str, *arguments: str) -> None:
    """Run `pace` or `flood` and print its result."""
    if kind == "pace":
        url, *numbers = arguments
        rate, warm, counted = map(int, numbers)
        result: Paced | Flooded = uvloop.run(pace(url, rate, warm, counted))
    else:
        url, dsn, payouts, port = arguments
        result = uvloop.run(flood(url, dsn, int(payouts), int(port)))
    sys.stdout.write(msgspec.json.encode(result).decode() + "\n")


if __name__ == "__main__":
    try:
        main(*given())
    except StreamprocError as problem:
        sys.exit(str(problem))
