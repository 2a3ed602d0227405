"""FastStream's side: its batch subscriber of a Redis stream at the floor's job, tuned to one Lua call a batch.

Reading, the way to the handler and the acknowledgement are FastStream's. Decoding, script and audit rows are the
floor's. What would only make it slower is off, by what FastStream offers for that: its typed validation, its two log
lines a message, and its own parsing of JSON, since the handler takes the bytes. It has as many subscribers as the
engine has consumers.

Run as a process: `python -m streamproc.bench.faststream_side REDIS_URL SUBSCRIBERS [POSTGRES_DSN]`. Needs the extra
`bench`.
"""

import asyncio
import sys
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from importlib.metadata import PackageNotFoundError, version
from typing import Any, Final

import asyncpg
import uvloop

from streamproc.bench import floor, job
from streamproc.bench.contestant import compete
from streamproc.errors import InputError

FIELD: Final = "__data__"
"""Where FastStream looks for a message in an entry."""


def versions() -> dict[str, str]:
    """FastStream's. Raises InputError where it is not installed."""
    try:
        return {"faststream": version("faststream")}
    except PackageNotFoundError as problem:
        raise InputError("--faststream needs the extra `bench`: pip install 'streamproc[bench]'") from problem


class Side:
    """Its subscribers. With a connection to Postgres a batch is acknowledged only after its audit rows are written."""

    def __init__(self, url: str, subscribers: int, db: asyncpg.Connection | None) -> None:
        from faststream.redis import RedisBroker, StreamSub

        self._broker = RedisBroker(url, logger=None, apply_types=False)
        self._db, self._inserting, self._policies = db, asyncio.Lock(), job.policies()
        self._client: Any = None
        self._sha = ""
        self._failed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        for number in range(subscribers):
            stream = StreamSub(
                floor.IN,
                group=floor.GROUP,
                consumer=str(number),
                batch=True,
                max_records=job.BATCH_MAX,
                polling_interval=floor.BLOCK_MS,
            )
            self._broker.subscriber(stream=stream, parser=_unread, decoder=_as_it_is)(self._handle)

    async def run(self) -> None:
        """Work until cancelled. Raises what a handler failed with; FastStream would only leave it unacknowledged."""
        await self._broker.start()
        await self._failed

    async def _handle(self, payloads: list[bytes]) -> None:
        try:
            await self._decide(payloads)
        except Exception as problem:  # noqa: BLE001  # told by `run`
            if not self._failed.done():
                self._failed.set_exception(problem)

    async def _decide(self, payloads: list[bytes]) -> None:
        batch = floor.Batch([("", ("", payload)) for payload in payloads], self._policies)
        # No group: FastStream acknowledges what its handler returns from.
        codes = await self._client.execute_command(
            "EVALSHA", self._sha, 2 + len(batch.keys), floor.IN, floor.OUT, *batch.keys, "", *batch.args
        )
        if self._db is not None:
            async with self._inserting:
                await self._db.execute(floor.AUDIT_ROWS, *batch.rows(codes))

    async def open(self, stack: AsyncExitStack) -> None:
        """Connect; closed with `stack`."""
        self._client = await self._broker.connect()
        stack.push_async_callback(self._broker.stop)
        self._sha = await self._client.script_load(floor.script())


async def _unread(message: dict[str, Any], original: Callable[[dict[str, Any]], Awaitable[Any]]) -> Any:
    """FastStream's parser of a batch, which would decode and encode each entry's JSON, on a batch without entries."""
    parsed = await original({**message, "data": []})
    parsed.raw_message = message
    return parsed


async def _as_it_is(message: Any) -> list[bytes]:
    """FastStream's decoder of a batch: the bytes of each entry."""
    return [entry[FIELD.encode()] for entry in message.raw_message["data"]]


async def main(url: str, subscribers: int, dsn: str | None) -> None:
    """Compete."""
    async with AsyncExitStack() as stack:
        db = await asyncpg.connect(dsn) if dsn else None
        if db is not None:
            stack.push_async_callback(db.close)
        side = Side(url, subscribers, db)
        await side.open(stack)
        await compete(side.run())


if __name__ == "__main__":
    uvloop.run(main(sys.argv[1], int(sys.argv[2]), sys.argv[3] if len(sys.argv) > 3 else None))
