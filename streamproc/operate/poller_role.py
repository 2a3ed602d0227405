"""What the role `poller` is made of: the list, the open payouts, the lease, word of each pass, and reconciliation."""

import asyncio
import logging
import time
from collections.abc import Callable
from contextlib import AsyncExitStack

from streamproc.clients.breaker import Breaker
from streamproc.clients.razorpay import Razorpay
from streamproc.errors import StreamprocError
from streamproc.ingress.razorpay_poll import Listing, Pass, Poller, Tell
from streamproc.ingress.razorpay_watch import Watcher
from streamproc.log.cursor import Covered, PollCursor, PollState
from streamproc.log.lease import Lease
from streamproc.log.names import Names, partition_of
from streamproc.log.stream import Producer
from streamproc.log.watch_list import WatchList
from streamproc.operate.bank import opened_bank
from streamproc.operate.breakers import report_until
from streamproc.operate.polling import LATE_S
from streamproc.operate.reconcile import reconcile
from streamproc.settings import Settings
from streamproc.telemetry import watch
from streamproc.waiting import set_within

LOOK_WHETHER_DUE_S = 60.0
"""Between two looks whether it is time to reconcile."""
RECONCILE_AGAIN_S = 900.0
"""After a run that failed, or was cut off."""
RECONCILE_SINCE_S = 7 * 86_400
"""Longer than a processed payout may be reversed: three working days."""

log = logging.getLogger(__name__)


async def poll_until(
    settings: Settings, owner: str, breakers: dict[str, Breaker], stopping: asyncio.Event
) -> None:
    """Poll the settings' account until `stopping`, or stand by while another process does. `owner` is this process.

    The bank's breaker is added to `breakers`.
    """
    account, url, partitions = settings.razorpay_account_id, settings.redis_url, settings.partitions
    cursor = PollCursor(url, account=account, partitions=partitions)
    watch_list = WatchList(url, account=account, partitions=partitions)
    lease = Lease(url, Names(partition_of(account, partitions)), f"poll:{account}", owner)
    async with AsyncExitStack() as stack:
        producer = await stack.enter_async_context(Producer(url, partitions=partitions, name="poll"))
        bank = await stack.enter_async_context(opened_bank(settings))
        breakers["razorpay"] = bank.breaker
        watcher = Watcher(bank, producer, watch_list, account=account)
        poller = Poller(
            listing_of(settings, bank, producer, cursor, watch=watcher),
            interval_s=settings.poll_interval_s,
            is_active=lambda: lease.held,
            tell=teller(cursor, lease, producer.now_us),
        )
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(lease.keep(stopping), name="lease")
            tasks.create_task(report_until(url, owner, breakers, stopping), name="breakers")
            tasks.create_task(_poll(poller, lease, stopping), name="poller")
            tasks.create_task(_reconcile_now_and_then(settings, lease, cursor, stopping), name="reconcile")


def listing_of(
    settings: Settings,
    bank: Razorpay,
    producer: Producer,
    cursor: PollCursor,
    *,
    watch: Watcher | None = None,
) -> Listing:
    """The list of the settings' account, read on from `cursor`."""
    return Listing(
        bank,
        producer,
        cursor,
        account=settings.razorpay_account_id,
        account_number=settings.razorpay_account_number,
        watch=watch,
    )


async def _poll(poller: Poller, lease: Lease, stopping: asyncio.Event) -> None:
    """Poll while the lease is ours. An end by itself ends the role."""
    try:
        await lease.asked()
        await poller.run(stopping)
    finally:
        stopping.set()


def teller(cursor: PollCursor, lease: Lease, now_us: Callable[[], int]) -> Tell:
    """Leaves word of each pass for operators; keeps since when they fail and when the last good one was.

    `now_us` is Redis's clock, by which readers on other hosts judge how long ago that was.
    """
    failing_since, good_at = 0, 0

    async def tell(done: Pass, failures: int, wait_s: float) -> None:
        nonlocal failing_since, good_at
        watch.polled(good=not failures)
        now_s = now_us() // 1_000_000
        # Read anew each time: Redis may have been set back, or another poller have polled meanwhile.
        before = await cursor.state()
        covered = Covered() if before is None else before.covered
        if not failures:
            covered = covered.by_pass(done.server, now_s, now_s + int(wait_s + LATE_S))
        if not good_at and before is not None:
            good_at = before.good_at
        # At most now: Redis's clock may have gone back, and it failed all the same.
        failing_since = min(failing_since or now_s, now_s) if failures else 0
        good_at = now_s if not failures else good_at
        state = PollState(
            holder=lease.owner,
            term=lease.term,
            pass_at=now_s,
            next_at=now_s + int(wait_s),
            good_at=good_at,
            failures=failures,
            failing_since=failing_since,
            problem=done.problem,
            listed=done.listed,
            new=done.new,
            malformed=done.malformed,
            looked_at=done.looked.looks,
            unknown=done.looked.unknown,
            covered=covered,
        )
        await cursor.save_state(state)

    return tell


async def _reconcile_now_and_then(
    settings: Settings, lease: Lease, cursor: PollCursor, stopping: asyncio.Event
) -> None:
    """Every RECONCILE_INTERVAL, by who has the lease; a run that fails is tried again, and one that is cut off too."""
    look_s = min(LOOK_WHETHER_DUE_S, settings.reconcile_interval_s)
    while not stopping.is_set():
        if lease.held:
            running = asyncio.create_task(_reconcile_if_due(settings, cursor), name="reconciling")
            stopped = asyncio.create_task(stopping.wait())
            try:
                await asyncio.wait({running, stopped}, return_when=asyncio.FIRST_COMPLETED)
                if running.done():
                    running.result()
            finally:
                for task in (running, stopped):
                    task.cancel()
                await asyncio.wait({running, stopped})
        await set_within(stopping, look_s)


async def _reconcile_if_due(settings: Settings, cursor: PollCursor) -> None:
    try:
        before, now_s = await cursor.reconciled(), time.time()
        if not before.tried_at:  # at a first start there is nothing to compare yet
            await cursor.save_reconciled(tried_at=int(now_s), done_at=int(now_s))
            return
        wanted_s = settings.reconcile_interval_s if before.done_at >= before.tried_at else RECONCILE_AGAIN_S
        # One that is later than now is of a host whose clock was wrong.
        if before.tried_at <= now_s < before.tried_at + min(wanted_s, settings.reconcile_interval_s):
            return
        await cursor.save_reconciled(tried_at=int(now_s))
        done = await reconcile(settings, since_s=RECONCILE_SINCE_S)
        log.info(
            "reconciled %d payouts and %d windows: %d mismatches%s",
            *(done.listed, done.windows, len(done.mismatches)),
            f"; left: {'; '.join(done.left)}" if done.left else "",
        )
        await cursor.save_reconciled(done_at=int(time.time()), mismatches=len(done.mismatches))
    except StreamprocError as problem:
        log.error("reconcile failed, it is tried again: %s", problem)
