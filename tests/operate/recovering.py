"""For the tests of `recover`: all that a partition holds in Redis, decoded, so that two states can be compared."""

import time
from collections.abc import Mapping
from typing import Any

import msgspec
from redis.asyncio import Redis

from projections.loop import months_of
from projections.schema import prepare
from streamproc.archive import load
from streamproc.archive.anchor import lost_from
from streamproc.archive.load import make_ranges
from streamproc.archive.store import connection, open_head
from streamproc.domain.payouts import decode_record
from streamproc.errors import WHEN_LOST, LogBroken
from streamproc.log import scripts
from streamproc.log.cursor import Covered, PollCursor, PollState
from streamproc.log.names import Names
from streamproc.log.stream import LogView
from streamproc.operate.recover import Recovered, look, rebuild
from streamproc.settings import Settings
from streamproc.settings import load as load_settings


def settings_of(redis_url: str, dsn: str, **more: str) -> Settings:
    """The settings of a command."""
    given = {"redis_url": redis_url, "postgres_dsn": dsn, **more}
    return load_settings({f"STREAMPROC_{name.upper()}": value for name, value in given.items()})


async def recovered(redis_url: str, dsn: str, **more: str) -> Recovered:
    """`streamproc recover --without-bank`."""
    settings = settings_of(redis_url, dsn, **more)
    return await rebuild(settings, await look(settings))


async def archive(redis_url: str, dsn: str) -> None:
    """Archive what is in the log now, without views: a recovery reads none. LogBroken where it has lost something."""
    await prepare(dsn)
    async with connection(dsn, name="test") as db, LogView(redis_url, 0) as view:
        head = await open_head(db, 0)
        if problem := await lost_from(db, view, 0, head):
            raise LogBroken(f"{problem}; {WHEN_LOST}")
        while entries := await view.read(head.entry, 2_000, 0):
            await make_ranges(db, months_of(entries))
            _, head = await load.archive(db, 0, head, entries)


async def polled(redis_url: str, account: str) -> None:
    """As if the account's poller had read the bank's list all the time, and would for another hour."""
    cursor = PollCursor(redis_url, account=account, partitions=1)
    until = int(time.time()) + 3_600
    covered = Covered(await cursor.server(), since=0, until=until)
    await cursor.save_state(PollState(holder="test", term=1, pass_at=0, next_at=until, covered=covered))


async def dump(client: Redis, partition: int = 0) -> dict[str, Any]:
    """What every key of a partition holds, by kind. Not in it: the log itself, and what differs by design.

    Versions and the policies' revision (a recovery gives new ones), times to live, the reputation cache, where
    consumers are; of an admission only what is reserved; timers and retries are told apart from the groups' own.
    """
    names = Names(partition)
    found: dict[str, Any] = {"payouts": {}, "budgets": {}, "rates": {}, "seen": {}, "timers": {}, "paid": {}}
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
            case "paid":
                found["paid"][rest] = {k.decode(): int(v) for k, v in (await client.hgetall(key)).items()}
            case "dead":
                rows = await client.execute_command("XRANGE", key, "-", "+")
                found["dead"] = [dict(zip(f[::2], f[1::2], strict=True)) for _, f in rows]
            case "number":
                found["number"] = int(await client.get(key))
            case "groups":
                made = {group.decode() for group in await client.hkeys(key)}
                found["groups"] = made - {"notification"}  # a recovery makes it, whoever works here
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
