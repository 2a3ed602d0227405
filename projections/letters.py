"""View `letters`: a group's dead letters, and what closed them. Built for a recovery only.

A dead letter may be older than everything else that is open, so only a fold of the whole archive finds it.
"""

from collections.abc import Iterable, Sequence

import asyncpg

from projections.fold import Buffered, Step
from streamproc.archive.text import text_key
from streamproc.domain import events as e

NAME = "letters"
VERSION = 1
READS: frozenset[type[e.Fact]] = frozenset({e.EntrySetAside, e.DeadLetterClosed})
COLUMNS = ("partition", "seq", "place", "group_name", "entry_id", "action")


def rows_of(steps: Iterable[Step]) -> list[tuple[object, ...]]:
    """One row for each dead letter, and one for each closing of a letter, in the order of COLUMNS."""
    rows: list[tuple[object, ...]] = []
    for step in steps:
        event = step.event
        if type(event) is e.EntrySetAside:
            rows.append((step.partition, step.seq, step.place, text_key(event.group), event.entry, "aside"))
        elif type(event) is e.DeadLetterClosed:
            row = (step.partition, step.seq, step.place, text_key(event.group), event.entry, event.action)
            rows.append(row)
    return rows


async def write(db: asyncpg.Connection, steps: Sequence[Step]) -> None:
    """Add the steps' rows."""
    rows = rows_of(steps)
    if rows:
        await db.copy_records_to_table(NAME, records=rows, columns=COLUMNS)


def begin() -> Buffered:
    """A new accumulator."""
    return Buffered(write)
