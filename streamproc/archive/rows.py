"""A row of the archive, with as many of its fields as a reader asks for, in this order."""

from datetime import datetime

from msgspec import Struct


# gc=False, which those below inherit: millions are read, and nothing that they hold can refer back to them.
class Row(Struct, frozen=True, gc=False):
    """What a fold reads."""

    seq: int
    id: str
    e: bytes
    m: bytes


class RowAbout(Row, frozen=True):
    """With the payout that it is stored under, None if it is about none."""

    payout: str | None


class ChainedRow(RowAbout, frozen=True):
    """With its link in the chain: all that is stored of it except its time, within its partition."""

    hash: bytes


class ArchivedEntry(ChainedRow, frozen=True):
    """A row by itself. `archived_at` is None until it is read back."""

    partition: int
    archived_at: datetime | None = None
