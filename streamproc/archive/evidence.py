"""Reads evidence out of the archive: which entries belong to a question, and proofs that they are signed.

Everything is streamed. Only positions and paths of the wanted entries are kept in memory, never a history.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from itertools import islice

import asyncpg
import msgspec
from msgspec import Struct

from streamproc.archive import checkpoint
from streamproc.archive.chain import link_hash
from streamproc.archive.checkpoint import Checkpoint
from streamproc.archive.inspection import rows_stream
from streamproc.archive.merkle import Prover
from streamproc.archive.note import BadNote, PublicKey, Trusted
from streamproc.archive.read import AuditFilter, audit_query
from streamproc.archive.rows import ChainedRow
from streamproc.archive.sql import statements
from streamproc.domain.wire import MALFORMED
from streamproc.errors import JobFailed

LINES_AT_ONCE = 2_000
HASHES_AT_ONCE = 10_000
ENTRIES_AT_ONCE = 200
"""Entries fetched with their bytes, some 2 kB each."""
PAYOUTS_AT_ONCE = 1_000
ENTRIES_MAX = 200_000
"""Entries that one bundle can prove: 150 MB of paths, some 700 bytes each."""
STATEMENT_TIMEOUT_MS = 600_000
"""A filter without an index of its own may have to look at the whole audit for its first line."""
FETCH_TIMEOUT_S = STATEMENT_TIMEOUT_MS / 1000 + 10

Places = dict[int, set[int]]
"""Entries by partition and seq."""

_SQL = statements("streamproc.archive", "evidence.sql")


class _Named(Struct):
    """Of an event, the fields that name a policy version."""

    type: str
    agent: str = ""
    policy_version: int = 0


class ChainedEntry(ChainedRow, frozen=True):
    """An entry with the hash before it."""

    before: bytes


class PolicyRef(Struct, frozen=True, order=True):
    """A policy version that a decision names. `seq`: the entry that made it, 0 if that is not known."""

    partition: int
    scope: str
    version: int
    seq: int = 0


_decode = msgspec.json.Decoder(list[_Named]).decode


async def lines(db: asyncpg.Connection, wanted: AuditFilter) -> AsyncIterator[list[asyncpg.Record]]:
    """The audit's lines that match, the oldest first, in batches. `db` is in a transaction."""
    await db.execute(f"SET LOCAL statement_timeout = {STATEMENT_TIMEOUT_MS}")
    query, values = audit_query(wanted, newest_first=False)
    cursor = await db.cursor(query, *values, timeout=FETCH_TIMEOUT_S)
    while rows := await cursor.fetch(LINES_AT_ONCE, timeout=FETCH_TIMEOUT_S):
        yield rows


async def entries_for(db: asyncpg.Connection, wanted: AuditFilter) -> Places:
    """The entries of the lines that match, and all entries of the payouts that they are about.

    Without a filter all entries. With a payout alone its entries, even if the audit has no line of it yet. Raises
    JobFailed if there are more than ENTRIES_MAX.
    """
    places = Places()
    if wanted == AuditFilter():
        for partition, seq in await db.fetch(_SQL["ends"]):
            _add(places, ((partition, n) for n in range(1, min(seq, ENTRIES_MAX + 1) + 1)))
        return places
    payouts = {wanted.payout} if wanted.payout and wanted == AuditFilter(payout=wanted.payout) else set[str]()
    async for rows in lines(db, wanted):
        payouts.update(row["payout"] for row in rows if row["payout"] is not None)
        _add(places, ((row["partition"], row["seq"]) for row in rows))
    waiting = iter(sorted(payouts))
    while chunk := list(islice(waiting, PAYOUTS_AT_ONCE)):
        _add(places, await db.fetch(_SQL["entries_about"], chunk))
    return places


def take_in(places: Places, signed: Iterable[Checkpoint]) -> Places:
    """Add what checkpoints of since cover to places that no filter chose; what was new. Raises as `entries_for`."""
    new = {one.partition: set(range(1, one.size + 1)) - places[one.partition] for one in signed}
    _add(places, ((partition, seq) for partition, seqs in new.items() for seq in seqs))
    return new


def _add(places: Places, found: Iterable[Sequence[int]]) -> None:
    for partition, seq in found:
        places.setdefault(partition, set()).add(seq)
    count = sum(map(len, places.values()))
    if count > ENTRIES_MAX:
        raise JobFailed(
            f"more than {ENTRIES_MAX} entries match, the limit of one bundle; narrow the filter, by time say"
        )


async def policies_named(db: asyncpg.Connection, places: Places) -> list[PolicyRef]:
    """The policy versions that decisions among these entries name, with the entries that made them."""
    named: set[PolicyRef] = set()
    for partition, seqs in places.items():
        async for entry in entries(db, partition, seqs):
            named.update(_policies_in(partition, entry.e))
    return [
        msgspec.structs.replace(
            ref, seq=await db.fetchval(_SQL["policy_entry"], ref.partition, ref.scope, ref.version) or 0
        )
        for ref in sorted(named)
    ]


def _policies_in(partition: int, e: bytes) -> Iterator[PolicyRef]:
    try:
        events = _decode(e)
    except MALFORMED:
        return  # bytes that cannot be read are evidence all the same
    for event in events:
        if event.type == "payout.decided" and event.policy_version:
            yield PolicyRef(partition, f"agent:{event.agent}", event.policy_version)


async def entries(db: asyncpg.Connection, partition: int, seqs: Iterable[int]) -> AsyncIterator[ChainedEntry]:
    """Entries of a partition in order. Raises JobFailed for one whose bytes do not give its hash."""
    waiting = iter(sorted(seqs))
    while chunk := list(islice(waiting, ENTRIES_AT_ONCE)):
        for row in await db.fetch(_SQL["entries"], partition, chunk):
            entry = ChainedEntry(*row)
            if link_hash(entry.before, partition, entry.seq, entry.id, entry.e, entry.m) != entry.hash:
                raise _broken(partition, f"entry {entry.id}, seq {entry.seq}, does not give its hash")
            yield entry


async def entry_id(db: asyncpg.Connection, partition: int, seq: int) -> str:
    """The id of an entry that is there."""
    return str(await db.fetchval(_SQL["entry_id"], partition, seq))


async def last_checkpoint(
    db: asyncpg.Connection, partition: int, trusted: Trusted
) -> tuple[Checkpoint, PublicKey, str] | None:
    """The last checkpoint of a partition, who signed it, and its note; None where there is none."""
    note = await db.fetchval(_SQL["last_note"], partition)
    if note is None:
        return None
    try:
        return *checkpoint.opened(note, trusted), note
    except BadNote as problem:
        raise JobFailed(f"partition {partition}: of its last checkpoint, {problem}") from problem


async def proofs(
    db: asyncpg.Connection, signed: Checkpoint, seqs: Iterable[int], on_rows: Callable[[int], None]
) -> dict[int, list[bytes]]:
    """The path of each entry to the signed root, by seq, made in one pass over all hashes below that root.

    `on_rows` is called with the number passed. Raises JobFailed if the archive does not have that root.
    """
    await rows_stream(db)
    prover = Prover(seq - 1 for seq in seqs)
    cursor = await db.cursor(_SQL["hashes"], signed.partition, signed.size)
    while rows := await cursor.fetch(HASHES_AT_ONCE):
        await asyncio.to_thread(_append_all, prover, rows)
        on_rows(prover.size)
    root, paths = prover.finish()
    if (prover.size, root) != (signed.size, signed.root):
        raise _broken(
            signed.partition, f"its first {signed.size} entries do not give the root that was signed"
        )
    return {index + 1: path for index, path in paths.items()}


def _append_all(prover: Prover, rows: Sequence[asyncpg.Record]) -> None:
    for (link,) in rows:
        prover.append(link)


def _broken(partition: int, what: str) -> JobFailed:
    return JobFailed(f"partition {partition}: {what}; `streamproc audit verify` finds the place")
