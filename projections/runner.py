"""The views runner: folds archived rows into views, from the position of the views on; rows and position are one
transaction.

It works on whatever schema the connection's search path names. So the live views, and rebuilt ones that catch up,
are kept by the same code, which folds as a builder does.
"""

from collections.abc import Sequence
from time import time_ns

import asyncpg

from projections.build import Builder
from projections.heads import Position, Records
from projections.traced import folded
from projections.views import VIEWS
from streamproc.archive.disowned import Disowned
from streamproc.archive.load import rows_after
from streamproc.archive.rows import RowAbout
from streamproc.errors import LogBroken
from streamproc.telemetry import watch

BATCH_MAX = 8_000
"""Rows in one transaction: many enough that in a flood too a payout's decision comes with its first sight, few
enough to stop within a second. (A payout that is decided in the next transaction has its row written twice.)"""


class Runner(Builder):
    """Folds one partition's archived rows into the views of a schema, batch by batch, and reports traces.

    Of no use after an exception: what it has folded in memory is not what is written.
    """

    def __init__(
        self,
        db: asyncpg.Connection,
        partition: int,
        position: Position,
        disowned: Disowned | None = None,
    ) -> None:
        super().__init__(db, partition, position, Records(partition), VIEWS, disowned)

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
    runner: Runner, archive: asyncpg.Connection, partition: int, upto_seq: int, *, batch_max: int = BATCH_MAX
) -> None:
    """Fold what the archive has after the runner's position, up to `upto_seq`.

    `archive` is a connection to the archive's schema. Raises LogBroken if the archive ends before.
    """
    while (at := runner.position.seq) < upto_seq:
        rows = await rows_after(archive, partition, at, min(batch_max, upto_seq - at))
        if not rows:
            raise LogBroken(f"the archive of partition {partition} ends before seq {upto_seq}")
        await runner.fold(rows)
