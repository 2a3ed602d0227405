"""What the archive and its views say in numbers, for metrics: each one bounded query."""

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from datetime import datetime

import asyncpg
from msgspec import Struct

from streamproc.archive.pool import QUERY_TIMEOUT_S, asked
from streamproc.archive.sql import statements
from streamproc.errors import TryAgain

_SQL = statements("streamproc.archive", "gauges.sql")


class OpenHolds(Struct, frozen=True):
    """The holds that wait for a person; `oldest_s` is 0 where there is none."""

    count: int
    paise: int
    oldest_s: float


class Unshown(Struct, frozen=True):
    """Archived entries that the views do not show yet, and how long the first has been archived; 0 for none."""

    entries: int
    oldest_s: float


class Unsigned(Struct, frozen=True):
    """Whether a partition was ever signed, and how long its first entry that no checkpoint covers has been archived."""

    ever: bool
    oldest_s: float


class BudgetUse(Struct, frozen=True):
    """One window with a limit: `used` is reserved and committed, in paise; `kind` is day, week or month."""

    scope: str
    kind: str
    used: int
    limit: int


class Decided(Struct, frozen=True):
    """Decisions with one outcome and reason: how many in all, their paise, and how many of them lately."""

    decision: str
    reason: str
    count: int
    paise: int
    recent: int


async def decided_since(pool: asyncpg.Pool, since: datetime, recently: datetime, most: int) -> list[Decided]:
    """What was decided since a time, and since a later one: the `most` frequent outcomes. Raises TryAgain."""
    async with _bounded(pool) as db:
        rows = await db.fetch(_SQL["decided_since"], since, recently, most, timeout=QUERY_TIMEOUT_S)
    return [
        Decided(row["decision"], row["reason"], row["count"], int(row["paise"]), row["recent"])
        for row in rows
    ]


async def open_holds(pool: asyncpg.Pool) -> OpenHolds:
    """Raises TryAgain while Postgres is away."""
    async with _bounded(pool) as db:
        row = await db.fetchrow(_SQL["open_holds"], timeout=QUERY_TIMEOUT_S)
    return OpenHolds(row["count"], int(row["paise"]), float(row["oldest_s"]))


async def views_behind(pool: asyncpg.Pool) -> dict[int, Unshown]:
    """Of each partition the archived entries that the views do not show yet. Raises TryAgain."""
    async with _bounded(pool) as db:
        rows = await db.fetch(_SQL["views_behind"], timeout=QUERY_TIMEOUT_S)
    return {row["partition"]: Unshown(row["behind"], float(row["oldest_s"])) for row in rows}


async def unsigned(pool: asyncpg.Pool) -> dict[int, Unsigned]:
    """Of each partition what no checkpoint signs yet. Raises TryAgain."""
    async with _bounded(pool) as db:
        rows = await db.fetch(_SQL["unsigned"], timeout=QUERY_TIMEOUT_S)
    return {row["partition"]: Unsigned(row["ever"], float(row["oldest_s"])) for row in rows}


async def budgets_used(pool: asyncpg.Pool, windows: Mapping[str, str], most: int) -> list[BudgetUse]:
    """Of these windows (name: kind) the `most` that are used the most of their limit, of agents. Raises TryAgain."""
    async with _bounded(pool) as db:
        rows = await db.fetch(_SQL["budgets_used"], list(windows), most, timeout=QUERY_TIMEOUT_S)
    return [
        BudgetUse(row["scope"], windows[row["window_name"]], int(row["used"]), row["limit_paise"])
        for row in rows
    ]


@asynccontextmanager
async def _bounded(pool: asyncpg.Pool) -> AsyncIterator[asyncpg.Connection]:
    try:
        async with asked(pool) as db:
            yield db
    except asyncpg.UndefinedTableError as problem:
        raise TryAgain(f"Postgres cannot say: {type(problem).__name__}") from problem
