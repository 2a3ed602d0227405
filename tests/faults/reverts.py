"""Known bugs, brought back by patching, to show that the harness finds them (tests/faults/test_reverts.py)."""

import asyncio
import hashlib
import os
import secrets
from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any
from zoneinfo import ZoneInfo

from msgspec.structs import replace
from redis.asyncio import Redis
from redis.exceptions import RedisError, ResponseError


def acknowledge_before_commit() -> None:
    """Entries are acknowledged when they are read, and committed later: a crash in between loses them."""
    from streamproc.log import scripts
    from streamproc.log.batch import Handler

    script = scripts._commit
    script.text = script.text.replace(
        b"elseif call('XACK', KEYS[1], ARGV[1], id) == 0 then", b"elseif false then"
    )
    script.sha = hashlib.sha1(script.text, usedforsecurity=False).hexdigest()
    handle = Handler.handle

    async def acknowledged(self: Handler, client: Redis, entries: Sequence[Any], **how: Any) -> None:
        if entries:
            await client.execute_command(
                "XACK", self.names.log, self.group.name, *(entry[0] for entry in entries)
            )
        await handle(self, client, entries, **how)

    Handler.handle = acknowledged  # type: ignore[method-assign]


def release_to_today() -> None:
    """A settlement goes to the windows of today, not to those that were charged."""
    from streamproc.log.batch import Handler

    inner, zone = Handler._handover, ZoneInfo(os.environ["STREAMPROC_TIMEZONE"])

    def today(self: Handler, work: Any) -> Any:
        handover = inner(self, work)
        day = datetime.now(UTC).astimezone(zone).strftime("%Y-%m-%d")
        handover.windows = [
            replace(w, window=day) if len(w.window) == len(day) else w for w in handover.windows
        ]
        return handover

    Handler._handover = today  # type: ignore[method-assign]


def other_keys_for_the_poller() -> None:
    """The poller's idempotency keys differ from the webhook's."""
    from streamproc.ingress import razorpay_poll

    inner = razorpay_poll.append_of

    def renamed(*args: Any, **kwargs: Any) -> Any:
        append = inner(*args, **kwargs)
        return replace(append, keys=tuple(f"poll:{key}" for key in append.keys))

    razorpay_poll.append_of = renamed


def no_barrier() -> None:
    """Money moves as soon as it is decided."""
    from streamproc import app

    async def none(*_: Any) -> Any:
        return app._synced

    app._barrier = none


def new_key_for_each_try() -> None:
    """Each attempt to create a payout has another idempotency key."""
    from consumers import create

    create.key_of = lambda _: f"sp-{secrets.token_hex(16)}"


def trim_before_archive() -> None:
    """The log is trimmed up to what every group acknowledged, archived or not."""
    from streamproc import app
    from streamproc.domain.entry_ids import id_key
    from streamproc.errors import LogUnavailable
    from streamproc.log.connection import connected, named_errors
    from streamproc.log.names import Names

    inner = app.run_worker

    async def cut(url: str) -> None:
        log = Names(0).log
        async with connected(url) as client:
            with named_errors():
                ends = []
                for group in await client.xinfo_groups(log):
                    oldest = (await client.xpending(log, group["name"]))["min"]
                    ends.append((oldest or group["last-delivered-id"]).decode())
                await client.execute_command("XTRIM", log, "MINID", min(ends, key=id_key))

    async def trimming(settings: Any, *rest: Any) -> None:
        async def again() -> None:
            while True:
                with suppress(LogUnavailable, ResponseError):  # at a first start there is no log yet
                    await cut(settings.redis_url)
                await asyncio.sleep(0.1)

        task = asyncio.create_task(again())
        try:
            await inner(settings, *rest)
        finally:
            task.cancel()

    app.run_worker = trimming


def leak() -> None:
    """Every batch leaks 200 kB of memory, and every twentieth a connection to Redis."""
    from streamproc.log.batch import Handler
    from streamproc.log.connection import connect

    inner, kept, left = Handler.handle, list[bytes](), list[Redis]()

    async def keeping(self: Handler, *args: Any, **kwargs: Any) -> None:
        kept.append(secrets.token_bytes(200_000))
        if len(kept) % 20 == 0:
            left.append(connect(os.environ["STREAMPROC_REDIS_URL"]))
            with suppress(RedisError):
                await left[-1].ping()
        await inner(self, *args, **kwargs)

    Handler.handle = keeping  # type: ignore[method-assign]


REVERTS: dict[str, Callable[[], None]] = {
    revert.__name__: revert
    for revert in (
        acknowledge_before_commit,
        release_to_today,
        other_keys_for_the_poller,
        no_barrier,
        new_key_for_each_try,
        trim_before_archive,
        leak,
    )
}
