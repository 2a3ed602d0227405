"""Loading entries into the archive: which ones are new, their links in the chain, and the COPY.

`chained` is pure. `load` runs inside the caller's transaction, so that rows and head move together or not at all.
"""

from collections.abc import Sequence
from itertools import takewhile
from typing import TypeVar

import asyncpg
import msgspec
from msgspec import Struct

from streamproc.archive.chain import link_hash
from streamproc.archive.rows import ArchivedEntry, Row, RowAbout
from streamproc.archive.sql import statements
from streamproc.archive.store import Entry, Head, move_head
from streamproc.archive.text import text_key
from streamproc.domain.entry_ids import id_key
from streamproc.domain.wire import MALFORMED
from streamproc.errors import LogBroken

COLUMNS = ("partition", "seq", "entry_ms", "entry_n", "payout", "e", "m", "hash")
N_MAX = 2**63 - 1
"""The largest number of an entry within its ms that the archive has room for. Redis itself counts from 0; a hand may
write any up to 2**64 - 1."""

E = TypeVar("E", bound=Entry)

_SQL = statements("streamproc.archive", "load.sql")


class _About(Struct, gc=False):
    """Of an event, only its payout."""

    payout: str = ""


_decode_about = msgspec.json.Decoder(list[_About]).decode


def payout_about(e: bytes) -> str | None:
    """The payout that an entry is about, as a key to find its rows; None if it names none or cannot be read.

    That is no error here: the archive keeps what it does not understand, and the folds stop at it.
    """
    try:
        for event in _decode_about(e):
            if event.payout:
                return text_key(event.payout)
    except MALFORMED:
        return None
    return None


def chained(
    partition: int, head: Head, entries: Sequence[Entry]
) -> tuple[list[ArchivedEntry], list[tuple[int, int]], Head]:
    """The rows for `entries` after `head`, their ids as keys, and the head after them.

    Raises LogBroken when an entry does not come after the one before it, or its id is beyond N_MAX.
    """
    rows: list[ArchivedEntry] = []
    keys: list[tuple[int, int]] = []
    seq, before, link, last = head.seq, head.entry, head.hash, id_key(head.entry)
    for entry in entries:
        name, e, m = entry.id, entry.e, entry.m
        if (key := id_key(name)) <= last:
            raise LogBroken(f"partition {partition}: entry {name} comes after entry {before} in the log")
        if key[1] > N_MAX:
            raise LogBroken(
                f"entry {partition}:{name} has a number beyond {N_MAX}, the last that the archive has room for; nobody"
                " of ours wrote it, and it is not archived"
            )
        seq += 1
        link = link_hash(link, partition, seq, name, e, m)
        rows.append(ArchivedEntry(seq, name, e, m, payout_about(e), link, partition))
        keys.append(key)
        before, last = name, key
    return rows, keys, Head(seq, before, link)


async def load(
    db: asyncpg.Connection,
    partition: int,
    old: Head,
    new: Head,
    rows: Sequence[ArchivedEntry],
    keys: Sequence[tuple[int, int]],
) -> None:
    """Move the head and COPY the rows, whose ids are `keys`. Must run in a transaction."""
    await move_head(db, partition, old, new)
    records = (
        (r.partition, r.seq, *key, r.payout, r.e, r.m, r.hash) for r, key in zip(rows, keys, strict=True)
    )
    await db.copy_records_to_table("events", records=records, columns=COLUMNS)


async def archive(
    db: asyncpg.Connection, partition: int, head: Head, entries: Sequence[Entry]
) -> tuple[list[ArchivedEntry], Head]:
    """Archive entries that follow `head`, in one transaction; their rows and the new head."""
    rows, keys, new = chained(partition, head, entries)
    async with db.transaction():
        await load(db, partition, head, new, rows, keys)
    return rows, new


async def rows_after(db: asyncpg.Connection, partition: int, after_seq: int, count: int) -> list[RowAbout]:
    """Up to `count` rows of a partition after a seq, in order. Raises LogBroken if one is missing among them."""
    rows = await _rows(db, partition, after_seq, after_seq + count)
    if len(rows) < count:
        # No row may be skipped, so rows may only be missing after the archive's end. That is read first, and the rows
        # again, since they may have been archived meanwhile.
        head = await head_seq(db, partition)
        rows = await _rows(db, partition, after_seq, after_seq + count)
        expected = min(count, max(head - after_seq, 0))
        if len(rows) < expected or (rows and rows[-1].seq != after_seq + len(rows)):
            missing = next(
                (n for n, row in enumerate(rows, after_seq + 1) if row.seq != n), after_seq + 1 + len(rows)
            )
            raise LogBroken(
                f"the archive of partition {partition} has no row {missing}, though it is at {head};"
                " `streamproc audit verify` says more"
            )
    return rows


async def head_seq(db: asyncpg.Connection, partition: int) -> int:
    """The seq of the last archived row; 0 where there is none."""
    found: int | None = await db.fetchval(_SQL["head_seq"], partition)
    return found or 0


async def _rows(db: asyncpg.Connection, partition: int, after_seq: int, upto_seq: int) -> list[RowAbout]:
    return [RowAbout(*row) for row in await db.fetch(_SQL["rows_between"], partition, after_seq, upto_seq)]


async def make_ranges(db: asyncpg.Connection, months_ms: Sequence[int]) -> None:
    """Make the archive's ranges (partitions of its table) for these months (ms). Not in the load's transaction: it
    takes locks."""
    for at_ms in months_ms:
        await db.execute(_SQL["make_range"], at_ms)


async def drop_redelivered(
    db: asyncpg.Connection, partition: int, head: Head, entries: Sequence[Entry]
) -> Sequence[Entry]:
    """The entries after `head`. Those up to it, which come first, must be archived with the same bytes.

    Raises LogBroken if the archive does not have one of them, or has other bytes.
    """
    last = id_key(head.entry)
    old = list(takewhile(lambda entry: id_key(entry.id) <= last, entries))
    if not old:
        return entries
    archived = await _bytes_of(db, partition, old)
    for entry in old:
        if entry.id not in archived:
            raise LogBroken(
                f"entry {partition}:{entry.id} is before the archive's head {head.entry} but was never archived"
            )
        if archived[entry.id] != (entry.e, entry.m):
            raise LogBroken(f"entry {partition}:{entry.id} has other bytes in the log than in the archive")
    return entries[len(old) :]


async def not_archived(db: asyncpg.Connection, partition: int, entries: Sequence[E]) -> list[E]:
    """The entries that the archive does not have, or has with other bytes."""
    archived = await _bytes_of(db, partition, entries)
    return [entry for entry in entries if archived.get(entry.id) != (entry.e, entry.m)]


async def entries_by_id(db: asyncpg.Connection, partition: int, entries: Sequence[str]) -> list[Row]:
    """These entries, as far as they are archived."""
    keys = [id_key(entry) for entry in entries]
    rows = await db.fetch(_SQL["entries_by_id"], partition, [ms for ms, _ in keys], [n for _, n in keys])
    return [Row(*row) for row in rows]


async def _bytes_of(
    db: asyncpg.Connection, partition: int, entries: Sequence[Entry]
) -> dict[str, tuple[bytes, bytes]]:
    return {row.id: (row.e, row.m) for row in await entries_by_id(db, partition, [one.id for one in entries])}
