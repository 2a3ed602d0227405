"""For the tests of `recover`: all that a partition holds in Redis, decoded, so that two states can be compared."""

import asyncio
from collections.abc import Mapping
from typing import Any

import msgspec
from redis.asyncio import Redis

from streamproc.domain.payouts import decode_record
from streamproc.log import scripts
from streamproc.log.names import Names
from streamproc.operate.recover import Recovered, look, rebuild
from streamproc.settings import Settings, load


def settings_of(redis_url: str, dsn: str, **more: str) -> Settings:
    """The settings of a command."""
    given = {"redis_url": redis_url, "postgres_dsn": dsn, **more}
    return load({f"STREAMPROC_{name.upper()}": value for name, value in given.items()})


async def recovered(redis_url: str, dsn: str, **more: str) -> Recovered:
    """`streamproc recover --without-bank`."""
    settings = settings_of(redis_url, dsn, **more)
    return await rebuild(settings, await look(settings))


async def dump(client: Redis, partition: int = 0) -> dict[str, Any]:
    """What every key of a partition holds, by kind. Not in it: the log itself, and what differs by design.

    Versions and the policies' revision (a recovery gives new ones), times to live, the reputation cache, where
    consumers are; of an admission only what is reserved; timers and retries are told apart from the groups' own.
    """
    names = Names(partition)
    found: dict[str, Any] = {"payouts": {}, "budgets": {}, "rates": {}, "seen": {}, "timers": {}}
    async for key in client.scan_iter(match=f"{names.base}:*", count=1000):
        kind, _, rest = key.decode().removeprefix(f"{names.base}:").partition(":")
        match kind:
            case "payout":
                found["payouts"][rest] = _payout(await client.hgetall(key))
            case "budget":
                r, c = await client.hmget(key, "r", "c")
                found["budgets"][rest] = (int(r or 0), int(c or 0))
            case "rate":
                slots = await client.zrange(key, 0, -1, withscores=True)
                found["rates"][rest] = {member.decode(): int(score) for member, score in slots}
            case "seen":
                found["seen"][rest] = (await client.get(key)).decode()
            case "timers":
                due = await client.zrange(key, 0, -1, withscores=True)
                found["timers"] = {member: int(score) for member, score in due}
            case "policy":
                rows = await client.hgetall(key)
                found["policies"] = {
                    k.decode(): msgspec.json.decode(v) for k, v in rows.items() if k != b"rev"
                }
            case "dead":
                rows = await client.execute_command("XRANGE", key, "-", "+")
                found["dead"] = [dict(zip(f[::2], f[1::2], strict=True)) for _, f in rows]
            case "number":
                found["number"] = int(await client.get(key))
            case "groups":
                found["groups"] = {group.decode() for group in await client.hkeys(key)}
    return found


def _payout(row: Mapping[bytes, bytes]) -> dict[str, Any]:
    admission = scripts.loaded([row.get(b"v"), None, row.get(b"a")]).admission
    budget, windows = admission.budget, []
    if budget is not None and budget.granted:
        windows = [
            (w.scope, w.window, w.limit, used) for w, used in zip(budget.windows, budget.before, strict=True)
        ]
    held = (budget.number, budget.amount, windows) if budget is not None and budget.granted else None
    record = decode_record(row[b"s"]) if b"s" in row else None
    return {"record": record, "held": held, "settled": row.get(b"q", b"").decode()}


async def until(condition: Any, what: str) -> None:
    """Wait for it."""
    async with asyncio.timeout(60):
        while not await condition():
            await asyncio.sleep(0.02)
