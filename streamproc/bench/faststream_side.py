"""FastStream's sides: its batch subscriber of a Redis stream with one Lua call per batch, at its best and as it comes,
and its usual idiom.

Reading, dispatch to the handler and acknowledgement are FastStream's. In `batch` and `whole`, decoding, script and
audit rows are those of the floor or of the whole floor. There all that would only make FastStream slower is switched
off by its own options: its typed validation, its two log lines per message, and its own parsing of JSON, since the
handler takes the bytes. It has as many subscribers as the engine has consumers.

`typed` is the same job and script with all of that as it comes: FastStream parses the JSON, validates each payout by
Pydantic models, and writes its log lines, which are discarded.

`usual` is what its documentation shows first: one subscriber, one payout per call, otherwise as `typed`. Its handler
calls the floor's script once, which decides and writes the decision.

Run as a process, with the arguments (`arguments.py`) `batch|whole|typed REDIS_URL SUBSCRIBERS [POSTGRES_DSN]` or
`usual REDIS_URL [POSTGRES_DSN]`. Needs the extra `bench`.
"""

import asyncio
import logging
import os
import time
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from importlib.metadata import PackageNotFoundError, version
from typing import Any, Final

import asyncpg
import uvloop

from streamproc.bench import floor, job, whole
from streamproc.bench.arguments import given
from streamproc.bench.contestant import compete
from streamproc.errors import InputError

FIELD: Final = "__data__"
"""The field of an entry in which FastStream expects the message."""
USUAL: Final = "usual"

Received = list[tuple[bytes, bytes]]
"""Ids and payloads of a batch."""


def versions() -> dict[str, str]:
    """FastStream's version. Raises InputError if it is not installed."""
    try:
        return {"faststream": version("faststream")}
    except PackageNotFoundError as problem:
        raise InputError(
            "FastStream needs the extra `bench`: in a checkout, pip install '.[bench]'"
        ) from problem


class Side(ABC):
    """A broker with its subscribers, which `_subscribe` registers."""

    def __init__(self, broker: Any, db: asyncpg.Connection | None) -> None:
        self._broker, self._db, self._inserting = broker, db, asyncio.Lock()
        self._client: Any = None
        self._sha = ""
        self._failed: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    async def open(self, stack: AsyncExitStack) -> None:
        """Connect; `stack` closes the connection."""
        self._client = await self._broker.connect()
        stack.push_async_callback(self._broker.stop)
        self._sha = await self._client.script_load(self._script())
        self._subscribe()

    async def run(self) -> None:
        """Work until cancelled. Raises the first error of a handler, which FastStream would only log."""
        await self._broker.start()
        await self._failed

    async def _or_fail(self, deciding: Awaitable[None]) -> None:
        try:
            await deciding
        except Exception as problem:  # noqa: BLE001  # `run` raises it
            if not self._failed.done():
                self._failed.set_exception(problem)

    def _script(self) -> str:
        return floor.script()

    @abstractmethod
    def _subscribe(self) -> None: ...


class Batches(Side):
    """Batches as bytes. With a connection to Postgres a batch is acknowledged only after its audit rows are written."""

    STREAM, GROUP, MESSAGE_FIELD, APPLY_TYPES = floor.IN, floor.GROUP, FIELD, False

    def __init__(self, url: str, subscribers: int, db: asyncpg.Connection | None) -> None:
        super().__init__(_broker(url, apply_types=self.APPLY_TYPES), db)
        self._subscribers, self._policies = subscribers, job.policies()

    def _subscribe(self) -> None:
        for number in range(self._subscribers):
            stream = self._stream(number)
            self._broker.subscriber(stream=stream, parser=_parse_nothing, decoder=self._ids_and_bytes)(
                self._handle
            )

    def _stream(self, number: int) -> Any:
        """The stream as the subscriber with this number reads it: in batches as large as the engine's."""
        from faststream.redis import StreamSub

        return StreamSub(
            self.STREAM,
            group=self.GROUP,
            consumer=str(number),
            batch=True,
            max_records=job.BATCH_MAX,
            polling_interval=floor.BLOCK_MS,
        )

    async def _ids_and_bytes(self, message: Any) -> Received:
        """FastStream's decoder of a batch: id and bytes of each entry."""
        raw, field = message.raw_message, self.MESSAGE_FIELD.encode()
        return [(id_, fields[field]) for id_, fields in zip(raw["message_ids"], raw["data"], strict=True)]

    async def _handle(self, received: Received) -> None:
        await self._or_fail(self._decide(received))

    async def _decide(self, received: Received) -> None:
        await self._write(floor.Batch([("", ("", payload)) for _, payload in received], self._policies))

    async def _write(self, batch: floor.Batch) -> None:
        # No group, since FastStream acknowledges a batch when its handler returns.
        codes = await self._client.execute_command(
            "EVALSHA", self._sha, 2 + len(batch.keys), floor.IN, floor.OUT, *batch.keys, "", *batch.args
        )
        if self._db is not None:
            async with self._inserting:
                await self._db.execute(floor.AUDIT_ROWS, *batch.rows(codes))


class WholeBatches(Batches):
    """Batches of the engine's log, which the projector archives."""

    STREAM, GROUP, MESSAGE_FIELD = whole.NAMES.log, whole.GROUP, "e"

    def _script(self) -> str:
        return whole.script()

    def _subscribe(self) -> None:
        self._clerk = whole.Clerk(self._client, self._sha, acknowledges=False)
        super()._subscribe()

    async def _decide(self, received: Received) -> None:
        batch = await self._clerk.batch(received)
        if batch is not None:
            await self._clerk.write(batch)


class Typed(Batches):
    """Batches as FastStream gives them by default: parsed, validated, and with its log lines."""

    APPLY_TYPES = True

    def _subscribe(self) -> None:
        observed = _observed()

        async def decide(received: list[list[observed]]) -> None:  # type: ignore[valid-type]
            await self._or_fail(self._decide_typed(received))

        for number in range(self._subscribers):
            self._broker.subscriber(stream=self._stream(number))(decide)

    async def _decide_typed(self, received: list[Any]) -> None:
        entries = [("", ("", events)) for events in received]
        await self._write(floor.Batch(entries, self._policies, decode=lambda events: events))


BATCHES: Final = {"batch": Batches, "whole": WholeBatches, "typed": Typed}
"""By mode."""


class Usual(Side):
    """One payout per call, as FastStream's documentation shows it."""

    def __init__(self, url: str, db: asyncpg.Connection | None) -> None:
        super().__init__(_broker(url, apply_types=True), db)
        self._policies = job.policies()

    def _subscribe(self) -> None:
        from faststream.redis import StreamSub

        observed = _observed()

        @self._broker.subscriber(stream=StreamSub(floor.IN, group=floor.GROUP, consumer="1"))  # type: ignore[untyped-decorator]
        async def decide(events: list[observed]) -> None:  # type: ignore[valid-type]
            (event,) = events
            notes = event.facts.notes  # type: ignore[attr-defined]
            await self._or_fail(
                self._decide(event.payout, notes["agent_id"], event.facts.amount, notes["vendor_url"])  # type: ignore[attr-defined]
            )

    async def _decide(self, payout: str, agent: str, amount: int, url: str) -> None:
        now_us, policy = time.time_ns() // 1000, self._policies[agent]
        rejected = job.rejection(policy, amount, url)
        decision = floor.decision_start(payout, agent, amount, now_us)
        keys = [floor.IN, floor.OUT, f"rate:{agent}", f"budget:{agent}:{floor.DAY}"]
        terms = ["", now_us, floor.WINDOW_US, job.RATE_COUNT, 1, policy.day_limit]
        (code,) = await self._client.evalsha(
            self._sha, len(keys), *keys, *terms, "", 1, payout, amount, rejected, decision
        )
        if self._db is not None:
            reason = floor.REASONS[code] if code < len(floor.REASONS) else rejected
            outcome = "APPROVED" if code == 0 else "REJECTED"
            await self._db.execute(floor.AUDIT_ROWS, [payout], [agent], [amount], [outcome], [reason])


def _broker(url: str, *, apply_types: bool) -> Any:
    """A broker with FastStream's types and log lines, or without both. Its log is formatted and then discarded."""
    from faststream.redis import RedisBroker

    if not apply_types:
        return RedisBroker(url, logger=None, apply_types=False)
    logger = logging.getLogger(__name__)
    logger.addHandler(logging.StreamHandler(open(os.devnull, "w")))  # noqa: PTH123, SIM115  # never closed
    logger.setLevel(logging.INFO)
    logger.propagate = False
    return RedisBroker(url, logger=logger)


def _observed() -> Any:
    """The Pydantic model of a payout, with what the job reads of it."""
    from pydantic import BaseModel

    class Facts(BaseModel):  # type: ignore[misc, unused-ignore]
        amount: int
        notes: dict[str, str]

    class Observed(BaseModel):  # type: ignore[misc, unused-ignore]
        payout: str
        facts: Facts

    return Observed


async def _parse_nothing(
    message: dict[str, Any], original: Callable[[dict[str, Any]], Awaitable[Any]]
) -> Any:
    """Run FastStream's parser on an empty batch: on the real one it would decode and encode the JSON of each entry."""
    parsed = await original({**message, "data": []})
    parsed.raw_message = message
    return parsed


async def main(mode: str, url: str, *rest: str) -> None:
    """Compete."""
    async with AsyncExitStack() as stack:
        dsn = rest[0 if mode == USUAL else 1 :]
        db = await asyncpg.connect(dsn[0]) if dsn else None
        if db is not None:
            stack.push_async_callback(db.close)
        side: Side
        side = Usual(url, db) if mode == USUAL else BATCHES[mode](url, int(rest[0]), db)
        await side.open(stack)
        await compete(side.run())


if __name__ == "__main__":
    uvloop.run(main(*given()))
