"""Queries on the archive and its views, each bounded in time and in rows.

All raise TryAgain when Postgres is away. Times are aware datetimes, amounts paise.
"""

import asyncio
import re
from collections.abc import Sequence
from datetime import datetime
from typing import NamedTuple

import asyncpg
from msgspec import Struct

from streamproc.archive.pool import QUERY_TIMEOUT_S, acquired
from streamproc.archive.rows import ArchivedEntry, Row
from streamproc.archive.sql import statements
from streamproc.domain.entry_ids import ZERO, id_key
from streamproc.domain.payouts import PayoutRecord, decode_record
from streamproc.domain.traces import trace_id
from streamproc.errors import TryAgain, kind_of

AUDIT_ROWS_MAX = 1_000
REASON_INDEXED_CHARS = 64
"""How much of a reason is in the view's index; codes are shorter, problems of payloads longer."""
REASONS_OF_ALL = frozenset({"POLICY_OK", "approve: done", "processed", "committed"})
"""Reasons that nearly every payout has. The index leaves them out, as the index of decisions leaves out APPROVED
(audit.sql)."""
KINDS_SELDOM = frozenset({"review", "policy", "alert"})
"""Rare kinds of lines, which have an index of their own."""

VIEWS_POLL_S = 0.02
"""How soon a waiting reader notices that the views have caught up, which takes milliseconds."""

_SQL = statements("streamproc.archive", "read.sql")


class AuditRow(Struct, frozen=True, kw_only=True):
    """One line of the audit. `id` is the event's id; the event itself is in the archive at `seq`, index `place`."""

    id: str
    partition: int
    seq: int
    place: int
    payout: str | None
    agent: str
    vendor: str
    at: datetime
    kind: str
    decision: str | None
    reason: str
    actor: str
    amount: int | None

    @property
    def trace_id(self) -> str | None:
        """The payout's trace. Derived from its id, so that it can be shown before a view without that column is
        replayed."""
        return trace_id(self.payout) if self.payout else None


class PolicyRow(Struct, frozen=True, kw_only=True):
    """One version of a scope's policy, fields as JSON text. `after` None: this version removed the policy."""

    scope: str
    version: int
    at: datetime
    by_whom: str
    why: str
    before: str | None
    after: str | None
    effective: str | None
    confirmed_by: str
    channel: str
    confirmed_channel: str


class AuditFilter(Struct, frozen=True, kw_only=True):
    """Which lines to list; None does not filter. `since` is included, `until` is not."""

    payout: str | None = None
    agent: str | None = None
    vendor: str | None = None
    kind: str | None = None
    decision: str | None = None
    reason: str | None = None
    since: datetime | None = None
    until: datetime | None = None


async def archived_upto(pool: asyncpg.Pool, partition: int) -> str:
    """The id of the last archived entry; 0-0 when there is none."""
    async with acquired(pool) as db:
        return await db.fetchval(_SQL["archived_upto"], partition, timeout=QUERY_TIMEOUT_S) or ZERO


async def views_upto(pool: asyncpg.Pool, partition: int) -> str:
    """The id of the last entry that the views show; 0-0 when there is none."""
    async with acquired(pool) as db:
        return await db.fetchval(_SQL["views_upto"], partition, timeout=QUERY_TIMEOUT_S) or ZERO


async def await_views(pool: asyncpg.Pool, partition: int, entry: str, *, timeout_s: float) -> None:
    """Return when the views show `entry` of `partition`, and so everything before it: read your own writes.

    Raises TryAgain if they do not within `timeout_s`, or Postgres is away.
    """
    wanted, upto = id_key(entry), ZERO
    try:
        async with asyncio.timeout(timeout_s):
            while id_key(upto := await views_upto(pool, partition)) < wanted:  # noqa: ASYNC110  # Postgres sets no Event
                await asyncio.sleep(VIEWS_POLL_S)
    except TimeoutError:
        problem = f"the views show partition {partition} up to {upto}, not {entry}, after {timeout_s:g} s"
        raise TryAgain(problem) from None


async def entry_archived(pool: asyncpg.Pool, partition: int, entry: str, e: bytes) -> bool:
    """Whether this very entry is in the archive, with the bytes `e` of its events."""
    async with acquired(pool) as db:
        found: bool = await db.fetchval(
            _SQL["entry_archived"], partition, *id_key(entry), e, timeout=QUERY_TIMEOUT_S
        )
    return found


async def last_archived(pool: asyncpg.Pool, partition: int) -> Row | None:
    """The archive's last entry; None where there is none."""
    async with acquired(pool) as db:
        found = await db.fetchrow(_SQL["last_archived"], partition, timeout=QUERY_TIMEOUT_S)
    return Row(*found) if found else None


async def payout_history(pool: asyncpg.Pool, payout: str, limit: int) -> list[ArchivedEntry]:
    """A payout's entries in log order, the first `limit` of them."""
    async with acquired(pool) as db:
        rows = await db.fetch(_SQL["payout_history"], payout, limit, timeout=QUERY_TIMEOUT_S)
    return [_entry(row) for row in rows]


async def payout_view(pool: asyncpg.Pool, payout: str) -> PayoutRecord | None:
    """The payout as the view `payouts` has it; None when it was never observed or not archived yet."""
    async with acquired(pool) as db:
        record = await db.fetchval(_SQL["payout_record"], payout, timeout=QUERY_TIMEOUT_S)
    return decode_record(record) if record is not None else None


async def payout_known(pool: asyncpg.Pool, payout: str) -> PayoutRecord | None:
    """The payout for who acts on it: `payout_view`, if that shows all that is archived of it.

    Raises TryAgain if it does not, since views may stand still for days, or be dropped: a payout taken for new would be
    decided, and an intent created, a second time.
    """
    try:
        async with acquired(pool) as db:
            record, more = await db.fetchrow(_SQL["payout_known"], payout, timeout=QUERY_TIMEOUT_S)
    except asyncpg.PostgresError as problem:
        raise TryAgain(f"the view payouts cannot be asked: {kind_of(problem)}") from problem
    if more:
        raise TryAgain(
            f"the view payouts does not show all that is archived of payout {payout}; is the projector running, and do"
            " its views go on?"
        )
    return decode_record(record) if record is not None else None


async def payout_at_bank(pool: asyncpg.Pool, bank_payout: str) -> str | None:
    """Our id of the intent that the bank has under its own id `bank_payout`; None if there is none."""
    async with acquired(pool) as db:
        found: str | None = await db.fetchval(_SQL["payout_at_bank"], bank_payout, timeout=QUERY_TIMEOUT_S)
    return found


class AuditPosition(NamedTuple):
    """The place of a line in the order of time."""

    at: datetime
    partition: int
    seq: int
    place: int


async def audit_rows(
    pool: asyncpg.Pool,
    wanted: AuditFilter,
    *,
    after: AuditPosition | None = None,
    limit: int = AUDIT_ROWS_MAX,
) -> list[AuditRow]:
    """The audit's lines that match, the newest first, after a position; at most `limit` and AUDIT_ROWS_MAX of them."""
    query, values = audit_query(wanted, after=after)
    query = f"{query} LIMIT {min(limit, AUDIT_ROWS_MAX):d}"
    async with acquired(pool) as db:
        rows = await db.fetch(query, *values, timeout=QUERY_TIMEOUT_S)
    return [AuditRow(**dict(row)) for row in rows]


async def audit_position(pool: asyncpg.Pool, partition: int, entry: str, place: int) -> AuditPosition | None:
    """The position of an event's line; None if the audit has no such line."""
    async with acquired(pool) as db:
        row = await db.fetchrow(
            _SQL["audit_position"], partition, *id_key(entry), place, timeout=QUERY_TIMEOUT_S
        )
    return AuditPosition(*row) if row else None


def audit_query(
    wanted: AuditFilter, *, after: AuditPosition | None = None, newest_first: bool = True
) -> tuple[str, list[object]]:
    """The query for the lines that match, without a limit, and its values. Uses the conditions that the view's
    indexes serve."""
    filters = {
        name: value for name in wanted.__struct_fields__ if (value := getattr(wanted, name)) is not None
    }
    if wanted.reason is not None and wanted.reason not in REASONS_OF_ALL:
        length = "long" if len(wanted.reason) >= REASON_INDEXED_CHARS else "seldom"
        filters[f"{length}_reason"] = filters.pop("reason")
    if wanted.kind in KINDS_SELDOM:
        filters["seldom_kind"] = filters.pop("kind")
    if wanted.decision is not None and wanted.decision != "APPROVED":
        filters["seldom_decision"] = filters.pop("decision")
    conditions: list[tuple[str, Sequence[object]]] = [(name, [value]) for name, value in filters.items()]
    if after is not None:
        conditions.append(("after", after))
    parts, values = [_SQL["audit_lines"]], list[object]()
    for name, condition_values in conditions:
        parts.append(_numbered_after(len(values), _SQL[f"audit_if_{name}"]))
        values += condition_values
    parts.append(_SQL["audit_newest_first" if newest_first else "audit_oldest_first"])
    return "\n".join(parts), values


def _numbered_after(count: int, condition: str) -> str:
    return re.sub(r"\$(\d)", lambda found: f"${int(found[1]) + count}", condition)


async def policy_versions(pool: asyncpg.Pool, scope: str) -> list[PolicyRow]:
    """The versions of a scope, the oldest first; a version that partitions agree on is given once."""
    async with acquired(pool) as db:
        rows = await db.fetch(_SQL["policy_versions"], scope, AUDIT_ROWS_MAX, timeout=QUERY_TIMEOUT_S)
    return [PolicyRow(**dict(row)) for row in rows]


def _entry(row: asyncpg.Record) -> ArchivedEntry:
    return ArchivedEntry(*row.values())
