"""From what a fold goes on: the position of a schema's views (their rows in `view_heads`), and its payouts' records.

The fold itself is in build.py and runner.py. All that it folds is in the archive, never only in the log: so a view may
fail, or be away for a rebuild, while the archive goes on.
"""

from collections.abc import Mapping, Sequence
from typing import Protocol

import asyncpg

from projections import payouts
from projections.views import NAMES, VERSIONS
from streamproc.archive.rows import Row
from streamproc.archive.sql import statements
from streamproc.domain.payouts import PayoutRecord
from streamproc.errors import ConfigError, LogBroken

RECORDS_MAX = 20_000
"""Payout records kept in memory, some 2 kB each. A payout's events come close together; older ones are loaded again."""

_SQL = statements("projections", "view_heads.sql")


class Moved(Exception):
    """Somebody else moved the views: another projector, or a swap. The caller begins again from where they are now."""


class Position(Protocol):
    """The position of a schema's views, moved in the transaction that writes their rows."""

    @property
    def seq(self) -> int:
        """The number in the archive of the last row that was folded."""
        ...

    async def move(self, db: asyncpg.Connection, rows: Sequence[Row], upto: int) -> None:
        """Set the position to `upto`, to which `rows` lead. Raises Moved if somebody else moved it meanwhile."""
        ...

    def moved(self, rows: Sequence[Row], upto: int) -> None:
        """Take the new position into memory, once the transaction that wrote it is committed."""
        ...


class ViewHeads:
    """The position of views that are all at one entry: their rows in `view_heads`."""

    def __init__(self, partition: int, seq: int, entry: str, generations: Sequence[object]) -> None:
        self._partition = partition
        self._generations = list(generations)
        self.seq = seq
        self.entry = entry

    async def move(self, db: asyncpg.Connection, rows: Sequence[Row], upto: int) -> None:
        """Move the position to `upto`. Raises Moved where it was moved by others, LogBroken unless `rows` follow it."""
        last = rows[-1]
        if rows[0].seq != self.seq + 1:
            raise LogBroken(f"partition {self._partition}: row {rows[0].seq} does not follow {self.seq}")
        status = await db.execute(
            _SQL["move_heads"],
            *(self._partition, NAMES, self.seq, upto, last.id, self._generations),
        )
        if status != f"UPDATE {len(NAMES)}":
            raise Moved(f"the views of partition {self._partition} are no longer at {self.seq}")

    def moved(self, rows: Sequence[Row], upto: int) -> None:
        """Remember the new position."""
        self.seq, self.entry = upto, rows[-1].id


class Records:
    """The records of one partition's payouts in one schema: the recently used in memory, the others in its view
    `payouts`."""

    def __init__(self, partition: int, records_max: int = RECORDS_MAX) -> None:
        self._partition = partition
        self._max = records_max
        self._known: dict[str, PayoutRecord] = {}

    async def of(self, db: asyncpg.Connection, wanted: set[str]) -> Mapping[str, PayoutRecord]:
        """The records of at least these payouts, as far as there are any."""
        # Not as a difference of sets, which would make a set of all 20,000 keys for the few of a batch.
        known = self._known
        if missing := {payout for payout in wanted if payout not in known}:
            self._known |= await payouts.load(db, self._partition, missing)
        return self._known

    def keep(self, changed: Mapping[str, PayoutRecord | None]) -> None:
        """Remember what was written; when there are too many, those used longest ago are forgotten."""
        for payout, record in changed.items():
            self._known.pop(payout, None)
            if record is not None:
                self._known[payout] = record
        if len(self._known) > self._max:
            for payout in list(self._known)[: len(self._known) - self._max // 2]:
                del self._known[payout]


async def speak_micros(db: asyncpg.Connection) -> None:
    """Have this connection encode and decode every timestamptz as `fold.moment` does. Safe to repeat."""
    await db.set_type_codec("timestamptz", schema="pg_catalog", encoder=tuple, decoder=tuple, format="tuple")


async def write_lazily(db: asyncpg.Connection) -> None:
    """From here on commits of this connection do not wait for the disk: for what can be made again from the archive.

    Position and rows are one transaction, so a Postgres that is killed loses both, and the rows are folded again.
    """
    await db.execute("SET synchronous_commit = off")


async def outdated_views(db: asyncpg.Connection) -> list[str]:
    """The views of the schema that another version of them has written, on whatever partition."""
    rows = await db.fetch(_SQL["view_versions"], NAMES)
    return list(dict.fromkeys(row["view"] for row in rows if row["version"] != VERSIONS[row["view"]]))


async def open_heads(db: asyncpg.Connection, partition: int) -> ViewHeads:
    """The position of its schema's views. Raises ConfigError unless all are at one entry, and of this version."""
    versions = [VERSIONS[name] for name in NAMES]
    await speak_micros(db)
    await db.execute(_SQL["open_heads"], partition, NAMES, versions)
    rows = await db.fetch(_SQL["read_heads"], partition, NAMES)
    outdated = [row["view"] for row in rows if row["version"] != VERSIONS[row["view"]]]
    if outdated:
        raise ConfigError(
            f"the views {', '.join(outdated)} are of another version; run `streamproc replay {' '.join(outdated)}`"
        )
    first = max(rows, key=lambda row: row["seq"])
    behind = [row["view"] for row in rows if row["seq"] != first["seq"]]
    if behind:
        raise ConfigError(
            f"the views {', '.join(behind)} of partition {partition} are behind the others, which are at"
            f" {first['seq']}; run `streamproc replay {' '.join(behind)}`"
        )
    generations = list({row["generation"] for row in rows})
    return ViewHeads(partition, first["seq"], first["entry_id"], generations)
