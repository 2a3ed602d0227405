"""View `payouts`: what each payout is now, the fold `domain.payouts.evolve` kept in a row."""

from collections.abc import Iterable, Sequence

import asyncpg

from projections.fold import Step, moment
from streamproc.archive.sql import statements
from streamproc.archive.text import text, text_key
from streamproc.domain.domains import vendor_name
from streamproc.domain.payouts import CHANGING, PayoutRecord, decode_record, encode_record

NAME = "payouts"
VERSION = 2
READS = CHANGING
COLUMNS = (
    *("payout", "partition", "account", "agent", "identity", "amount", "currency", "vendor", "vendor_url"),
    *(
        "state",
        "decision",
        "reason",
        "bank_status",
        "received_at",
        "updated_at",
        "entry_id",
        "record",
        "at_bank",
    ),
)

_SQL = statements("projections", "payouts.sql")


class Changed:
    """The last step that changed each payout, and which of the payouts were unknown before."""

    def __init__(self) -> None:
        self.last: dict[str, Step] = {}
        self.new: set[str] = set()

    def add(self, steps: Iterable[Step]) -> None:
        """As `fold.Sum`."""
        last = self.last
        for step in steps:
            # By identity: an event that changes nothing leaves the record as it is, and comparing costs more than a
            # write.
            if step.after is not step.before and step.payout:
                last[step.payout] = step
                if step.before is None:
                    self.new.add(step.payout)

    async def write(self, db: asyncpg.Connection, partition: int) -> None:
        """As `fold.Sum`."""
        last, new = self.last, self.new
        self.last, self.new = {}, set()
        if not last:
            return
        # Deleted and copied in again: a COPY costs a third of an UPDATE from arrays, and all indexes change either way.
        old = sorted(last.keys() - new)
        if old:
            await db.execute(_SQL["delete"], partition, old)
        rows = [_row(payout, last[payout]) for payout in sorted(last)]
        await db.copy_records_to_table(NAME, records=rows, columns=COLUMNS)


begin = Changed


def changed(steps: Iterable[Step]) -> tuple[dict[str, Step], set[str]]:
    """The last step that changed each payout, and which of the payouts were unknown before."""
    found = Changed()
    found.add(steps)
    return found.last, found.new


async def load(db: asyncpg.Connection, partition: int, payouts: Iterable[str]) -> dict[str, PayoutRecord]:
    """The records of these payouts, as far as they are known."""
    wanted = sorted(payouts)
    if not wanted:
        return {}
    rows = await db.fetch(_SQL["load"], partition, wanted)
    return {row["payout"]: decode_record(row["record"]) for row in rows}


async def write(db: asyncpg.Connection, steps: Sequence[Step]) -> None:
    """Bring the view up to date with `steps`."""
    changed = Changed()
    changed.add(steps)
    await changed.write(db, steps[0].partition)


def _row(payout: str, step: Step) -> tuple[object, ...]:
    record = step.after
    assert record is not None
    return (
        payout,
        step.partition,
        text(record.account),
        text_key(record.agent),
        record.identity,
        record.amount,
        text(record.currency),
        text_key(vendor_name(record.vendor_url, record.fund_account)),
        text(record.vendor_url),
        record.state,
        record.decision,
        text(record.reason),
        text(record.bank_status),
        moment(record.received_at),
        moment(record.updated_at),
        step.entry,
        encode_record(record),
        text_key(record.bank_payout),
    )
