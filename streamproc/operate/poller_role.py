"""What the role `poller` is made of: the list, the open payouts, the lease, and word of each pass for operators."""

import asyncio
import logging
import time
from contextlib import AsyncExitStack, suppress

from streamproc.errors import LogUnavailable
from streamproc.ingress.razorpay_poll import Pass, Poller, Tell
from streamproc.ingress.razorpay_watch import Watcher, seeds
from streamproc.log.cursor import PollCursor, PollState
from streamproc.log.lease import Lease
from streamproc.log.names import Names, partition_of
from streamproc.log.stream import Producer
from streamproc.log.watch import Watched
from streamproc.operate.bank import opened_bank
from streamproc.settings import Settings

SEED_AGAIN_S = 0.5
"""Between two looks at a Redis that is away."""

log = logging.getLogger(__name__)


async def poll_until(settings: Settings, owner: str, stopping: asyncio.Event) -> None:
    """Poll the settings' account until `stopping`, or stand by while another process does. `owner` is this process."""
    account, url, partitions = settings.razorpay_account_id, settings.redis_url, settings.partitions
    cursor = PollCursor(url, account=account, partitions=partitions)
    watched = Watched(url, account=account, partitions=partitions)
    lease = Lease(url, Names(partition_of(account, partitions)), f"poll:{account}", owner)
    async with AsyncExitStack() as stack:
        producer = await stack.enter_async_context(Producer(url, partitions=partitions, name="poll"))
        bank = await stack.enter_async_context(opened_bank(settings))
        poller = Poller(
            bank,
            producer,
            account=account,
            account_number=settings.razorpay_account_number,
            interval_s=settings.poll_interval_s,
            load_cursor=cursor.load,
            save_cursor=cursor.save,
            watch=Watcher(bank, producer, watched, account=account),
            is_active=lambda: lease.held,
            tell=_teller(cursor, lease),
        )
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(lease.keep(stopping), name="lease")
            tasks.create_task(_poll(poller, lease, watched, stopping), name="poller")


async def _poll(poller: Poller, lease: Lease, watched: Watched, stopping: asyncio.Event) -> None:
    """Poll while the lease is ours. An end by itself ends the role."""
    try:
        await lease.asked()
        await _seeded(watched, stopping)
        await poller.run(stopping)
    finally:
        stopping.set()


async def _seeded(watched: Watched, stopping: asyncio.Event) -> None:
    while not stopping.is_set():
        try:
            await watched.seed(seeds)
            return
        except LogUnavailable as problem:
            log.warning("which payouts are open could not be read: %s", problem)
            with suppress(TimeoutError):
                await asyncio.wait_for(stopping.wait(), SEED_AGAIN_S)


def _teller(cursor: PollCursor, lease: Lease) -> Tell:
    """Leaves word of each pass for operators; keeps since when they fail and when the last good one was."""
    failing_since, good_at = 0, 0

    async def tell(done: Pass, failures: int, wait_s: float) -> None:
        nonlocal failing_since, good_at
        now_s = int(time.time())
        if not good_at and (before := await cursor.told()) is not None:
            good_at = before.good_at
        failing_since = 0 if not failures else failing_since or now_s
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
        )
        await cursor.tell(state)

    return tell
