"""The fold of all views at once: of those that are being built, and of the live ones (runner.py).

A few entries at a time are decoded, folded and given to all views while they are in the processor's cache. What the
views make of them is written once for a whole segment.
"""

import asyncio
from collections.abc import Callable, Mapping, Sequence

import asyncpg

from projections.fold import ALL, Accumulator, Decoded, Step, Unreadable, decode, steps_of
from projections.heads import Position, Records
from projections.views import View
from streamproc.archive.disowned import Disowned
from streamproc.archive.rows import RowAbout
from streamproc.archive.store import transaction
from streamproc.domain.events import Fact
from streamproc.domain.payouts import CHANGING, PayoutRecord
from streamproc.domain.wire import EVENT_KINDS
from streamproc.errors import LogBroken

ENTRIES_AT_ONCE = 64
"""Some 300 kB with their events and steps: less than a core's L2 cache, and enough that calls cost little."""


class Builder:
    """Folds archived rows of one share into the views of a schema, segment by segment.

    Of no use after an exception: what it has folded in memory is not what is written.
    """

    def __init__(
        self,
        db: asyncpg.Connection,
        partition: int,
        position: Position,
        records: Records,
        views: Sequence[View],
        disowned: Disowned | None = None,
    ) -> None:
        """`disowned`: entries to pass over if they cannot be read; None: none."""
        self._db = db
        self._partition = partition
        self._records = records
        self._disowned = disowned
        self._accumulators = [(view.reads, view.begin()) for view in views]
        self._parts = [
            _Part(reads, [each for read, each in self._accumulators if read == reads])
            for reads in dict.fromkeys(view.reads for view in views)
        ]
        self._takers = {
            kind: [part.take for part in self._parts if kind in part.reads] for kind in EVENT_KINDS
        }
        self._reads = frozenset[type[Fact]]().union(*(v.reads for v in views if v.reads is not CHANGING))
        self.position = position
        self.seen: list[Step] | None = None
        """If a list, `fold` appends all steps to it, also those that no view reads."""

    async def fold(self, rows: Sequence[RowAbout], upto: int) -> int:
        """Bring the views up to `upto` by `rows`, which follow the position and lead there; the number of their events.

        Raises LogBroken, naming the entry, for what cannot be folded, or is archived under another payout than it is
        about; Moved if the views are elsewhere by now.
        """
        known = await self._records.of(self._db, {row.payout for row in rows if row.payout})
        now: dict[str, PayoutRecord | None] = {}
        events = 0
        for first in range(0, len(rows), ENTRIES_AT_ONCE):
            chunk = rows[first : first + ENTRIES_AT_ONCE]
            events += self._fold(chunk, await self._decoded(chunk), known, now)
            await asyncio.sleep(0)  # other tasks of this process wait for some ms, not for a segment
        try:
            async with transaction(self._db):
                await self.position.move(self._db, rows, upto)
                for _, each in self._accumulators:
                    await each.write(self._db, self._partition)
        except OverflowError as problem:  # from asyncpg; in JSON a number may have any length
            raise LogBroken(
                f"partition {self._partition}, seq {self.position.seq + 1} to {upto}: a number is too large for"
                f" Postgres: {problem}"
            ) from problem
        self.position.moved(rows, upto)
        self._records.keep(now)
        return events

    async def _decoded(self, rows: Sequence[RowAbout]) -> list[Decoded]:
        partition, disowned = self._partition, self._disowned
        is_disowned = None if disowned is None else disowned.covers
        try:
            return [decode(partition, row, is_disowned) for row in rows]
        except Unreadable:
            if disowned is None:
                raise
            await disowned.look(rows[0].seq)
            return [decode(partition, row, is_disowned) for row in rows]

    def _fold(
        self,
        rows: Sequence[RowAbout],
        decoded: Sequence[Decoded],
        known: Mapping[str, PayoutRecord],
        now: dict[str, PayoutRecord | None],
    ) -> int:
        events = 0
        for entry, row in zip(decoded, rows, strict=True):
            if entry.payout != row.payout and entry.payout:
                # Its record was not loaded, and it may belong to another share.
                raise LogBroken(
                    f"entry {self._partition}:{entry.id} is about payout {entry.payout} and archived under"
                    f" {row.payout or 'none'}; `streamproc audit verify` says more"
                )
            events += len(entry.events)
        takers = self._takers
        steps = steps_of(self._partition, decoded, known, now, self._reads if self.seen is None else ALL)
        if self.seen is not None:
            self.seen += steps
        for step in steps:
            for take in takers[type(step.event)]:
                take(step)
        for part in self._parts:
            part.add()
        return events


class _Part:
    """Views that read the same events, with the steps of the entries in hand that they are still to add."""

    def __init__(self, reads: frozenset[type[Fact]], accumulators: Sequence[Accumulator]) -> None:
        self.reads = reads
        self._steps: list[Step] = []
        self._accumulators = accumulators
        self.take: Callable[[Step], None] = self._steps.append

    def add(self) -> None:
        """Give the steps to the views."""
        if self._steps:
            for each in self._accumulators:
                each.add(self._steps)
            self._steps.clear()
