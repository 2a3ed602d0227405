"""What `/readyz` asks: each dependency of the HTTP side, and whether what it hands on to is keeping up."""

import asyncio

import asyncpg

from streamproc.api.health import Check, Ready
from streamproc.archive.read import archived_upto
from streamproc.errors import WHEN_LOST, LogUnavailable, StreamprocError, TryAgain
from streamproc.log.connection import connected
from streamproc.log.health import ARCHIVE_LATE_S, logs_gone, server_settings, waiting_ms
from streamproc.operate.breakers import open_breakers
from streamproc.operate.people import untold_holds, untold_text
from streamproc.operate.polling import poller_view
from streamproc.settings import Settings

POSTGRES_CHECK_S = 1.5
"""Less than a probe waits, so that it hears which dependency does not answer."""


def readiness(settings: Settings, pool: asyncpg.Pool | None) -> Ready:
    """Each dependency with what is wrong with it. Postgres away does not stop the taking of webhooks."""

    async def ready() -> list[Check]:
        checks = [_redis_check(settings)]
        if settings.razorpay_account_id:
            checks.append(_poller_check(settings))
        checks += [_breaker_check(settings), _people_check(settings)]
        if pool is not None:
            checks += [_postgres_check(pool), _archive_check(settings, pool)]
        # Together: one after the other, a Postgres that hangs took as long as a probe waits, and nothing was ready.
        return list(await asyncio.gather(*checks))

    return ready


async def _postgres_check(pool: asyncpg.Pool) -> Check:
    try:
        async with asyncio.timeout(POSTGRES_CHECK_S):
            upto = await archived_upto(pool, 0)
    except TryAgain as problem:
        return Check(name="postgres", ok=False, detail=str(problem), required=False)
    except TimeoutError:
        detail = f"no answer within {POSTGRES_CHECK_S} s"
        return Check(name="postgres", ok=False, detail=detail, required=False)
    return Check(name="postgres", ok=True, detail=f"partition 0 is archived up to {upto}", required=False)


async def _archive_check(settings: Settings, pool: asyncpg.Pool) -> Check:
    """Whether the archive keeps up: while it does not, no approval is sent. Webhooks are taken all the same."""
    try:
        async with asyncio.timeout(POSTGRES_CHECK_S), connected(settings.redis_url) as client:
            upto = {
                partition: await archived_upto(pool, partition) for partition in range(settings.partitions)
            }
            late_ms = max((await waiting_ms(client, upto)).values())
    except (StreamprocError, TimeoutError) as problem:
        detail = f"cannot be compared with the log: {str(problem) or 'no answer'}"
        return Check(name="archive", ok=False, detail=detail, required=False)
    if late_ms > ARCHIVE_LATE_S * 1000:
        detail = f"an entry waits for {late_ms // 1000} s to be archived; is the projector running?"
        return Check(name="archive", ok=False, detail=detail, required=False)
    return Check(name="archive", ok=True, detail="keeps up with the log", required=False)


async def _redis_check(settings: Settings) -> Check:
    try:
        async with connected(settings.redis_url) as client:
            problems = await server_settings(client)
            if gone := await logs_gone(client, settings.partitions):
                problems.append(f"the log of partition {gone[0]} is gone; {WHEN_LOST}")
    except StreamprocError as problem:
        return Check(name="redis", ok=False, detail=str(problem))
    return Check(name="redis", ok=not problems, detail="; ".join(problems))


async def _poller_check(settings: Settings) -> Check:
    """Webhooks are taken whether or not somebody polls; but who reads this learns of it."""
    try:
        view = await poller_view(settings)
    except LogUnavailable as problem:
        return Check(name="poller", ok=False, detail=str(problem), required=False)
    return Check(name="poller", ok=view.ok, detail=view.detail, required=False)


async def _breaker_check(settings: Settings) -> Check:
    """The workers' breakers: while one is open, work waits."""
    try:
        found = await open_breakers(settings.redis_url)
    except LogUnavailable as problem:
        return Check(name="breakers", ok=False, detail=str(problem), required=False)
    return Check(name="breakers", ok=not found.detail, detail=found.detail, required=False)


async def _people_check(settings: Settings) -> Check:
    """Whether somebody was told of every hold. A hold that nobody knows of waits until it expires."""
    try:
        text = untold_text(await untold_holds(settings))
    except LogUnavailable as problem:
        return Check(name="notifications", ok=False, detail=str(problem), required=False)
    return Check(name="notifications", ok=not text, detail=text, required=False)
