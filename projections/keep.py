"""Keeps the live views of a partition: through outages, swaps, and entries that cannot be folded; and their feed."""

import asyncio
import logging
from collections import deque
from collections.abc import Sequence

import asyncpg

from projections.heads import Moved, open_heads, write_lazily
from projections.outage import Outage, heed_cancellation
from projections.runner import BATCH_MAX, Runner
from streamproc.archive.disowned import disowned_in
from streamproc.archive.load import rows_after
from streamproc.archive.rows import ArchivedEntry, RowAbout
from streamproc.archive.shared import Shared, SharedConnection
from streamproc.archive.store import AWAY
from streamproc.errors import ConfigError, LogBroken, named
from streamproc.waiting import set_within

WAIT_S = 1.0
"""How long the views wait for a row before they look into the archive, and so how soon a swap is noticed."""
GATHER_S = 0.2
"""Least interval between writes while entries keep coming; what comes meanwhile is written together. So a payout's
first sight and decision make one row, not one that is inserted, deleted and inserted again, and what payouts add
to an agent or a vendor is added once. The first entries after a pause are written at once."""
MUCH = 500
"""Rows in one go that count as a flood: then a payout waits for its decision, which comes in a later row."""
GATHER_MUCH_S = 0.5
"""GATHER_S in a flood, where writing a row of `payouts` twice would cost 20 µs of CPU more."""
QUIET_S = 0.1
"""If nothing came for so long, a flood is over, and what it left is written without waiting for more. While it lasts,
the archive hands over rows every 0.04 to 0.07 s."""
GATHERED_MAX = BATCH_MAX
"""Rows that are written without waiting for more."""
FEED_MAX = 2 * BATCH_MAX
"""Archived rows kept for the views, some 2 kB each; views further behind read the archive."""
BROKEN_RETRY_S = 15.0
"""Interval at which views that stopped with an alarm are tried again: a replay may have replaced them."""

_NAMED = (LogBroken, ConfigError, asyncpg.PostgresError)
"""Errors whose text says enough without a traceback."""

log = logging.getLogger(__name__)


class Feed:
    """Rows that were just archived, handed to the views of the same process without reading them from Postgres."""

    def __init__(self, rows_max: int = FEED_MAX) -> None:
        self._rows: deque[ArchivedEntry] = deque(maxlen=rows_max)
        self._more = asyncio.Event()

    def put(self, rows: Sequence[ArchivedEntry]) -> None:
        """Hand over rows that the archive has committed, in order; beyond `rows_max` the oldest are dropped."""
        self._rows.extend(rows)
        self._more.set()

    def forget(self) -> None:
        """Drop what was handed over; the views then read the archive."""
        self._rows.clear()

    def take(self, after_seq: int, count: int) -> list[ArchivedEntry]:
        """The rows that follow `after_seq`; none if the next one is not, or no longer, here."""
        rows = self._rows
        while rows and rows[0].seq <= after_seq:
            rows.popleft()
        if not rows or rows[0].seq != after_seq + 1:
            return []
        return [rows.popleft() for _ in range(min(count, len(rows)))]

    async def gather(self, count: int, until_s: float) -> None:
        """Return when `count` rows are here, when none came for QUIET_S, or at `until_s` of the loop's clock."""
        clock = asyncio.get_running_loop().time
        try:
            while len(self._rows) < count:
                self._more.clear()
                async with asyncio.timeout_at(min(until_s, clock() + QUIET_S)):
                    await self._more.wait()
        except TimeoutError:
            return

    async def wait(self, timeout_s: float) -> None:
        """Return when rows were put since the last wait, or after `timeout_s` seconds."""
        if await set_within(self._more, timeout_s):
            self._more.clear()


async def keep_views(partition: int, dsn: str, shared: Shared, feed: Feed, stopping: asyncio.Event) -> None:
    """Fold what is archived into the live views until `stopping`. While that fails, log it once and try again.

    `shared`: the connection, which serves other partitions' views too.
    """
    outage = Outage(f"views of partition {partition}")
    disowned, reported = disowned_in(dsn, partition), ""
    while not stopping.is_set():
        heed_cancellation()
        try:
            async with shared.joined() as connection:
                async with connection.exclusive() as db:
                    await write_lazily(db)
                    runner = Runner(db, partition, await open_heads(db, partition), disowned=disowned)
                feed.forget()  # it may be of a primary that is gone, and the new one's archive without it
                _log_retry(partition, reported)
                await _follow(runner, connection, partition, feed, stopping, outage)
        except Moved as moved:
            log.info("%s; going on from where they are", moved)
        except AWAY as problem:
            await outage.wait(problem, stopping)
        # Even a defect of a fold: it must not stop the archive, for which money waits.
        except Exception as problem:
            if (what := named(problem)) != reported:
                text = "the views of partition %d stand still, the archive goes on: %s"
                log.error(text, partition, what, exc_info=None if isinstance(problem, _NAMED) else problem)
                reported = what
            await set_within(stopping, BROKEN_RETRY_S)


def _log_retry(partition: int, reported: str) -> None:
    if reported:
        log.info("the views of partition %d are tried again", partition)


async def _follow(
    runner: Runner,
    connection: SharedConnection,
    partition: int,
    feed: Feed,
    stopping: asyncio.Event,
    outage: Outage,
) -> None:
    clock = asyncio.get_running_loop().time
    while not stopping.is_set():
        at, begun_s = runner.position.seq, clock()
        rows: Sequence[RowAbout] = feed.take(at, BATCH_MAX)
        async with connection.exclusive() as db:
            rows = rows or await rows_after(db, partition, at, BATCH_MAX)
            if rows:
                await runner.fold(rows)
        outage.over()
        if not rows:
            await feed.wait(WAIT_S)
        elif len(rows) < BATCH_MAX:
            gather_s = GATHER_S if len(rows) < MUCH else GATHER_MUCH_S
            await feed.gather(GATHERED_MAX, begun_s + gather_s)
    if rows := feed.take(runner.position.seq, BATCH_MAX):  # gathered when `stopping` came
        async with connection.exclusive():
            await runner.fold(rows)
