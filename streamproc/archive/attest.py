"""Makes signed checkpoints, each from the last one and the rows after it.

A maker signs nothing that it did not compute. It trusts no stored hash: each link is computed from the stored bytes, so
a row that was changed before it was signed is noticed and not signed. Where its process archived the same bytes a
moment ago, it computed their link then. It starts from the last checkpoint, if that has a trusted signature. (Rows
before that checkpoint are signed already; `audit verify` finds out if they were changed since.)
"""

from collections import deque
from collections.abc import Sequence
from datetime import UTC, datetime

import asyncpg
from msgspec import Struct

from streamproc.archive import checkpoint
from streamproc.archive.chain import GENESIS, link_hash
from streamproc.archive.checkpoint import Checkpoint
from streamproc.archive.merkle import Frontier
from streamproc.archive.note import BadNote, Signer, Trusted
from streamproc.archive.rows import ArchivedEntry
from streamproc.archive.sql import statements
from streamproc.archive.store import Head, Statements, read_head
from streamproc.domain.entry_ids import ZERO, id_key
from streamproc.errors import ConfigError, LogBroken

ROWS_AT_ONCE = 500
"""Rows fetched and hashed in one go, some 2 kB each: for about 5 ms the archive's own task waits."""

LATELY_MAX = 24_000
"""Rows that a process remembers until they are signed, some 1.2 kB each: what a flood brings until a checkpoint of
10,000 entries (`STREAMPROC_CHECKPOINT_ENTRIES`) is made. Links of older ones are computed again."""

_SQL = statements("streamproc.archive", "attest.sql")


class Lately:
    """Rows that this process archived lately, one after the other, with the links that it computed for them."""

    def __init__(self, rows_max: int = LATELY_MAX) -> None:
        self._rows: deque[ArchivedEntry] = deque(maxlen=rows_max)
        self._before: ArchivedEntry | None = None

    def put(self, rows: Sequence[ArchivedEntry]) -> None:
        """Remember rows that the archive has committed, in order; beyond `rows_max` the oldest are dropped."""
        self._rows.extend(rows)

    def link_after(self, previous: bytes, seq: int, entry: str, e: bytes, m: bytes) -> bytes | None:
        """The link of a stored row after the link `previous`, if it was computed here from the same bytes.

        To be asked for ascending rows, which are forgotten then.
        """
        rows, before = self._rows, self._before
        while rows and rows[0].seq < seq:
            before = rows.popleft()
        self._before = before
        if not rows or rows[0].seq != seq:
            return None
        self._before = row = rows.popleft()
        if before is None or before.seq != seq - 1 or before.hash != previous:
            return None
        return row.hash if row.e == e and row.m == m and row.id == entry else None


class Covered(Struct, frozen=True):
    """What the last checkpoint of a partition covers, and the tree up to there."""

    size: int = 0
    entry: str = ZERO
    hash: bytes = GENESIS
    frontier: bytes = b""


async def identity(db: Statements) -> str:
    """The archive's id, which is in every checkpoint's origin."""
    found = await db.fetchval(_SQL["identity"])
    if found is None:
        raise ConfigError("the table archive_identity is empty: this archive has lost its name")
    return str(found)


class Maker:
    """Makes the checkpoints of one partition, one at a time, each from the one before it."""

    def __init__(
        self,
        db: Statements,
        partition: int,
        archive: str,
        signer: Signer,
        covered: Covered,
        lately: Lately | None = None,
    ) -> None:
        self._db = db
        self._partition = partition
        self._archive = archive
        self._signer = signer
        self._covered = covered
        self._lately = lately or Lately()

    @classmethod
    async def open(
        cls, db: Statements, partition: int, signer: Signer, trusted: Trusted, lately: Lately | None = None
    ) -> "Maker":
        """Go on after the last checkpoint. Raises LogBroken if the archive contradicts it.

        `lately`: what this process archives; None: nothing.
        """
        archive = await identity(db)
        row = await db.fetchrow(_SQL["last"], partition)
        covered = _trusted_row(row, archive, partition, trusted) if row else Covered()
        maker = cls(db, partition, archive, signer, covered, lately)
        await maker._check_ground()
        return maker

    @property
    def size(self) -> int:
        """How many entries the last checkpoint covers."""
        return self._covered.size

    def contradicts(self, other: Checkpoint) -> bool:
        """Whether another checkpoint of the same size as the last one states another history."""
        covered = self._covered
        return other.size == covered.size and (other.entry, other.hash) != (covered.entry, covered.hash)

    @property
    def origin(self) -> str:
        """The first line of its checkpoints: which archive and partition they are about."""
        return f"streamproc/{self._archive}/{self._partition}"

    async def _check_ground(self) -> None:
        covered, head = self._covered, await read_head(self._db, self._partition)
        published = await self._db.fetchval(_SQL["published"], self._partition) or 0
        if published > covered.size:
            raise self._contradiction(
                f"a checkpoint of {published} entries was published, and the table's last is of {covered.size}"
            )
        if head.seq < covered.size:
            raise self._contradiction(
                f"the archive ends at {head.seq}, the last checkpoint covers {covered.size}"
            )
        if covered.size == 0:
            return
        row = await self._db.fetchrow(_SQL["row_at"], self._partition, covered.size)
        if row is None or (row["entry_id"], row["hash"]) != (covered.entry, covered.hash):
            raise self._contradiction(
                f"row {covered.size} is not the one that was signed, entry {covered.entry}"
            )

    async def head(self) -> Head:
        """The last archived entry of the partition, as it is now."""
        return await read_head(self._db, self._partition)

    async def waited_s(self) -> float:
        """How long ago the first entry that no checkpoint covers was archived; 0 if there is none."""
        found = await self._db.fetchval(_SQL["waited_s"], self._partition, self._covered.size + 1)
        return float(found or 0.0)

    async def make(self, upto: int) -> Checkpoint:
        """Sign the first `upto` entries, which must be archived. Raises LogBroken if a row does not follow."""
        computed, frontier = await self._computed(upto)
        await self._keep(computed, frontier, self._signer.sign(computed.text()))
        return computed

    async def take_back(self, stated: Checkpoint, note: str) -> None:
        """Keep a later checkpoint of ours that the table lost; `note` has a trusted signature, and is outside.

        Its entries must be archived. Raises LogBroken if they are not what it states.
        """
        computed, frontier = await self._computed(stated.size)
        if not computed.says_the_same_as(stated):
            raise self._contradiction(
                f"a checkpoint of {stated.size} entries that was handed outside states another history than the"
                " archive's: a fork, or rows were changed"
            )
        await self._keep(stated, frontier, note)
        await self.published(stated.size)

    async def _computed(self, upto: int) -> tuple[Checkpoint, bytes]:
        """The first `upto` entries as the stored bytes say, and the tree's frontier there."""
        frontier = Frontier.unpacked(self._covered.size, self._covered.frontier)
        seq, entry, link = self._covered.size, self._covered.entry, self._covered.hash
        while seq < upto:
            rows = await self._db.fetch(_SQL["rows"], self._partition, seq, min(upto, seq + ROWS_AT_ONCE))
            for number, name, e, m, stored in rows:
                seq += 1
                known = self._lately.link_after(link, seq, name, e, m)
                # Whoever archived it has compared the ids, too.
                follows = known is not None or id_key(name) > id_key(entry)
                link = known or link_hash(link, self._partition, seq, name, e, m)
                if number != seq or link != stored or not follows:
                    raise self._contradiction(
                        f"row {number}, entry {name}, does not follow row {seq - 1}, entry {entry}"
                    )
                entry = name
                frontier.append(link)
            if not rows:
                raise self._contradiction(
                    f"row {seq + 1} is missing, and the archive's head says that it is there"
                )
        computed = Checkpoint(
            self._archive, self._partition, upto, frontier.root(), entry, link, datetime.now(UTC)
        )
        return computed, frontier.packed()

    async def _keep(self, signed: Checkpoint, frontier: bytes, note: str) -> None:
        try:
            await self._db.execute(
                _SQL["insert"],
                *(signed.partition, signed.size, signed.entry, signed.hash, signed.root, frontier, note),
            )
        except asyncpg.UniqueViolationError:
            raise self._contradiction(
                f"there is a checkpoint of {signed.size} entries already that was not made here"
            ) from None
        self._covered = Covered(signed.size, signed.entry, signed.hash, frontier)

    def _contradiction(self, what: str) -> LogBroken:
        return LogBroken(f"partition {self._partition}: {what}; run `streamproc audit verify`")

    async def unpublished(self) -> tuple[int, str] | None:
        """The first checkpoint that was not published outside yet: its size and its note."""
        published = await self._db.fetchval(_SQL["published"], self._partition) or 0
        row = await self._db.fetchrow(_SQL["unpublished"], self._partition, published)
        return (row["size"], row["note"]) if row else None

    async def published(self, size: int) -> None:
        """Record that the checkpoint of that size is outside."""
        await self._db.execute(_SQL["set_published"], self._partition, size)


def _trusted_row(row: asyncpg.Record, archive: str, partition: int, trusted: Trusted) -> Covered:
    where = f"partition {partition}: the last checkpoint, of {row['size']} entries,"
    try:
        signed, _ = checkpoint.opened(row["note"], trusted)
    except BadNote as problem:
        hint = "the public key of an earlier signing key belongs in STREAMPROC_CHECKPOINT_KEYS"
        raise LogBroken(f"{where} cannot be continued: {problem} ({hint})") from problem
    stored = (archive, partition, row["size"], row["entry_id"], row["hash"], row["root"])
    if stored != (signed.archive, signed.partition, signed.size, signed.entry, signed.hash, signed.root):
        raise LogBroken(f"{where} has another content than its signed note; run `streamproc audit verify`")
    try:
        grown = Frontier.unpacked(signed.size, row["frontier"])
    except ValueError as problem:
        raise LogBroken(f"{where} cannot be continued: {problem}; run `streamproc audit verify`") from problem
    if grown.root() != signed.root:
        raise LogBroken(f"{where} has a frontier that is not that of its root; run `streamproc audit verify`")
    return Covered(signed.size, signed.entry, signed.hash, row["frontier"])


class CheckpointState(Struct, frozen=True):
    """A partition's checkpoints. Times in ms since 1970, None if there is no such thing:

    `waiting_ms` of the first entry that none covers, `unpublished_ms` of the first that was not published outside.
    """

    partition: int
    seq: int
    covered: int
    published: int
    waiting_ms: int | None
    unpublished_ms: int | None


async def checkpoint_states(db: asyncpg.Connection) -> list[CheckpointState]:
    """The state of each partition's checkpoints."""
    return [CheckpointState(*row) for row in await db.fetch(_SQL["checkpoint_states"])]
