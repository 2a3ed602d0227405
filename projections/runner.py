"""The views runner: folds archived rows into views, from the position of the views on; rows and position are one
transaction.

It works on whatever place the connection's search path names. So the live views, and a rebuilt place that catches up,
are kept by the same code, which folds as a builder does.
"""

from collections.abc import Callable, Sequence
from time import time_ns

import asyncpg

from projections.build import Builder
from projections.run import Mark, Records
from projections.traced import folded
from projections.views import VIEWS, View
from streamproc.archive.disowned import Disowned
from streamproc.archive.load import rows_after
from streamproc.archive.rows import RowAbout
from streamproc.errors import LogBroken
from streamproc.telemetry import watch

BATCH_MAX = 4_000
"""Rows in one transaction: many enough that in a flood too a payout's decision comes with its first sight, few
enough to stop within a second."""


class Runner(Builder):
    """Folds one partition's archived rows into the views of a place, batch by batch, and reports traces.

    Of no use after an exception: what it has folded in memory is not what is written.
    """

    def __init__(
        self,
        db: asyncpg.Connection,
        partition: int,
        mark: Mark,
        views: Sequence[View] = VIEWS,
        disowned: Disowned | None = None,
    ) -> None:
        super().__init__(db, partition, mark, Records(partition), views, disowned)

    async def fold(self, rows: Sequence[RowAbout], upto: int | None = None) -> int:
        """As `Builder.fold`; `upto` is by default the last of `rows`."""
        begun_ns = time_ns()
        seen = self.seen = None if watch.tracer() is None else []
        events = await super().fold(rows, rows[-1].seq if upto is None else upto)
        if seen is not None:
            folded(rows, seen, begun_ns)
            self.seen = None
        return events


async def catch_up(
    runner: Runner,
    archive: asyncpg.Connection,
    partition: int,
    upto_seq: int | None = None,
    *,
    batch_max: int = BATCH_MAX,
    on_batch: Callable[[int], None] | None = None,
) -> None:
    """Fold what the archive has after the runner's position, up to `upto_seq` or to its end.

    `archive` is a connection to the archive's schema; `on_batch` is called with the seq after each batch. Raises
    LogBroken if the archive ends before `upto_seq`.
    """
    while upto_seq is None or runner.mark.seq < upto_seq:
        count = batch_max if upto_seq is None else min(batch_max, upto_seq - runner.mark.seq)
        rows = await rows_after(archive, partition, runner.mark.seq, count)
        if not rows:
            if upto_seq is not None:
                raise LogBroken(f"the archive of partition {partition} ends before seq {upto_seq}")
            return
        await runner.fold(rows)
        if on_batch is not None:
            on_batch(runner.mark.seq)
