"""View `payouts`: what each payout is now, the fold `domain.payouts.evolve` kept in a row."""

from collections.abc import Iterable, Sequence
from datetime import UTC, datetime, timedelta
from typing import NamedTuple

import asyncpg

from projections.fold import Step, text, text_key
from streamproc.archive.sql import statements
from streamproc.domain.payouts import PayoutRecord, decode_record, encode_record

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)

_SQL = statements("projections", "payouts.sql")


class Current(NamedTuple):
    """A payout's record, and the last entry that changed it."""

    partition: int
    entry: str
    record: PayoutRecord


def changed(steps: Iterable[Step]) -> dict[str, Current]:
    """The payouts that the steps changed, as they are after the last one."""
    found: dict[str, Current] = {}
    for step in steps:
        if step.payout and step.after is not None and step.after != step.before:
            found[step.payout] = Current(step.partition, step.entry, step.after)
    return found


def moment(at_us: int) -> datetime:
    """µs since 1970 as an aware datetime, exactly: a float of seconds would round."""
    return EPOCH + timedelta(microseconds=at_us)


async def load(db: asyncpg.Connection, payouts: Iterable[str]) -> dict[str, PayoutRecord]:
    """The records of these payouts, as far as they are known."""
    wanted = sorted(payouts)
    if not wanted:
        return {}
    rows = await db.fetch(_SQL["load"], wanted)
    return {row["payout"]: decode_record(row["record"]) for row in rows}


async def write(db: asyncpg.Connection, steps: Sequence[Step]) -> None:
    """Bring the view up to date with `steps`."""
    # In one order everywhere, so that no two writers can lock the same rows crosswise.
    rows = [_row(payout, current) for payout, current in sorted(changed(steps).items())]
    if rows:
        await db.execute(_SQL["upsert"], *map(list, zip(*rows, strict=True)))


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
