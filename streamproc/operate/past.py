"""What was: positions of the past, and the rows of a view that was built as of one."""

import json
import re
from collections.abc import AsyncGenerator
from datetime import UTC, datetime, timedelta
from typing import Any

import asyncpg

from projections.rebuild import (
    Target,
    archive_ends,
    target_at_entry,
    target_at_seq,
    target_at_time,
)
from projections.schema import quote_ident, shown_columns
from streamproc.archive.store import connection, errors_as_job_failed, transaction
from streamproc.domain.entry_ids import id_key
from streamproc.errors import InputError, JobFailed
from streamproc.operate.moments import iso_moment, ms_of

ROWS_AT_ONCE = 1_000
AHEAD_MAX = timedelta(days=1)
"""A time so far ahead means all that is there: the end of today, in any zone, or a moment from now."""
_SEQ = re.compile(r"(?:(\d{1,4}):)?(\d{1,18})", re.ASCII)
_ENTRY = re.compile(r"(\d{1,4}):(\d{1,15}-\d{1,18})(?::\d+)?", re.ASCII)


def moment_of(text: str) -> datetime:
    """A time as ISO 8601; without a zone it is UTC. Raises InputError for anything else."""
    at = iso_moment(text)
    if at is None:
        raise InputError(
            f"{text!r} is no time (ISO 8601), seq (4711), partition:seq (0:4711) or event id (0:1790000000000-0:2)"
        )
    return at


async def targets_of(dsn: str, when: str) -> list[Target]:
    """The position of each partition that `when` names: a time, a seq, partition:seq, an entry's or event's id.

    A position of one partition leaves the others out. Raises InputError where it is not understood and JobFailed
    where the archive has no such entry.
    """
    with errors_as_job_failed():
        async with connection(dsn, name="streamproc as-of") as db:
            return await _targets(db, when)


async def _targets(db: asyncpg.Connection, when: str) -> list[Target]:
    ends = await archive_ends(db)
    if not ends:
        raise JobFailed("the archive is empty")
    if found := _ENTRY.fullmatch(when):
        partition, entry = int(found[1]), found[2]
        return [_there(await target_at_entry(db, partition, id_key(entry)), when)]
    if found := _SEQ.fullmatch(when):
        if found[1] is None and len(ends) > 1:
            raise InputError(f"this log has {len(ends)} partitions; write {ends[0].partition}:{when}")
        partition = int(found[1]) if found[1] is not None else ends[0].partition
        return [_there(await target_at_seq(db, partition, int(found[2])), when)]
    at_ms = ms_of(moment_of(when))
    # Entries have Redis's clock, which may be ahead of this host's.
    if at_ms > max(ms_of(datetime.now(UTC) + AHEAD_MAX), *(id_key(end.entry)[0] for end in ends)):
        raise InputError(f"--as-of {when} is in the future: nobody knows what is archived until then")
    return [await target_at_time(db, end.partition, at_ms) for end in ends]


def _there(target: Target | None, when: str) -> Target:
    if target is None:
        raise JobFailed(f"the archive has no entry {when}")
    return target


async def columns_of(db: asyncpg.Connection, view: str) -> list[str]:
    """The columns that are shown; bytes are not."""
    return list(await shown_columns(db, view, with_bytes=False))


async def rows_of(db: asyncpg.Connection, view: str) -> AsyncGenerator[dict[str, Any], None]:
    """The view's rows in the order of its key, as JSON has them: amounts in paise, times ISO 8601 in UTC with µs."""
    shown = ", ".join((await shown_columns(db, view, with_bytes=False)).values())
    # No key has more columns than four, and the first four of each view have it.
    query = f"SELECT to_jsonb(v)::text AS row FROM (SELECT {shown} FROM {quote_ident(view)} ORDER BY 1, 2, 3, 4) AS v"  # noqa: S608  # our own names
    async with transaction(db):
        async for row in db.cursor(query, prefetch=ROWS_AT_ONCE):
            yield json.loads(row["row"])
