"""Lists the audit's lines by agent, payout, vendor, reason, decision, kind and time, page by page."""

import re
from collections.abc import Mapping
from typing import Any

from msgspec import Struct

from streamproc.archive.gauges import VIEWS_LATE_S, Unshown, views_behind
from streamproc.archive.pool import opened_pool
from streamproc.archive.read import AuditFilter, AuditRow, audit_position, audit_rows
from streamproc.archive.store import refusals_as_job_failed
from streamproc.domain.shown import iso
from streamproc.errors import InputError, JobFailed, TryAgain
from streamproc.operate.moments import us_of

_LINE = re.compile(r"(\d{1,4}):(\d{1,15}-\d{1,18}):(\d{1,6})", re.ASCII)


class Page(Struct, frozen=True):
    """Lines, the newest first. `next`: the `after` of the next page, None if there are no more. `notes` say what may be
    missing."""

    items: list[AuditRow]
    next: str | None
    notes: list[str] = []


async def list_lines(dsn: str, wanted: AuditFilter, *, after: str | None, limit: int) -> Page:
    """A page of the lines that match. Raises JobFailed if Postgres is away or has no line `after`."""
    parts = None if after is None else parts_of(after)
    try:
        with refusals_as_job_failed():
            async with opened_pool(dsn) as pool:
                notes = lacking(await views_behind(pool))  # before the lines: views may catch up meanwhile
                start = None if parts is None else await audit_position(pool, *parts)
                if parts is not None and start is None:
                    raise JobFailed(f"--after {after}: the audit has no such line")
                rows = await audit_rows(pool, wanted, after=start, limit=limit + 1)
    except TryAgain as problem:
        raise JobFailed(str(problem)) from problem
    return page_of(rows, limit, notes)


def page_of(rows: list[AuditRow], limit: int, notes: list[str]) -> Page:
    """A page of `limit` lines, of `limit` + 1 that were queried."""
    return Page(rows[:limit], rows[limit - 1].id if len(rows) > limit else None, notes)


def lacking(behind: Mapping[int, Unshown]) -> list[str]:
    """What the views have lacked for long, for whoever takes their lines for all there are; normally nothing."""
    return [
        f"the views lack {one.entries} archived entries of partition {partition}, so lines may be missing; `streamproc"
        " doctor` says more"
        for partition, one in behind.items()
        if one.oldest_s > VIEWS_LATE_S
    ]


def parts_of(line: str) -> tuple[int, str, int]:
    """Partition, entry and index of a line's id. Raises InputError for anything else."""
    found = _LINE.fullmatch(line)
    if found is None:
        raise InputError(
            f"--after {line[:60]!r} is not a line's id: partition:entry:index, as the list shows them"
        )
    return int(found[1]), found[2], int(found[3])


def line_json(row: AuditRow) -> dict[str, Any]:
    """A line as scripts see it. The amount is in paise."""
    return {
        "id": row.id,
        "at": iso(us_of(row.at)),
        "kind": row.kind,
        "decision": row.decision,
        "reason": row.reason,
        "payout": row.payout,
        "agent": row.agent,
        "vendor": row.vendor,
        "amount": row.amount,
        "actor": row.actor,
        "partition": row.partition,
        "seq": row.seq,
        "place": row.place,
        "trace_id": row.trace_id,
    }
