"""Queries that operators' commands ask of the archive and its views; read.py has those that roles ask too."""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

import asyncpg
from msgspec import Struct

from streamproc.archive.load import entries_by_id
from streamproc.archive.pool import QUERY_TIMEOUT_S, acquired
from streamproc.archive.rows import Row
from streamproc.archive.sql import statements
from streamproc.domain.entry_ids import ZERO, id_key
from streamproc.domain.holds import Position
from streamproc.domain.payouts import PayoutRecord, decode_record

WHOLE_VIEW_S = 30.0
"""Limit of a query that reads a whole view."""

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_SQL = statements("streamproc.archive", "lookup.sql")


async def refuses_writes(pool: asyncpg.Pool) -> str:
    """Why this Postgres takes no writes; '' if it does. Raises TryAgain when Postgres is away."""
    async with acquired(pool) as db:
        return str(await db.fetchval(_SQL["refuses_writes"], timeout=QUERY_TIMEOUT_S))


class ConnectionSlots(Struct, frozen=True):
    """Connections that a Postgres allows to whoever is no superuser, and how many are open, of everybody."""

    allowed: int
    open: int


async def connection_slots(pool: asyncpg.Pool) -> ConnectionSlots:
    """How many connections Postgres allows. Raises TryAgain when it is away, or has none left."""
    async with acquired(pool) as db:
        row = await db.fetchrow(_SQL["connection_slots"], timeout=QUERY_TIMEOUT_S)
    return ConnectionSlots(row["allowed"], row["open"])


async def policy_entries(db: asyncpg.Connection, partition: int, upto_seq: int) -> list[Row]:
    """Every entry with policy changes up to a seq, in order. Scans the archive, so it needs a job's connection."""
    rows = await db.fetch(_SQL["policy_entries"], partition, upto_seq)
    return [Row(*row) for row in rows]


async def archived_entry(pool: asyncpg.Pool, partition: int, entry: str) -> Row | None:
    """An entry by its id; None where it is not archived. Raises TryAgain when Postgres is away."""
    async with acquired(pool) as db:
        found = await entries_by_id(db, partition, [entry])
    return found[0] if found else None


async def decided_payouts(db: asyncpg.Connection, partition: int, payouts: Sequence[str]) -> frozenset[str]:
    """Those of `payouts` that were ever decided, as far as archived."""
    rows = await db.fetch(_SQL["decided_payouts"], partition, list(payouts))
    return frozenset(row["payout"] for row in rows)


async def held_page(
    pool: asyncpg.Pool, *, after: Position | None, account: str, agent: str, limit: int
) -> list[PayoutRecord]:
    """Held payouts after a position, the longest waiting first; of an account and an agent, if these are not ''.

    Raises TryAgain when Postgres is away.
    """
    at = None if after is None else _EPOCH + timedelta(microseconds=after.received_at)
    payout = "" if after is None else after.payout
    async with acquired(pool) as db:
        rows = await db.fetch(
            _SQL["held_page"], at, payout, account or None, agent or None, limit, timeout=QUERY_TIMEOUT_S
        )
    return [decode_record(row["record"]) for row in rows]


async def approved_payouts(
    pool: asyncpg.Pool, agent: str, since: datetime, limit: int
) -> list[tuple[str, int, int]]:
    """An agent's approved payouts, by the rules or by people, received since a time: id, paise, received (µs). Of more
    than `limit` a sample of that many, which is the same as long as they are.

    Raises TryAgain when Postgres is away.
    """
    async with acquired(pool) as db:
        rows = await db.fetch(_SQL["approved_payouts"], agent, since, limit, timeout=WHOLE_VIEW_S)
    return [(row["payout"], row["amount"], row["received_at"]) for row in rows]


async def entries_between(pool: asyncpg.Pool, partition: int, first: str, end: str) -> int:
    """How many entries the archive has from `first` up to, but not including, `end`. Raises TryAgain when Postgres
    is away."""
    async with acquired(pool) as db:
        found: int = await db.fetchval(
            _SQL["entries_between"], partition, *id_key(first), *id_key(end), timeout=QUERY_TIMEOUT_S
        )
    return max(0, found)


async def folded_budgets(
    pool: asyncpg.Pool, partition: int
) -> tuple[str, dict[tuple[str, str], tuple[int, int]]]:
    """The entry that a partition's view `budgets` shows, and the view: (scope, window) -> paise reserved, committed.

    One row per window that ever was: some hundreds of thousands in years. Raises TryAgain when Postgres is away.
    """
    async with acquired(pool) as db:
        rows = await db.fetch(_SQL["folded_budgets"], partition, timeout=WHOLE_VIEW_S)
    windows = {
        (row["scope"], row["window_name"]): (row["reserved"], row["committed"])
        for row in rows
        if row["scope"] is not None
    }
    return (rows[0]["entry_id"] if rows else ZERO), windows
