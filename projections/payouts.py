"""View `payouts`: each payout's present state, a row with the fold of `domain.payouts.evolve`."""

from collections.abc import Iterable

import asyncpg
from msgspec import Struct

from projections.fold import Step, moment
from streamproc.archive.sql import statements
from streamproc.archive.text import KEY_CHARS_MAX, text
from streamproc.domain.domains import vendor_name
from streamproc.domain.payouts import CHANGING, PayoutRecord, decode_record, encode_record

NAME = "payouts"
VERSION = 2
READS = CHANGING
COLUMNS = (
    *("payout", "partition", "account", "agent", "identity", "amount", "currency", "vendor", "vendor_url"),
    *("state", "decision", "reason", "bank_status", "received_at", "updated_at", "entry_id", "record"),
    "at_bank",
)

_SQL = statements("projections", "payouts.sql")


class Latest(Struct, gc=False):
    """A payout's record, and the entry that changed it last."""

    entry: str
    record: PayoutRecord


class Changed:
    """What the steps of a segment made of each payout that they changed, and which of these were unknown before."""

    def __init__(self) -> None:
        # Not whole steps: these would keep each event and the record before it until the segment's end, and memory that
        # is given back only then has left the processor's caches.
        self.last: dict[str, Latest] = {}
        self.new: set[str] = set()

    def add(self, steps: Iterable[Step]) -> None:
        """As `fold.Accumulator`."""
        last = self.last
        for step in steps:
            # By identity: an event that changes nothing returns the same record, and a comparison would cost more
            # than a write.
            if (after := step.after) is not None and after is not step.before and step.payout:
                last[step.payout] = Latest(step.entry, after)
                if step.before is None:
                    self.new.add(step.payout)

    async def write(self, db: asyncpg.Connection, partition: int) -> None:
        """As `fold.Accumulator`."""
        last, new = self.last, self.new
        self.last, self.new = {}, set()
        if not last:
            return
        # Deleted and copied in again: a COPY costs a third of an UPDATE from arrays, and all indexes change either way.
        old = sorted(last.keys() - new)
        if old:
            await db.execute(_SQL["delete"], partition, old)
        # One by one as they are sent, not thousands that wait for it.
        rows = (_row(payout, partition, last[payout]) for payout in sorted(last))
        await db.copy_records_to_table(NAME, records=rows, columns=COLUMNS)


begin = Changed


async def load(db: asyncpg.Connection, partition: int, payouts: Iterable[str]) -> dict[str, PayoutRecord]:
    """The records of these payouts, as far as they are known."""
    wanted = sorted(payouts)
    if not wanted:
        return {}
    rows = await db.fetch(_SQL["load"], partition, wanted)
    return {row["payout"]: decode_record(row["record"]) for row in rows}


def _row(payout: str, partition: int, latest: Latest) -> tuple[object, ...]:
    record = latest.record
    whole = encode_record(record)
    row = (
        payout,
        partition,
        record.account,
        record.agent[:KEY_CHARS_MAX],
        record.identity,
        record.amount,
        record.currency,
        vendor_name(record.vendor_url, record.fund_account)[:KEY_CHARS_MAX],
        record.vendor_url,
        record.state,
        record.decision,
        record.reason,
        record.bank_status,
        moment(record.received_at),
        moment(record.updated_at),
        latest.entry,
        whole,
        record.bank_payout[:KEY_CHARS_MAX],
    )
    # One test for all its texts: if one has U+0000, the record's JSON has this escape; most have no backslash at all.
    if b"\\" in whole and b"\\u0000" in whole:
        return tuple(text(v) if type(v) is str else v for v in row)
    return row
