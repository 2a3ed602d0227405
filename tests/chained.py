"""A plain check of a chain of archived rows, to hold the archive against, beside `audit verify` (archive/walk.py)."""

from collections.abc import Iterable

from msgspec import Struct

from streamproc.archive.chain import GENESIS, link_hash
from streamproc.archive.rows import ArchivedEntry


class Position(Struct, frozen=True):
    """The end of a verified stretch: its last row's seq and hash."""

    seq: int = 0
    hash: bytes = GENESIS


class BrokenLink(Struct, frozen=True):
    """The first row that does not follow from the one before it."""

    partition: int
    seq: int
    id: str
    problem: str


def verify(rows: Iterable[ArchivedEntry], start: Position = Position()) -> Position | BrokenLink:  # noqa: B008  # frozen
    """Follow `rows`, one partition's in order of seq, from `start`: the end, or the first wrong link."""
    seq, previous = start.seq, start.hash
    for row in rows:
        seq += 1
        if row.seq != seq:
            return BrokenLink(row.partition, row.seq, row.id, f"seq {seq} is missing: {row.seq} comes next")
        if row.hash != link_hash(previous, row.partition, seq, row.id, row.e, row.m):
            return BrokenLink(
                row.partition, seq, row.id, "its bytes or the rows before it are not those archived"
            )
        previous = row.hash
    return Position(seq, previous)
