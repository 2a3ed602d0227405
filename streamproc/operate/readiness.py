"""What `/readyz` checks: each dependency of the HTTP side, and whether workers and archive keep up."""

import asyncio
from collections.abc import Awaitable
from typing import TypeAlias

import asyncpg

import consumers
from streamproc.api.health import Check, Ready
from streamproc.archive.gauges import positions
from streamproc.domain.plain import listed
from streamproc.errors import WHEN_LOST, StreamprocError
from streamproc.log.connection import connected
from streamproc.log.health import (
    ARCHIVE_LATE_S,
    DEFERRED_LATE_S,
    GROUP_LATE_S,
    Deferred,
    deferred,
    full,
    group_states,
    logs_gone,
    server_settings,
)
from streamproc.operate.breakers import open_breakers
from streamproc.operate.condition import unarchived_ms
from streamproc.operate.people import untold_holds, untold_text
from streamproc.operate.polling import poller_view
from streamproc.settings import Settings

CHECK_S = 1.5
"""Limit for one dependency. Less than a probe waits, so that it hears which one does not answer."""

NAMED_MAX = 5
"""Partitions, or their groups, named in one line."""

Found: TypeAlias = tuple[bool, str]
"""Whether a dependency is well, and what to say of it."""


def readiness(settings: Settings, pool: asyncpg.Pool | None) -> Ready:
    """Each dependency with what is wrong with it. With Postgres away webhooks are still taken."""

    async def ready() -> list[Check]:
        checks = [_check("redis", _redis(settings), required=True)]
        if settings.razorpay_account_id:
            checks.append(_check("poller", _poller(settings)))
        checks += [_check("breakers", _breakers(settings)), _check("notifications", _people(settings))]
        checks += [_check("groups", _groups(settings)), _check("payouts", _payouts(settings))]
        if pool is not None:
            checks += [
                _check("postgres", _postgres(settings, pool)),
                _check("archive", _archive(settings, pool)),
            ]
        # Together: one after the other, a Postgres that hangs would use up the time that a probe waits for all of them.
        return list(await asyncio.gather(*checks))

    return ready


async def _check(name: str, asked: Awaitable[Found], *, required: bool = False) -> Check:
    try:
        async with asyncio.timeout(CHECK_S):
            ok, detail = await asked
    except TimeoutError:
        ok, detail = False, f"no answer within {CHECK_S:g} s"
    except StreamprocError as problem:
        ok, detail = False, str(problem)
    return Check(name=name, ok=ok, detail=detail, required=required)


async def _redis(settings: Settings) -> Found:
    async with connected(settings.redis_url) as client:
        problems = [*await server_settings(client), *filter(None, [await full(client)])]
        if gone := await logs_gone(client, settings.partitions):
            problems.append(f"the log of partition {gone[0]} is gone; {WHEN_LOST}")
    return not problems, "; ".join(problems)


async def _poller(settings: Settings) -> Found:
    """The poller's state; webhooks are taken whether or not it polls."""
    view = await poller_view(settings)
    return view.ok, view.detail


async def _breakers(settings: Settings) -> Found:
    """The workers' breakers: while one is open, work waits."""
    found = await open_breakers(settings.redis_url)
    return not found.detail, found.detail


async def _people(settings: Settings) -> Found:
    """Whether somebody was told of every hold; one that nobody knows of waits until it expires."""
    text = untold_text(await untold_holds(settings))
    return not text, text


async def _groups(settings: Settings) -> Found:
    """Whether the workers keep up. If not, decisions are late; webhooks are taken all the same."""
    async with connected(settings.redis_url) as client:
        found = await group_states(client, range(settings.partitions), consumers.GROUPS)
    if gone := [f"{one.group} of partition {one.partition}" for one in found if one.gone]:
        return False, f"{listed(gone, NAMED_MAX)} is gone; {WHEN_LOST}"
    late = [one for one in found if one.oldest_ms > GROUP_LATE_S * 1000]
    if late:
        late.sort(key=lambda one: -one.oldest_ms)
        names = [f"{one.group} of partition {one.partition} for {one.oldest_ms // 1000:,} s" for one in late]
        return False, f"an entry waits in {listed(names, NAMED_MAX)}"
    return True, "keep up with the log"


async def _payouts(settings: Settings) -> Found:
    """Whether decisions wait that the bank is to be told of, whatever they wait for: the bank, keys, the archive."""
    async with connected(settings.redis_url) as client:
        found = await deferred(client, settings.partitions, consumers.EXECUTION)
    return found.oldest_ms <= DEFERRED_LATE_S * 1000, deferred_text(found)


def deferred_text(found: Deferred) -> str:
    """Decisions that execution has deferred, as a line; empty if there are none."""
    if not found.entries:
        return ""
    what = "1 decision waits" if found.entries == 1 else f"{found.entries:,} decisions wait"
    return f"{what} to be told to the bank, the oldest for {found.oldest_ms // 1000:,} s"


async def _postgres(settings: Settings, pool: asyncpg.Pool) -> Found:
    """Whether Postgres answers, and a projector has opened every partition: one it has no connection for it has not."""
    found = await positions(pool)
    unopened = [str(partition) for partition in range(settings.partitions) if partition not in found]
    if not unopened:
        return (
            True,
            f"answers; a projector has opened {settings.partitions} of {settings.partitions} partitions",
        )
    return False, f"no projector has opened partition {listed(unopened, NAMED_MAX)}"


async def _archive(settings: Settings, pool: asyncpg.Pool) -> Found:
    """Whether the archive keeps up. If not, no approval is sent, but webhooks are taken all the same."""
    try:
        async with connected(settings.redis_url) as client:
            late_ms = max((await unarchived_ms(pool, client, settings.partitions)).values())
    except StreamprocError as problem:
        return False, f"cannot be compared with the log: {problem}"
    if late_ms > ARCHIVE_LATE_S * 1000:
        return False, f"an entry waits for {late_ms // 1000} s to be archived; is the projector running?"
    return True, "keeps up with the log"
