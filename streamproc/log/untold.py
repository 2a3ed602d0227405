"""Held payouts that nobody could be told of: noted in one place, since to look through all records is slow.

A note is only a hint: readers check the record. A note that is missing, as after a recovery, is made at the next
attempt to tell.
"""

from collections.abc import Sequence
from typing import Any

from msgspec import Struct

from streamproc.domain.payouts import PayoutRecord
from streamproc.domain.recovery import timers_of
from streamproc.domain.reminders import overdue
from streamproc.domain.wire import encode_events
from streamproc.log.connection import named_errors, session
from streamproc.log.inspect import RECORDS_AT_ONCE, is_held, known_records, records_where
from streamproc.log.names import LATE, Names

LOOK_MAX = 1_000
"""Notes that are looked at, the oldest first. More untold holds are reported as this many."""


class Untold(Struct, frozen=True):
    """How many held payouts nobody was told of, and since when the oldest is held (µs; 0: there is none)."""

    count: int
    oldest_at: int


async def note_untold(url: str, partition: int, held: Sequence[tuple[str, int]]) -> None:
    """Note payouts, each with when it was held (µs). Raises LogUnavailable."""
    async with session(url) as client:
        await client.zadd(Names(partition).untold, dict(held))


async def untold(client: Any, partitions: int) -> Untold:
    """The held payouts that nobody was told of. Notes that are no longer true are removed. Raises LogUnavailable."""
    count, oldest = 0, 0
    for partition in range(partitions):
        names = Names(partition)
        with named_errors():
            rows = await client.zrange(names.untold, 0, LOOK_MAX - 1, withscores=True)
            noted = {row[0].decode(): int(row[1]) for row in rows}
            records = await known_records(client, names, list(noted))
            gone = [payout for payout in noted if not _is_untold(records[payout])]
            if gone:
                await client.zrem(names.untold, *gone)
        left = [at for payout, at in noted.items() if payout not in gone]
        count += len(left)
        oldest = min([oldest or left[0], *left]) if left else oldest
    return Untold(count, oldest)


def _is_untold(record: PayoutRecord | None) -> bool:
    return record is not None and is_held(record) and not record.told


async def look_for_held(url: str, partition: int, group: str) -> int:
    """For a group that began at the end of a log, once: set the timers of payouts that were held before, and one that
    is due at once where nobody was told. Returns how many payouts these were. Safe to repeat: the same timers are the
    same members. Raises LogUnavailable."""
    names, found = Names(partition), 0
    async with session(url) as client:
        if await client.hget(names.groups, group) != LATE.encode():
            return 0
        async for records in records_where(client, names, is_held, at_once=RECORDS_AT_ONCE):
            timers = [timer for record in records for timer in (overdue(record), *timers_of(record)) if timer]
            await client.zadd(names.timers, {encode_events([timer]): timer.at for timer in timers})
            found += len(records)
        await client.hset(names.groups, group, "1")
    return found
