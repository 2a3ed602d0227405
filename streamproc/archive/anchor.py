"""The anchor: a log is sound only while it has the archive's last entry, with the archived bytes.

A log that lost its tail, was begun anew, or was trimmed too far has not.
"""

from collections.abc import Sequence
from typing import Protocol

import asyncpg

from streamproc.archive.load import drop_redelivered
from streamproc.archive.store import Entry, Head
from streamproc.domain.entry_ids import id_before, id_key
from streamproc.errors import LogBroken


class Log(Protocol):
    """One partition's log, read without a group."""

    async def read(self, after: str, count: int, block_ms: int, /) -> Sequence[Entry]:
        """Entries after an id; waits up to `block_ms` for the first, 0 does not wait."""
        ...

    async def last_id(self) -> str:
        """The newest entry's id; 0-0 when there is none."""
        ...


async def lost_from(db: asyncpg.Connection, log: Log, partition: int, head: Head) -> str:
    """What is wrong with the log, in words; '' if it has the entry at `head`, the archive's last."""
    if head.seq == 0:
        return ""
    where, last = f"the log of partition {partition}", await log.last_id()
    if id_key(last) < id_key(head.entry):
        return f"{where} ends at {last}, before the archive's head {head.entry}: its tail is lost"
    anchor = await log.read(id_before(head.entry), 1, 0)
    if not anchor or anchor[0].id != head.entry:
        found = anchor[0].id if anchor else "nothing"
        return (
            f"{where} no longer has the archive's last entry {head.entry}, the next is {found}: it was trimmed"
            " too far or lost its tail, or Postgres was set back (a failover, a backup) by more than the log keeps;"
            " entries may be missing"
        )
    try:
        await drop_redelivered(db, partition, head, anchor)
    except LogBroken as problem:
        return str(problem)
    return ""
