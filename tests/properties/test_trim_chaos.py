"""Trimming as hard as can be, while workers die and a projector runs, takes nothing that somebody still needs."""

import asyncio
import random
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import TypeAlias

import asyncpg
from redis.asyncio import Redis

from projections.loop import run_projector
from projections.schema import prepare
from streamproc.domain.events import PayoutDecided
from streamproc.domain.wire import decode_events
from streamproc.errors import LogBroken
from streamproc.log.connection import connected
from streamproc.log.group import Consumer
from streamproc.log.names import Names
from streamproc.log.stream import LogView
from streamproc.log.trim import trim
from tests.engine import Engine
from tests.words import delivery, observed

NAMES = Names(0)
PAYOUTS = 400
AT_ONCE = 10
TURNS_MAX = 200
"""Turns of the loop before a worker dies: from before it was given the entries to after it committed them."""
CLAIM_IDLE_S = 1.0
"""Longer than a batch takes on a loaded machine: else the living take from the living, and entries are set aside."""
DEADLINE_S = 60.0
POLICIES = "policies: {bot: {daily_limit: 100_000_000, rate_limit: {count: 0, window: 60}}}"

Trim: TypeAlias = Callable[[Redis, asyncpg.Connection], Awaitable[None]]


async def by_the_script(client: Redis, db: asyncpg.Connection) -> None:
    anchor = await db.fetchval("SELECT entry_id FROM heads WHERE partition = 0") or "0-0"
    await trim(client, NAMES, anchor=anchor, retention_s=0)


async def by_length(client: Redis, db: asyncpg.Connection) -> None:
    """The negative control: what MAXLEN does, which looks at nobody."""
    await client.execute_command("XTRIM", NAMES.log, "MAXLEN", 5)


async def lost_under(redis_url: str, dsn: str, trimmed: Trim) -> list[str]:
    """What is missing after PAYOUTS payouts were decided and archived under steady trimming."""
    await prepare(dsn)
    stopping = asyncio.Event()
    async with (
        Engine(redis_url, workers=3, claim_idle_s=CLAIM_IDLE_S) as engine,
        connected(redis_url) as client,
    ):
        await engine.apply(POLICIES)
        projector = asyncio.create_task(run_projector(dsn, 1, lambda p: LogView(redis_url, p), stopping))
        trimmer = asyncio.create_task(_again_and_again(redis_url, dsn, trimmed, stopping))
        for start in range(0, PAYOUTS, AT_ONCE):
            events = [observed(f"pout_{n}", 1_000) for n in range(start, start + AT_ONCE)]
            appending = asyncio.gather(*(engine.producer.append(delivery(event)) for event in events))
            for _ in range(random.randrange(TURNS_MAX)):
                await asyncio.sleep(0)
            await _one_dies(engine)
            await appending
        problems = await _until_handled(client, projector, dsn)
        stopping.set()
        results = await asyncio.gather(projector, trimmer, return_exceptions=True)
    problems += [str(result) for result in results if isinstance(result, LogBroken)]
    return problems + await _missing(redis_url, dsn)


async def _again_and_again(redis_url: str, dsn: str, trimmed: Trim, stopping: asyncio.Event) -> None:
    db = await asyncpg.connect(dsn)
    try:
        async with connected(redis_url) as client:
            while not stopping.is_set():
                await trimmed(client, db)
                await asyncio.sleep(0.002)
    finally:
        await db.close()


async def _one_dies(engine: Engine) -> None:
    """A worker ends in the middle of whatever it does, with entries in its hands; another one starts."""
    victim = engine.tasks.pop(0)
    while not victim.done():
        victim.cancel()  # once may not do: redis-py's wait_for swallows it when what it waits for comes just then
        await asyncio.wait({victim}, timeout=0.05)
    name = f"w-{random.getrandbits(40)}"
    consumer = Consumer(engine.url, 0, engine.groups[0], name=name, limits=engine.limits)
    engine.tasks.append(asyncio.create_task(consumer.run(engine.stopping)))


async def _until_handled(client: Redis, projector: "asyncio.Task[None]", dsn: str) -> list[str]:
    """Wait until everybody is at the log's end. By position and not by lag: that is not told once entries are lost."""
    try:
        async with asyncio.timeout(DEADLINE_S):
            while not projector.done():
                last = (await client.xinfo_stream(NAMES.log))["last-generated-id"].decode()
                [group] = await client.xinfo_groups(NAMES.log)
                at = (group["last-delivered-id"].decode(), (await _head(dsn))[1])
                if at == (last, last) and group["pending"] == 0:
                    return []
                await asyncio.sleep(0.02)
    except TimeoutError:
        return ["not handled in time"]
    return []


async def _appended(client: Redis) -> int:
    return int((await client.xinfo_stream(NAMES.log))["entries-added"])


async def _head(dsn: str) -> tuple[int, str]:
    db = await asyncpg.connect(dsn)
    try:
        row = await db.fetchrow("SELECT seq, entry_id FROM heads WHERE partition = 0")
    finally:
        await db.close()
    return (row["seq"], row["entry_id"]) if row else (0, "0-0")


async def _missing(redis_url: str, dsn: str) -> list[str]:
    async with connected(redis_url) as client:
        appended, left = await _appended(client), await client.xlen(NAMES.log)
    db = await asyncpg.connect(dsn)
    try:
        rows = await db.fetch("SELECT e FROM events ORDER BY seq")
    finally:
        await db.close()
    events = [event for row in rows for event in decode_events(row["e"])]
    decided = Counter(event.payout for event in events if isinstance(event, PayoutDecided))
    problems = (
        [f"{appended} entries were appended, {len(rows)} are archived"] if appended != len(rows) else []
    )
    problems += [f"{n} decisions for {payout}" for payout, n in decided.items() if n != 1]
    problems += [f"{len(decided)} of {PAYOUTS} payouts are decided"] if len(decided) != PAYOUTS else []
    assert left < appended, "nothing was trimmed, so nothing was tested"
    return problems


async def test_trimming_never_takes_what_a_group_or_the_archive_still_needs(
    redis_url: str, postgres: str
) -> None:
    assert await lost_under(redis_url, postgres, by_the_script) == []


async def test_and_this_test_would_notice(redis_url: str, postgres: str) -> None:
    assert await lost_under(redis_url, postgres, by_length) != []
