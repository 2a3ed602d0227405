"""Numbers of the archive and its views, for metrics, `top` and `doctor`: each one bounded query."""

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from datetime import datetime

import asyncpg
from msgspec import Struct

from streamproc.archive.pool import QUERY_TIMEOUT_S, acquired
from streamproc.archive.sql import statements
from streamproc.errors import TryAgain

VIEWS_LATE_S = 60.0
"""Views follow the archive within milliseconds; an archived entry that waits for longer means that they are stuck."""
_SQL = statements("streamproc.archive", "gauges.sql")


class OpenHolds(Struct, frozen=True):
    """Holds that wait for a person; `oldest_s` is 0 if there are none."""

    count: int
    paise: int
    oldest_s: float


class Unshown(Struct, frozen=True):
    """Archived entries that the views do not show yet, and how long ago the first was archived; 0 if there are none."""

    entries: int
    oldest_s: float


class Unsigned(Struct, frozen=True):
    """Whether a partition was ever signed, and how long ago its first entry that no checkpoint covers was archived."""

    ever: bool
    oldest_s: float


_LIMIT_FIELDS = {"day": "daily_limit", "week": "weekly_limit", "month": "monthly_limit"}


class BudgetUse(Struct, frozen=True):
    """One window with a limit. `used`: reserved and committed, in paise; `kind`: day, week or month; `limit`: of the
    policy in force, in paise."""

    scope: str
    kind: str
    used: int
    limit: int


class Decided(Struct, frozen=True):
    """Decisions with one outcome and reason: their number, their paise, and the number of recent ones."""

    decision: str
    reason: str
    count: int
    paise: int
    recent: int


async def decided_since(pool: asyncpg.Pool, since: datetime, recently: datetime, most: int) -> list[Decided]:
    """The `most` frequent outcomes since a time; `recent` counts those since `recently`. Raises TryAgain."""
    async with _bounded(pool) as db:
        rows = await db.fetch(_SQL["decided_since"], since, recently, most, timeout=QUERY_TIMEOUT_S)
    return [
        Decided(row["decision"], row["reason"], row["count"], int(row["paise"]), row["recent"])
        for row in rows
    ]


async def open_holds(pool: asyncpg.Pool) -> OpenHolds:
    """Holds that wait for a person. Raises TryAgain while Postgres is away."""
    async with _bounded(pool) as db:
        row = await db.fetchrow(_SQL["open_holds"], timeout=QUERY_TIMEOUT_S)
    return OpenHolds(row["count"], int(row["paise"]), float(row["oldest_s"]))


async def views_behind(pool: asyncpg.Pool) -> dict[int, Unshown]:
    """For each partition, in order, the archived entries that the views do not show yet. Raises TryAgain."""
    async with _bounded(pool) as db:
        return await unshown(db)


async def unshown(db: asyncpg.Connection) -> dict[int, Unshown]:
    """The same, as this connection sees it."""
    rows = await db.fetch(_SQL["views_behind"], timeout=QUERY_TIMEOUT_S)
    return {row["partition"]: Unshown(row["behind"], float(row["oldest_s"])) for row in rows}


async def unsigned(pool: asyncpg.Pool) -> dict[int, Unsigned]:
    """For each partition what no checkpoint signs yet. Raises TryAgain."""
    async with _bounded(pool) as db:
        rows = await db.fetch(_SQL["unsigned"], timeout=QUERY_TIMEOUT_S)
    return {row["partition"]: Unsigned(row["ever"], float(row["oldest_s"])) for row in rows}


async def budgets_used(pool: asyncpg.Pool, windows: Mapping[str, str], most: int) -> list[BudgetUse]:
    """The `most` used windows of agents, by share of the limit; `windows`: name -> kind. Raises TryAgain."""
    fields = [_LIMIT_FIELDS[kind] for kind in windows.values()]
    async with _bounded(pool) as db:
        rows = await db.fetch(_SQL["budgets_used"], list(windows), fields, most, timeout=QUERY_TIMEOUT_S)
    return [
        BudgetUse(row["scope"], windows[row["window_name"]], int(row["used"]), row["limit_paise"])
        for row in rows
    ]


async def positions(pool: asyncpg.Pool) -> dict[int, str]:
    """The last archived entry of each partition that a projector has opened, 0-0 where there is none. Raises
    TryAgain."""
    async with _bounded(pool) as db:
        rows = await db.fetch(_SQL["positions"], timeout=QUERY_TIMEOUT_S)
    return {row["partition"]: row["entry_id"] for row in rows}


@asynccontextmanager
async def _bounded(pool: asyncpg.Pool) -> AsyncIterator[asyncpg.Connection]:
    try:
        async with acquired(pool) as db:
            yield db
    except asyncpg.UndefinedTableError as problem:
        raise TryAgain(f"Postgres cannot say: {type(problem).__name__}") from problem
