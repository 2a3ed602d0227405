"""The system at one moment, for `streamproc top`: what was decided, what waits, which budgets are full.

What was decided, holds and budgets are the views', so they are as late as those are; groups and the log are Redis's.
"""

import asyncio
from collections.abc import AsyncGenerator, Callable
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple, TypeVar

from msgspec import Struct

from streamproc.archive.gauges import BudgetUse, Decided, OpenHolds, budgets_used, decided_since, open_holds
from streamproc.archive.gauges import views_behind as behind_of
from streamproc.domain.budget import calendar_names
from streamproc.domain.shown import iso
from streamproc.errors import StreamprocError
from streamproc.log.connection import named_errors
from streamproc.log.health import Sizes, log_sizes
from streamproc.log.untold import untold
from streamproc.operate.breakers import open_breakers
from streamproc.operate.condition import unarchived_ms
from streamproc.operate.groups import groups
from streamproc.operate.moments import us_of
from streamproc.operate.site import Site, opened
from streamproc.settings import Settings
from streamproc.waiting import set_within

T = TypeVar("T")

WINDOW_S, RECENT_S = 60, 10
"""Decisions are counted over WINDOW_S, long enough for rare ones; their rate is over RECENT_S, so that it is of now."""
OUTCOMES_MAX = 100
"""A limit for the answer; there are fewer outcomes times reasons."""
BUDGETS_MAX = 5
"""The fullest budgets shown; more do not fit on a screen with the rest."""


class Look(Struct, frozen=True, kw_only=True):
    """The system at one moment. None: Postgres did not answer; `problem` says why."""

    at: datetime
    """By Redis's clock."""
    groups: list[dict[str, Any]]
    sizes: Sizes
    untold: int
    breakers: str
    decided: list[Decided] | None
    holds: OpenHolds | None
    budgets: list[BudgetUse] | None
    archive_ms: int | None
    views_behind: int | None
    problem: str

    @property
    def per_s(self) -> float | None:
        """Decisions a second, over the last RECENT_S."""
        return None if self.decided is None else sum(one.recent for one in self.decided) / RECENT_S


class Frame(NamedTuple):
    """What a screen shows: the newest look, and the problem that kept a newer one away ('': none)."""

    look: Look | None
    problem: str


async def look(site: Site, zone: str) -> Look:
    """Ask both stores once. `zone`: whose days the budgets are. Raises LogUnavailable, LogBroken, JobFailed."""
    site.postgres_problem = ""
    with named_errors():
        seconds, micros = await site.client.time()
    at = datetime.fromtimestamp(int(seconds), UTC) + timedelta(microseconds=int(micros))
    decided = await site.ask_postgres(
        decided_since, at - timedelta(seconds=WINDOW_S), at - timedelta(seconds=RECENT_S), OUTCOMES_MAX
    )
    windows = calendar_names(zone, at.timestamp())
    return Look(
        at=at,
        groups=await groups(site),
        sizes=await log_sizes(site.client, site.partitions),
        untold=(await untold(site.client, site.partitions)).count,
        breakers=(await open_breakers(site.redis_url)).detail,
        decided=decided,
        holds=await site.ask_postgres(open_holds),
        budgets=await site.ask_postgres(budgets_used, windows, BUDGETS_MAX),
        archive_ms=await _archive_ms(site),
        views_behind=await _views_behind(site),
        problem=site.postgres_problem,
    )


async def _archive_ms(site: Site) -> int | None:
    """Age of the oldest entry that is not archived."""
    waiting = await site.ask_postgres(unarchived_ms, site.client, site.partitions)
    return None if waiting is None else max(waiting.values())


async def _views_behind(site: Site) -> int | None:
    behind = await site.ask_postgres(behind_of)
    return None if behind is None else sum(one.entries for one in behind.values())


async def frames(
    settings: Callable[[], Settings], every_s: float, over: asyncio.Event
) -> AsyncGenerator[Frame, None]:
    """A frame every `every_s` until `over`. While a store is away, or nothing runs, frames say so and it is asked
    again.

    The settings are read again at each attempt, since a system that was restarted may be elsewhere.
    """
    last: Look | None = None
    while not over.is_set():
        try:
            found = settings()
            async with opened(found) as site:
                while not over.is_set():
                    last = await look(site, found.timezone)
                    yield Frame(last, last.problem)
                    await set_within(over, every_s)
        except StreamprocError as problem:
            yield Frame(last, str(problem))
            await set_within(over, every_s)


def look_json(found: Look) -> dict[str, Any]:
    """A look as scripts see it. Amounts in paise; null: Postgres did not answer."""
    return {
        "at": iso(us_of(found.at)),
        "window_s": WINDOW_S,
        "decisions_per_s": found.per_s,
        "decisions": _each(
            found.decided,
            lambda one: {
                "decision": one.decision,
                "reason": one.reason,
                "count": one.count,
                "amount": one.paise,
            },
        ),
        "holds": found.holds
        and {"open": found.holds.count, "amount": found.holds.paise, "oldest_s": found.holds.oldest_s},
        "holds_untold": found.untold,
        "budgets": _each(
            found.budgets,
            lambda one: {"scope": one.scope, "window": one.kind, "used": one.used, "limit": one.limit},
        ),
        "groups": found.groups,
        "archive_oldest_ms": found.archive_ms,
        "views_behind": found.views_behind,
        "log": [
            {"partition": number, **size._asdict()} for number, size in sorted(found.sizes.partitions.items())
        ],
        "redis_memory_bytes": found.sizes.memory,
        "redis_memory_limit_bytes": found.sizes.memory_max,
        "breakers_open": found.breakers,
        "problem": found.problem,
    }


def _each(rows: list[T] | None, shown: Callable[[T], dict[str, Any]]) -> list[dict[str, Any]] | None:
    return None if rows is None else [shown(row) for row in rows]
