"""Checks the whole archive against its chain, its checkpoints, and the checkpoints outside the database.

In one snapshot every row of a partition passes once, in order of seq. Only the keys that the caller trusts are
believed: links and tree are computed from the stored bytes and compared with each checkpoint on the way. What no
checkpoint covers yet cannot be checked so, and that is reported.
"""

import asyncio
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import asyncpg
from msgspec import Struct

from streamproc.archive import checkpoint
from streamproc.archive.attest import identity
from streamproc.archive.checkpoint import Checkpoint
from streamproc.archive.merkle import Frontier
from streamproc.archive.note import BadNote, Trusted
from streamproc.archive.outside import Damaged, stated_in
from streamproc.archive.rows import ChainedRow
from streamproc.archive.sql import statements
from streamproc.archive.store import read_head
from streamproc.archive.walk import FORK, Fault, PartitionResult, Walk
from streamproc.errors import InputError

ROWS_AT_ONCE = 2_000
"""Rows being checked, some 2 kB each; as many more are being fetched."""
OUTSIDE_MAX = 2_000_000
"""Checkpoints of a file, some 600 bytes of memory each: four years of one a minute."""

OnRows = Callable[[int, int], None]
"""Called with the rows done and the rows in all."""

_SQL = statements("streamproc.archive", "inspection.sql")


class OutsideNotes(Struct):
    """The checkpoints of a file, by origin and size, each with its line; and what is wrong with the file."""

    where: str
    by_origin: dict[str, dict[int, tuple[int, Checkpoint]]]
    faults: list[Fault]

    def of(self, origin: str) -> Mapping[int, Checkpoint]:
        """The checkpoints of one partition by size."""
        return {size: stated for size, (_, stated) in self.by_origin.get(origin, {}).items()}


@contextmanager
def checkpoints_file(path: Path) -> Iterator[None]:
    """Raise InputError, naming the file of checkpoints, where it cannot be read."""
    try:
        yield
    except OSError as problem:
        raise InputError(
            f"{path}, the file of checkpoints, cannot be read: {problem.strerror}; name a copy by --checkpoints FILE"
        ) from problem


def read_outside(path: Path, trusted: Trusted) -> OutsideNotes:
    """Every checkpoint in the file. To be read before the snapshot begins, so that the file cannot be ahead of it.
    Raises InputError if it cannot be read."""
    found = OutsideNotes(str(path), {}, [])
    with checkpoints_file(path), ExitStack() as stack:
        if not path.exists():
            return found  # as an empty file: all that the database says was published there is missing
        file = stack.enter_context(path.open("rb"))
        for count, stated in enumerate(stated_in(file, trusted)):
            where = f"{path}, line {stated.line}"
            if isinstance(stated, Damaged):
                found.faults.append(Fault(where, f"this is no good checkpoint: {stated.problem}"))
                continue
            one = stated.checkpoint
            line, known = found.by_origin.setdefault(one.origin, {}).setdefault(one.size, (stated.line, one))
            if not known.says_the_same_as(one):
                fork = FORK.format(size=one.size, one="this one", other=f"the one in line {line}")
                found.faults.append(Fault(where, f"{fork} (of {one.origin})"))
            if count >= OUTSIDE_MAX:
                problem = f"there are more than {OUTSIDE_MAX} checkpoints, the limit; split the file by time"
                found.faults.append(Fault(where, problem))
                break
    return found


async def rows_stream(db: asyncpg.Connection) -> None:
    """Have Postgres read rows in order by an index, for the rest of this transaction.

    For a whole partition it may prefer to sort all of it first, which ends in the statement's time limit.
    """
    await db.execute("SET LOCAL enable_sort = off")


class Inspector:
    """Inspects partitions in one snapshot."""

    def __init__(
        self,
        db: asyncpg.Connection,
        archive: str,
        trusted: Trusted,
        outside: OutsideNotes | None,
        on_rows: OnRows,
    ) -> None:
        self.archive = archive
        self._db = db
        self._trusted = trusted
        self._outside = outside
        self._on_rows = on_rows
        self._done = 0
        self._total = 0

    @classmethod
    async def open(
        cls, db: asyncpg.Connection, trusted: Trusted, outside: OutsideNotes | None, on_rows: OnRows
    ) -> "Inspector":
        """An inspector of the archive that `db` leads to."""
        return cls(db, await identity(db), trusted, outside, on_rows)

    async def partitions(self) -> list[int]:
        """The partitions that the database, or this archive's checkpoints in the file, name."""
        found = {row["partition"] for row in await self._db.fetch(_SQL["partitions"])}
        ours = f"streamproc/{self.archive}/"
        named = self._outside.by_origin if self._outside else {}
        return sorted(found | {int(origin.removeprefix(ours)) for origin in named if origin.startswith(ours)})

    async def inspect(self, partitions: Sequence[int]) -> list[PartitionResult]:
        """Each partition, up to its end or its first fault."""
        await rows_stream(self._db)
        self._total = await self._db.fetchval(_SQL["total"], list(partitions))
        return [await self._inspect(partition) for partition in partitions]

    async def _inspect(self, partition: int) -> PartitionResult:
        part, origin = PartitionResult(partition), f"streamproc/{self.archive}/{partition}"
        outside = self._outside.of(origin) if self._outside else {}
        part.outside = len(outside)
        walk = Walk(part, outside, self._outside.where if self._outside else "")
        part.fault = await self._follow(walk) or await self._end(walk)
        return part

    async def _follow(self, walk: Walk) -> Fault | None:
        """Check all rows; while a thread computes one batch, the next one is fetched."""
        partition = walk.part.partition
        cursor = await self._db.cursor(_SQL["rows_of"], partition)
        rows = [ChainedRow(*row) for row in await cursor.fetch(ROWS_AT_ONCE)]
        while rows:
            marks = await self._marks(partition, walk.seq, rows[-1].seq)
            fetching = asyncio.create_task(cursor.fetch(ROWS_AT_ONCE))
            try:
                fault = await asyncio.to_thread(walk.through, rows, marks)
                following = await fetching
            finally:
                fetching.cancel()
                await asyncio.gather(fetching, return_exceptions=True)
            if fault is not None:
                return fault
            if walk.stumbled is not None:
                near = await self._db.fetch(_SQL["rows_from"], partition, walk.stumbled.seq)
                others = [row for row in (ChainedRow(*row) for row in near) if row.id != walk.stumbled.id]
                return walk.explained(others[0] if others else None)
            self._done += len(rows)
            self._on_rows(self._done, self._total)
            rows = [ChainedRow(*row) for row in following]
        return None

    async def _marks(self, partition: int, after: int, upto: int) -> dict[int, Checkpoint | Fault]:
        rows = await self._db.fetch(_SQL["checkpoints_of"], partition, after, upto)
        return {row["size"]: self._read(partition, row) for row in rows}

    def _read(self, partition: int, row: asyncpg.Record) -> Checkpoint | Fault:
        """The checkpoint of a row of the table, if its note is good and says what the row says."""
        size = row["size"]
        where = f"partition {partition}, checkpoint of {size} entries"
        try:
            signed, _ = checkpoint.opened(row["note"], self._trusted)
            grown = Frontier.unpacked(size, row["frontier"]).root()
        except (BadNote, ValueError) as bad:
            return Fault(where, str(bad), partition, size, row["entry_id"])
        compared = (
            ("the archive", signed.archive, self.archive),
            ("the partition", signed.partition, partition),
            ("size", signed.size, size),
            ("entry_id", signed.entry, row["entry_id"]),
            ("hash", signed.hash, row["hash"]),
            ("root", signed.root, row["root"]),
            ("frontier", grown, row["root"]),
        )
        wrong = [name for name, stated, stored in compared if stated != stored]
        if not wrong:
            return signed
        problem = f"the row and its signed note do not agree on {', '.join(wrong)}: one of them was changed"
        return Fault(where, problem, partition, size, row["entry_id"])

    async def _end(self, walk: Walk) -> Fault | None:
        """Check what must hold after the last row: it is the head, and no checkpoint is beyond it or missing."""
        part, partition = walk.part, walk.part.partition
        row = await self._db.fetchrow(_SQL["last_beyond"], partition, walk.seq)
        fault = walk.beyond([self._read(partition, row)] if row else [])
        if fault is not None:
            return fault
        published = await self._db.fetchval(_SQL["published"], partition) or 0
        if published > part.signed:
            table = f"the table's last is of {part.signed}: checkpoints were deleted"
            return walk.at_end(f"a checkpoint of {published} entries was handed outside, and {table}")
        if self._outside is not None:
            await self.count_missing(part, self._outside)
        return walk.against_head(await read_head(self._db, partition))

    async def count_missing(self, part: PartitionResult, outside: OutsideNotes) -> None:
        """Count the checkpoints that were published outside, by the snapshot, and are not in `outside`."""
        sizes = sorted(outside.of(f"streamproc/{self.archive}/{part.partition}"))
        first, last = (sizes[0], sizes[-1]) if sizes else (0, 0)
        row = await self._db.fetchrow(_SQL["missing_outside"], part.partition, sizes, first, last)
        part.not_outside, part.missing_since, part.missing_within = row
