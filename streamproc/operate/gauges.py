"""What /metrics asks of the stores: groups, logs, dead letters, archive, holds, budgets.

Every process gives the same, so of several `serve` on a machine take the maximum, not the sum. What cannot be asked is
left out, and its `streamproc_store_up` is 0.
"""

import asyncio
import logging
import os
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import Any

import asyncpg

from streamproc.archive.gauges import budgets_used, open_holds, unsigned, views_behind
from streamproc.archive.signing_key import KEY_FILE
from streamproc.domain.budget import calendar_names
from streamproc.errors import StreamprocError
from streamproc.log.connection import connected
from streamproc.log.health import GroupState, group_states, log_sizes
from streamproc.log.untold import untold
from streamproc.operate.condition import unarchived_ms
from streamproc.settings import Settings
from streamproc.telemetry.exposure import Family, Page, Point

STORE_S_MAX = 5.0
"""Limit for all answers of one store; a page without it is better than none."""

BOTH = "redis and postgres"
"""Name of what needs both stores. Asked apart, so that one that is away or hangs does not hide what the other one
knows."""

Labels = Mapping[str, str]

log = logging.getLogger(__name__)


async def site_page(settings: Settings, pool: Any, groups: tuple[str, ...]) -> Page:
    """What the stores say now. `pool` None: there is no Postgres. A store that is away never raises."""
    asked = [_asked("redis", lambda: _redis_page(settings, groups))]
    if pool is not None:
        asked.append(_asked("postgres", lambda: _postgres_page(settings, pool)))
        asked.append(_asked(BOTH, lambda: _archive_page(settings, pool)))
    pages = await asyncio.gather(*asked)
    up = [
        Point("streamproc_store_up", {"store": store}, float(page is not None))
        for store, page in pages
        if store != BOTH
    ]
    return [
        Family("streamproc_store_up", "1 for a store that answered this page's questions", "gauge", up),
        *(family for _, page in pages for family in page or []),
    ]


async def _asked(store: str, question: Callable[[], Awaitable[Page]]) -> tuple[str, Page | None]:
    try:
        async with asyncio.timeout(STORE_S_MAX):
            return store, await question()
    except (StreamprocError, TimeoutError, asyncpg.PostgresError) as problem:
        # The last where the database has no schema yet.
        log.warning(
            "%s could not be asked for metrics: %s", store, str(problem) or f"no answer in {STORE_S_MAX:g} s"
        )
        return store, None


def _gauge(name: str, text: str, points: Iterable[tuple[Labels, float]]) -> Family:
    full = f"streamproc_{name}"
    return Family(full, text, "gauge", [Point(full, dict(labels), value) for labels, value in points])


# ---- Redis ----


async def _redis_page(settings: Settings, groups: tuple[str, ...]) -> Page:
    async with connected(settings.redis_url) as client:
        states = await group_states(client, range(settings.partitions), groups)
        sizes = await log_sizes(client, settings.partitions)
        people = await _untold(client, settings.partitions)
    there = [(_group(state), state) for state in states if not state.missing]
    # Redis does not know the lag where entries were deleted; such a group is not said to have none.
    return [
        _gauge(
            "group_up",
            "1 for a consumer group that is there",
            ((_group(state), float(not state.missing)) for state in states),
        ),
        _gauge(
            "group_lag_entries",
            "Entries that a group was not given yet",
            ((labels, state.lag) for labels, state in there if state.lag is not None),
        ),
        _gauge(
            "group_pending_entries",
            "Entries that a group has read and not acknowledged, deferred ones too",
            ((labels, state.pending) for labels, state in there),
        ),
        _gauge(
            "group_deferred_entries",
            "Entries that wait for their next attempt",
            ((labels, state.deferred) for labels, state in there),
        ),
        _gauge(
            "group_oldest_seconds",
            "Age of a group's oldest entry that is not acknowledged",
            ((labels, state.oldest_ms / 1000) for labels, state in there),
        ),
        _gauge(
            "group_consumers", "Consumers of a group", ((labels, state.consumers) for labels, state in there)
        ),
        *_sizes(sizes.partitions),
        *people,
        _gauge("redis_memory_bytes", "Memory that Redis uses", [({}, sizes.memory)]),
        _gauge("redis_memory_limit_bytes", "maxmemory of Redis; 0 is none", [({}, sizes.memory_max)]),
    ]


async def _untold(client: Any, partitions: int) -> Page:
    try:
        found = await untold(client, partitions)
    except ValueError as problem:  # one damaged record must not take everything else along
        log.warning("the holds that nobody could be told of cannot be counted: %s", problem)
        return []
    oldest_s = max(0.0, time.time() - found.oldest_at / 1e6) if found.count else 0.0
    return [
        _gauge("holds_untold", "Holds that nobody could be told of", [({}, found.count)]),
        _gauge(
            "holds_untold_oldest_seconds",
            "Age of the oldest hold that nobody could be told of; 0: there is none",
            [({}, oldest_s)],
        ),
    ]


def _sizes(partitions: Mapping[int, Any]) -> Page:
    def of(field: str) -> Iterable[tuple[Labels, float]]:
        return (
            ({"partition": str(number)}, float(getattr(one, field))) for number, one in partitions.items()
        )

    return [
        _gauge("log_entries", "Entries of a partition's log that are in Redis", of("entries")),
        _gauge("log_bytes", "Memory of a partition's log, estimated by Redis", of("bytes")),
        _gauge("dead_letters", "Entries that could not be handled and wait for a person", of("dead")),
        _gauge("timers", "Timers that are set, for holds that expire", of("timers")),
    ]


def _group(state: GroupState) -> Labels:
    return {"partition": str(state.partition), "group": state.group}


# ---- Postgres ----


async def _archive_page(settings: Settings, pool: Any) -> Page:
    async with connected(settings.redis_url) as client:
        waiting = await unarchived_ms(pool, client, settings.partitions)
    return [
        _gauge(
            "archive_oldest_seconds",
            "Age of the oldest entry that is not archived",
            (({"partition": str(number)}, ms / 1000) for number, ms in waiting.items()),
        )
    ]


async def _postgres_page(settings: Settings, pool: Any) -> Page:
    behind = await views_behind(pool)
    holds = await open_holds(pool)
    page = [
        _gauge(
            "views_behind_entries",
            "Archived entries that the views do not show yet",
            (({"partition": str(number)}, one.entries) for number, one in behind.items()),
        ),
        _gauge(
            "views_oldest_seconds",
            "How long the oldest archived entry that the views do not show has been archived; 0: there is none",
            (({"partition": str(number)}, one.oldest_s) for number, one in behind.items()),
        ),
        *await _unsigned(settings, pool),
        _gauge("holds_open", "Holds that wait for a person", [({}, holds.count)]),
        _gauge("holds_open_paise", "Amounts of the open holds in paise", [({}, holds.paise)]),
        _gauge("holds_oldest_seconds", "Age of the oldest open hold", [({}, holds.oldest_s)]),
    ]
    if settings.metrics_agents:
        # Apart: with very many agents it is the one slow question, and must not take the others along.
        _, budgets = await _asked("budgets", lambda: _budgets(settings, pool))
        page += budgets or []
    return page


async def _unsigned(settings: Settings, pool: Any) -> Page:
    """Unsigned entries; nothing if no checkpoint was ever made and there is no key here to make one."""
    found = await unsigned(pool)
    signs = any(one.ever for one in found.values()) or settings.signing_key
    if not (signs or os.access(settings.data_dir / KEY_FILE, os.F_OK)):
        return []
    return [
        _gauge(
            "unsigned_oldest_seconds",
            "How long the oldest archived entry that no checkpoint signs has been archived; 0: all are signed",
            (({"partition": str(number)}, one.oldest_s) for number, one in found.items()),
        )
    ]


async def _budgets(settings: Settings, pool: Any) -> Page:
    windows = calendar_names(settings.timezone, time.time())
    rows = await budgets_used(pool, windows, settings.metrics_agents)
    points = [({"scope": row.scope, "window": row.kind}, row) for row in rows]
    return [
        _gauge(
            "budget_used_ratio",
            "Reserved and committed of a limit; the fullest windows of today, this week and month",
            ((labels, row.used / row.limit if row.limit else 1.0) for labels, row in points),
        ),
        _gauge(
            "budget_used_paise",
            "Reserved and committed in paise, of the same windows",
            ((labels, row.used) for labels, row in points),
        ),
    ]
