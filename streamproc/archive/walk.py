"""Compares one partition's rows with chain and checkpoints, and explains the first one that is wrong. Pure.

Several kinds of tampering can leave the same traces; the words say what it looks like, and no more.
"""

from collections.abc import Mapping, Sequence
from datetime import datetime

from msgspec import Struct

from streamproc.archive.chain import GENESIS, link_hash
from streamproc.archive.checkpoint import Checkpoint
from streamproc.archive.load import payout_about
from streamproc.archive.merkle import Frontier
from streamproc.archive.rows import ChainedRow
from streamproc.archive.store import Head
from streamproc.domain.entry_ids import ZERO, id_key

FORK = "{one} and {other} are two signed checkpoints of {size} entries that state different histories: a fork"


class Fault(Struct, frozen=True):
    """Something wrong: where, and what, in words. `seq` is the row's, or the checkpoint's size, or 0."""

    where: str
    problem: str
    partition: int | None = None
    seq: int = 0
    entry: str = ""

    def __str__(self) -> str:
        return f"{self.where}: {self.problem}"


class PartitionResult(Struct):
    """What was found in one partition. `signed`: how many of its rows good checkpoints cover."""

    partition: int
    rows: int = 0
    checkpoints: int = 0
    outside: int = 0
    not_outside: int = 0
    """Checkpoints that the table says were published outside and that are not in the file."""
    missing_since: int = 0
    """Those of them after the file's first one: the file was cut, damaged or exchanged."""
    missing_within: int = 0
    """Those of them before the file's last one: it is not just an older copy."""
    signed: int = 0
    signed_at: datetime | None = None
    fault: Fault | None = None


class Walk:
    """The pass over a partition's rows: chain and tree so far, and how much good checkpoints cover.

    `outside`: the checkpoints found outside the database, by size; `where`: their place.
    """

    def __init__(self, part: PartitionResult, outside: Mapping[int, Checkpoint], where: str) -> None:
        self.part = part
        self.seq, self.entry, self.link = 0, ZERO, GENESIS
        self.outside = outside
        self.stumbled: ChainedRow | None = None
        self._where = where
        self._frontier = Frontier()

    def through(self, rows: Sequence[ChainedRow], marks: Mapping[int, Checkpoint | Fault]) -> Fault | None:
        """Take in rows; the first fault among them. A row that does not fit is in `stumbled`, to be `explained`.

        `marks`: the table's checkpoints of sizes up to the last row's seq.
        """
        partition, frontier, before = self.part.partition, self._frontier, id_key(self.entry)
        for row in rows:
            if row.seq != self.seq + 1:
                return self._not_next(row)
            link = link_hash(self.link, partition, row.seq, row.id, row.e, row.m)
            if link != row.hash or (key := id_key(row.id)) <= before:
                self.stumbled = row
                return None
            if row.payout != (about := payout_about(row.e)):
                problem = f"its column payout says {row.payout}, its bytes are about {about}: the column was changed"
                return self._fault_at(row, problem)
            self.seq, self.entry, self.link, before = row.seq, row.id, link, key
            self.part.rows = row.seq
            frontier.append(link)
            if row.seq in marks or row.seq in self.outside:
                fault = self._compare(marks.get(row.seq))
                if fault is not None:
                    return fault
        return None

    def _not_next(self, row: ChainedRow) -> Fault:
        if row.seq == self.seq:
            problem = (
                f"this seq is there twice, as entries {self.entry} and {row.id}: a fork, two histories in one"
            )
            return self._fault_at(row, problem)
        return self._fault_at(
            row, f"it comes after seq {self.seq}: {_rows(self.seq + 1, row.seq - 1)} deleted"
        )

    def explained(self, after: ChainedRow | None) -> Fault:
        """What happened to the row that does not fit, as far as the next row `after` shows it (None: it is the
        last)."""
        assert self.stumbled is not None
        return self._fault_at(self.stumbled, self._why(self.stumbled, after))

    def _why(self, row: ChainedRow, after: ChainedRow | None) -> str:
        if after is not None and after.seq == row.seq:
            return f"this seq is there twice, also as entry {after.id}: a fork, two histories in one"
        if id_key(row.id) <= id_key(self.entry):
            return f"its id is not above {self.entry}, the row before it: rows changed places, or it was put here"
        if after is None:
            return "its bytes and hash do not fit the row before it, and it is the last: it was changed, or put here"
        if self._link(after, row.hash) == after.hash:
            return "its bytes or its id are not those that were archived: its hash fits the row after it"
        if id_key(after.id) < id_key(row.id):
            return f"its id is above {after.id}, the row after it: rows changed places"
        if self._link(row, self.link, of=after) == row.hash:
            return "it has the bytes of the row after it: they changed places"
        if self._link(after, self._link(row, self.link)) == after.hash:
            return "its hash was changed: its bytes fit the rows before and after it"
        return "neither its bytes nor its hash fit the rows beside it: it and what follows were changed"

    def _link(self, row: ChainedRow, before: bytes, *, of: ChainedRow | None = None) -> bytes:
        """The row's link after a hash, with its own bytes or those `of` another row."""
        bytes_of = of or row
        return link_hash(before, self.part.partition, row.seq, row.id, bytes_of.e, bytes_of.m)

    # ---- checkpoints ----

    def _compare(self, mark: Checkpoint | Fault | None) -> Fault | None:
        """Compare the rows so far with the checkpoints of this size: `mark` is the table's, and there may be one
        outside."""
        there = self.outside.get(self.seq)
        if isinstance(mark, Fault):
            return mark
        if mark is not None and there is not None and not mark.says_the_same_as(there):
            other = f"the one in {self._where}"
            return self._fault_of_checkpoint(FORK.format(size=self.seq, one="the table's", other=other))
        signed = mark or there
        assert signed is not None
        if (signed.hash, signed.entry, signed.root) != (self.link, self.entry, self._frontier.root()):
            rows = _rows(self.part.signed + 1, self.seq)
            at = signed.at.isoformat(timespec="seconds")
            return self._fault_of_checkpoint(
                f"{rows} not as they were when it was signed, {at}: the history was rewritten and hashed anew"
            )
        if mark is None:
            return self._fault_of_checkpoint(
                f"it is in {self._where} and not in the table: it was deleted there"
            )
        self.part.checkpoints += 1
        self.part.signed, self.part.signed_at = mark.size, mark.at
        return None

    def beyond(self, marks: Sequence[Checkpoint | Fault]) -> Fault | None:
        """After the last row: checkpoints that cover more than there is. `marks` are the table's, if any."""
        good = [one for one in marks if isinstance(one, Checkpoint)]
        good += [one for size, one in self.outside.items() if size > self.seq]
        if good:
            most = max(good, key=lambda one: one.size)
            at, lost = most.at.isoformat(timespec="seconds"), _rows(self.seq + 1, most.size)
            return self.at_end(f"a checkpoint of {most.size} entries was signed {at}: {lost} cut off")
        return next((one for one in marks if isinstance(one, Fault)), None)

    def against_head(self, head: Head) -> Fault | None:
        """Check that the last row is the archive's head."""
        if (head.seq, head.entry, head.hash) == (self.seq, self.entry, self.link):
            return None
        if head.seq > self.seq:
            return self.at_end(f"the head says that {head.seq} is: {_rows(self.seq + 1, head.seq)} cut off")
        return self.at_end(f"the head says that {head.seq}, entry {head.entry}, is: one of them was changed")

    def at_end(self, problem: str) -> Fault:
        """A fault after the last row."""
        if self.seq == 0:
            return Fault(
                f"partition {self.part.partition}", f"it has no rows, but {problem}", self.part.partition
            )
        where = f"partition {self.part.partition}, seq {self.seq}, entry {self.entry}"
        return Fault(where, f"this is the last row, but {problem}", self.part.partition, self.seq, self.entry)

    def _fault_at(self, row: ChainedRow, problem: str) -> Fault:
        where = f"partition {self.part.partition}, seq {row.seq}, entry {row.id}"
        return Fault(where, problem, self.part.partition, row.seq, row.id)

    def _fault_of_checkpoint(self, problem: str) -> Fault:
        where = f"partition {self.part.partition}, checkpoint of {self.seq} entries"
        return Fault(where, problem, self.part.partition, self.seq, self.entry)


def _rows(first: int, last: int) -> str:
    """A stretch of rows with its verb: "row 3 was", "rows 3 to 5 were"."""
    return f"row {first} was" if first == last else f"rows {first} to {last} were"
