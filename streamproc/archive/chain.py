"""The hash chain over the archive. Pure.

    hash = sha256(TAG, previous hash, then each of: partition, seq, entry id, e, m, prefixed by its length)

A length is 8 bytes, big-endian; partition and seq are decimal text. Length prefixes keep two different entries
from giving the same input. Only bytes are hashed: no time stamp, whose precision the database could change.
The chain catches an edited, lost, added or swapped row. It cannot catch a cut tail or a whole new chain:
that takes a checkpoint which is kept elsewhere (attest.py).
"""

from collections.abc import Iterable
from hashlib import sha256
from struct import Struct as Layout

from msgspec import Struct

from streamproc.archive.rows import ArchivedEntry

TAG = b"streamproc/archive/v1"
GENESIS = bytes(32)
"""The previous hash of a partition's first entry."""
_length = Layout(">Q").pack


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


def link_hash(previous: bytes, partition: int, seq: int, entry: str, e: bytes, m: bytes) -> bytes:
    """The hash of an entry, chained to the hash of the entry before it."""
    one, two, three = b"%d" % partition, b"%d" % seq, entry.encode()
    # Written out for speed: computed twice for every entry, when it is archived and when it is signed.
    whole = (
        TAG, previous,
        _length(len(one)), one, _length(len(two)), two, _length(len(three)), three,
        _length(len(e)), e, _length(len(m)), m,
    )  # fmt: skip
    return sha256(b"".join(whole)).digest()


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
