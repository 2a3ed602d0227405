"""View `payouts`: what each payout is now, the fold `domain.payouts.evolve` kept in a row."""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import asyncpg

from projections.fold import Step, moment
from streamproc.archive.sql import statements
from streamproc.archive.text import text, text_key
from streamproc.domain.domains import vendor_name
from streamproc.domain.payouts import PayoutRecord, decode_record, encode_record

NAME = "payouts"
VERSION = 1
COLUMNS = (
    *("payout", "partition", "account", "agent", "identity", "amount", "currency", "vendor", "vendor_url"),
    *("state", "decision", "reason", "bank_status", "received_at", "updated_at", "entry_id", "record"),
)

_SQL = statements("projections", "payouts.sql")


class Current(NamedTuple):
    """A payout's record after the entry that changed it last; `new` where it was unknown before."""

    partition: int
    entry: str
    record: PayoutRecord
    new: bool


def changed(steps: Iterable[Step]) -> dict[str, Current]:
    """The payouts that the steps changed, as they are after the last one."""
    found: dict[str, Current] = {}
    for step in steps:
        after = step.after
        # By identity: an event that changes nothing leaves the record as it is, and comparing costs more than a write.
        if after is not None and after is not step.before and step.payout:
            known = found.get(step.payout)
            new = step.before is None if known is None else known.new
            found[step.payout] = Current(step.partition, step.entry, after, new)
    return found


async def load(db: asyncpg.Connection, partition: int, payouts: Iterable[str]) -> dict[str, PayoutRecord]:
    """The records of these payouts, as far as they are known."""
    wanted = sorted(payouts)
    if not wanted:
        return {}
    rows = await db.fetch(_SQL["load"], partition, wanted)
    return {row["payout"]: decode_record(row["record"]) for row in rows}


async def write(db: asyncpg.Connection, steps: Sequence[Step]) -> None:
    """Bring the view up to date with `steps`."""
    # In one order everywhere, so that no two writers can lock the same rows crosswise.
    rows = sorted(changed(steps).items())
    new = [_row(payout, current) for payout, current in rows if current.new]
    old = [_row(payout, current) for payout, current in rows if not current.new]
    if new:
        await db.copy_records_to_table(NAME, records=new, columns=COLUMNS)
    if old:
        await db.execute(_SQL["update"], *map(list, zip(*old, strict=True)))


def _row(payout: str, current: Current) -> tuple[object, ...]:
    record = current.record
    return (
        payout,
        current.partition,
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
        current.entry,
        encode_record(record),
    )
