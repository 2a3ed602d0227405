"""Questions to the archive and its views. Every query is bounded in time and in rows.

Raises TryAgain when Postgres is away. Times in and out are aware datetimes, amounts paise.
"""

import asyncio
import re
from collections.abc import Sequence
from datetime import datetime
from typing import NamedTuple

import asyncpg
from msgspec import Struct

from streamproc.archive.load import ArchivedEntry
from streamproc.archive.pool import QUERY_TIMEOUT_S, asked
from streamproc.archive.sql import statements
from streamproc.archive.store import ZERO, id_key
from streamproc.domain.payouts import PayoutRecord, decode_record
from streamproc.domain.traces import trace_id
from streamproc.errors import TryAgain

HISTORY_ENTRIES_MAX = 10_000
"""A payout has some ten entries; the bank could send as many deliveries as it likes."""
BUDGET_ROWS_MAX = 1_000
AUDIT_ROWS_MAX = 1_000
REASON_INDEXED_CHARS = 64
"""How much of a reason the view's index has; codes are shorter, problems of payloads longer."""
REASONS_OF_ALL = frozenset({"POLICY_OK", "approve: done", "processed", "committed"})
"""What nearly every payout's lines have, which the index leaves out, as that of decisions does APPROVED (audit.sql)."""
KINDS_SELDOM = frozenset({"review", "policy", "alert"})
"""The kinds of lines that have an index of their own."""

VIEWS_POLL_S = 0.02
"""The views follow the log within milliseconds; this is how soon a waiting reader notices."""

_SQL = statements("streamproc.archive", "read.sql")


class BudgetRow(Struct, frozen=True, kw_only=True):
    """One budget window as the log left it. `limit_paise` None is no limit."""

    partition: int
    scope: str
    window: str
    limit_paise: int | None
    reserved: int
    committed: int


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
        """The payout's trace. Known from its id, so that lines are shown also before a view of an older version, which
        has no such column, was replayed."""
        return trace_id(self.payout) if self.payout else None


class PolicyRow(Struct, frozen=True, kw_only=True):
    """One version of a scope's policy, fields as JSON text; `after` None: that version removed it."""

    scope: str
    version: int
    at: datetime
    by_whom: str
    why: str
    before: str | None
    after: str | None
    effective: str | None
    confirmed_by: str


class AuditFilter(Struct, frozen=True, kw_only=True):
    """What to list; None does not filter. `since` is included, `until` is not."""

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
    async with asked(pool) as db:
        return await db.fetchval(_SQL["archived_upto"], partition, timeout=QUERY_TIMEOUT_S) or ZERO


async def views_upto(pool: asyncpg.Pool, partition: int) -> str:
    """The id of the last entry that the views show; 0-0 when there is none."""
    async with asked(pool) as db:
        return await db.fetchval(_SQL["views_upto"], partition, timeout=QUERY_TIMEOUT_S) or ZERO


async def await_views(pool: asyncpg.Pool, partition: int, entry: str, *, timeout_s: float) -> None:
    """Read your own writes: return when the views show `entry` of `partition`, and with it all before it.

    Raises TryAgain when they do not within `timeout_s`, and when Postgres is away.
    """
    wanted, upto = id_key(entry), ZERO
    try:
        async with asyncio.timeout(timeout_s):
            while id_key(upto := await views_upto(pool, partition)) < wanted:  # noqa: ASYNC110  # Postgres sets no Event
                await asyncio.sleep(VIEWS_POLL_S)
    except TimeoutError:
        problem = f"the views show partition {partition} up to {upto}, not {entry}, after {timeout_s:g} s"
        raise TryAgain(problem) from None


async def entry_archived(pool: asyncpg.Pool, partition: int, entry: str) -> bool:
    """Whether this very entry is in the archive."""
    async with asked(pool) as db:
        found: bool = await db.fetchval(
            _SQL["entry_archived"], partition, *id_key(entry), timeout=QUERY_TIMEOUT_S
        )
    return found


async def payout_history(pool: asyncpg.Pool, payout: str) -> list[ArchivedEntry]:
    """A payout's entries in log order, the first HISTORY_ENTRIES_MAX of them."""
    async with asked(pool) as db:
        rows = await db.fetch(_SQL["payout_history"], payout, HISTORY_ENTRIES_MAX, timeout=QUERY_TIMEOUT_S)
    return [_entry(row) for row in rows]


async def payout_view(pool: asyncpg.Pool, payout: str) -> PayoutRecord | None:
    """The payout as the view `payouts` has it; None when it was never observed or not archived yet."""
    async with asked(pool) as db:
        record = await db.fetchval(_SQL["payout_record"], payout, timeout=QUERY_TIMEOUT_S)
    return decode_record(record) if record is not None else None


async def payout_at_bank(pool: asyncpg.Pool, bank_payout: str) -> str | None:
    """What we call the intent that the bank has under its own id `bank_payout`; None where there is none."""
    async with asked(pool) as db:
        found: str | None = await db.fetchval(_SQL["payout_at_bank"], bank_payout, timeout=QUERY_TIMEOUT_S)
    return found


async def budgets_of(pool: asyncpg.Pool, agent: str) -> list[BudgetRow]:
    """The agent's own windows, the newest first."""
    async with asked(pool) as db:
        rows = await db.fetch(
            _SQL["budgets_of_scope"], f"agent:{agent}", BUDGET_ROWS_MAX, timeout=QUERY_TIMEOUT_S
        )
    return [BudgetRow(**dict(row)) for row in rows]


class AuditPlace(NamedTuple):
    """Where a line is in the order of time."""

    at: datetime
    partition: int
    seq: int
    place: int


async def audit_rows(
    pool: asyncpg.Pool,
    wanted: AuditFilter,
    *,
    after: AuditPlace | None = None,
    limit: int = AUDIT_ROWS_MAX,
) -> list[AuditRow]:
    """The audit's lines that match, the newest first, from the one after a place on.

    `limit` of them, and AUDIT_ROWS_MAX at most.
    """
    query, values = audit_query(wanted, after=after)
    query = f"{query} LIMIT {min(limit, AUDIT_ROWS_MAX):d}"
    async with asked(pool) as db:
        rows = await db.fetch(query, *values, timeout=QUERY_TIMEOUT_S)
    return [AuditRow(**dict(row)) for row in rows]


async def audit_place(pool: asyncpg.Pool, partition: int, entry: str, place: int) -> AuditPlace | None:
    """Where the line of an event is; None where the audit has no such line."""
    async with asked(pool) as db:
        row = await db.fetchrow(
            _SQL["audit_place"], partition, *id_key(entry), place, timeout=QUERY_TIMEOUT_S
        )
    return AuditPlace(*row) if row else None


def audit_query(
    wanted: AuditFilter, *, after: AuditPlace | None = None, newest_first: bool = True
) -> tuple[str, list[object]]:
    """The query for the lines that match, and its values; without a limit."""
    asked = {name: value for name in wanted.__struct_fields__ if (value := getattr(wanted, name)) is not None}
    if wanted.reason is not None and wanted.reason not in REASONS_OF_ALL:
        length = "long" if len(wanted.reason) >= REASON_INDEXED_CHARS else "seldom"
        asked[f"{length}_reason"] = asked.pop("reason")
    if wanted.kind in KINDS_SELDOM:
        asked["seldom_kind"] = asked.pop("kind")
    if wanted.decision is not None and wanted.decision != "APPROVED":
        asked["seldom_decision"] = asked.pop("decision")
    conditions: list[tuple[str, Sequence[object]]] = [(name, [value]) for name, value in asked.items()]
    if after is not None:
        conditions.append(("after", after))
    parts, values = [_SQL["audit_lines"]], list[object]()
    for name, these in conditions:
        parts.append(_numbered_after(len(values), _SQL[f"audit_if_{name}"]))
        values += these
    parts.append(_SQL["audit_newest_first" if newest_first else "audit_oldest_first"])
    return "\n".join(parts), values


def _numbered_after(count: int, condition: str) -> str:
    return re.sub(r"\$(\d)", lambda found: f"${int(found[1]) + count}", condition)


async def policy_versions(pool: asyncpg.Pool, scope: str) -> list[PolicyRow]:
    """The versions of a scope, the oldest first; partitions that agree give each version once."""
    async with asked(pool) as db:
        rows = await db.fetch(_SQL["policy_versions"], scope, AUDIT_ROWS_MAX, timeout=QUERY_TIMEOUT_S)
    return [PolicyRow(**dict(row)) for row in rows]


def _entry(row: asyncpg.Record) -> ArchivedEntry:
    return ArchivedEntry(*row.values())
