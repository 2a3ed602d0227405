"""The consume loop step by step: real workers on a real Valkey, where each call waits until the test lets it go.

Workers share only Redis and the bank, so an interleaving of their calls is an interleaving of all that matters. Scripts
read the time from a key that the test sets. Nothing else of them is changed, and of the product only clocks and limits.
"""

import asyncio
import hashlib
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple, TypeVar
from unittest import mock

from redis.asyncio import Redis

import consumers
from consumers import enact
from consumers.vet import Reputations
from streamproc.domain.events import Event
from streamproc.domain.wire import Meta, decode_events, decode_meta, encode_events
from streamproc.log import batch, failures, grants, opened, remembered, scripts
from streamproc.log.batch import Limits
from streamproc.log.connection import connect
from streamproc.log.group import Consumer
from streamproc.log.names import Names
from streamproc.log.script import Script
from streamproc.log.stream import open_log
from streamproc.log.work import Group
from tests.engine import ZONE
from tests.model.crashing import Killed
from tests.words import Vendors, apply_policies

T = TypeVar("T")

CLOCK = "test:clock"
START = 2_051_222_400_000_000
"""µs; Mon 1 Jan 2035, 05:30 in Asia/Kolkata: windows must not have ended by the clock of the server."""
VENDORS = {"malware": "threat", "unknown": "unavailable"}
TURNS_MAX = 24
"""Passes of the event loop after an answer; by then a worker has made its next call."""
ROUNDS_MAX = 200
"""Limit of rounds of all workers until nothing is left; a history of some dozen inputs needs a tenth of them."""


@contextmanager
def the_tests_clock() -> Iterator[None]:
    """Scripts read the time that `World.set_clock` sets, and a worker judges the age of what it remembers by it. No
    time limit of the wall clock ends a worker that waits."""
    known = {id(s): s for m in (scripts, grants) for s in vars(m).values() if isinstance(s, Script)}
    with ExitStack() as patches:
        for script in known.values():
            text = script.text.replace(b"call('TIME')", f"call('LRANGE', '{CLOCK}', 0, 1)".encode())
            sha = hashlib.sha1(text, usedforsecurity=False).hexdigest()
            patches.enter_context(mock.patch.multiple(script, text=text, sha=sha))
        for module in (batch, failures, opened, remembered):
            patches.enter_context(mock.patch.object(module, "monotonic", World.latest_s))
        patches.enter_context(mock.patch.object(batch, "BATCH_TIMEOUT_S", 3_600.0))
        patches.enter_context(mock.patch.object(enact, "PASS_S", 3_600.0))
        yield


def vendors() -> Reputations:
    """Reputations from the table VENDORS, none of them remembered yet."""
    return Reputations(Vendors(VENDORS))


def governance(*, fast_path: bool = True, known: Reputations | None = None) -> Group:
    """The governance chain. `known`: reputations that the worker's process remembers; None: none."""
    group = consumers.governance(known or vendors(), zone=ZONE)
    return group if fast_path else Group(name=group.name, stages=group.stages)


class Row(NamedTuple):
    """An entry of the log."""

    id: str
    events: list[Event]
    meta: Meta


class World:
    """A partition, its clock, and the workers on it."""

    latest_us = START
    """The time (µs) of the world whose clock was set last."""

    @staticmethod
    def latest_s() -> float:
        """The same in seconds, for patches of `monotonic`."""
        return World.latest_us / 1e6

    def __init__(self, url: str) -> None:
        self.url, self.names, self.now = url, Names(0), START
        self.client: Redis = connect(url)
        self._workers: list[Worker] = []

    async def open(self, groups: Sequence[Group]) -> None:
        """Start with an empty Redis and an empty log."""
        await self.client.flushdb()
        await self.set_clock(self.now)
        await open_log(self.client, partitions=1, groups=[group.name for group in groups])

    async def close(self) -> None:
        """End all workers and close the connection."""
        for worker in list(self._workers):
            await worker.gone()
        await self.client.aclose()

    async def set_clock(self, now_us: int) -> None:
        """Set the time that every script reads from now on."""
        self.now = World.latest_us = now_us
        async with self.client.pipeline(transaction=True) as pipe:
            pipe.delete(CLOCK)
            pipe.rpush(CLOCK, now_us // 1_000_000, now_us % 1_000_000)
            await pipe.execute()

    async def append(self, *events: Event, keys: Sequence[str] = ()) -> bool:
        """Append an entry as producers do. Returns whether it was new."""
        delivery = scripts.Delivery(keys, encode_events(events), b'{"by":"test"}')
        [(_, new)] = await scripts.append_once(self.client, self.names, [delivery])
        return new

    async def apply(self, text: str) -> None:
        """Put a policy file in force."""
        await apply_policies(self.client, text)

    def worker(self, group: Group, name: str) -> "Worker":
        """Add a worker of this group."""
        worker = Worker(self, group, name)
        self._workers.append(worker)
        return worker

    def forget(self, worker: "Worker") -> None:
        """Remove a worker that has ended."""
        self._workers.remove(worker)

    async def rows(self) -> list[Row]:
        """All entries of the log."""
        entries = await self.client.execute_command("XRANGE", self.names.log, "-", "+")
        return [Row(row[0].decode(), decode_events(row[1][1]), decode_meta(row[1][3])) for row in entries]

    async def waiting(self) -> dict[str, int]:
        """The number of entries that are unread, pending or deferred, by group."""
        counts: dict[str, int] = {}
        for group in await self.client.xinfo_groups(self.names.log):
            name = group["name"].decode()
            retries = await self.client.zcard(self.names.retries(name))
            counts |= {
                f"{name} unread": group["lag"],
                f"{name} pending": group["pending"],
                f"{name} off": retries,
            }
        return {what: count for what, count in counts.items() if count}

    async def drain(self, workers: Sequence["Worker"]) -> None:
        """Let the workers go on until nothing is left to do at the present time."""
        for _ in range(ROUNDS_MAX):
            for worker in workers:
                await worker.whole_turn("upkeep")
                await worker.whole_turn("read")
            due = await self.client.zcount(self.names.timers, "-inf", self.now)
            waiting = await self.waiting()
            if not waiting and not due:
                return
            if any(what.endswith("pending") for what in waiting):
                for worker in workers:
                    await worker.whole_turn("claim")
            if any(what.endswith("off") for what in waiting):
                await self.set_clock(self.now + 11_000_000)  # no deferral is longer
        raise AssertionError(f"there is no end to it: {await self.waiting()}")


def not_blocking(client: Redis) -> Redis:
    """Remove BLOCK from the client's commands: the server ends a read that waits for 1 ms only after 100 ms."""
    send = client.execute_command

    async def at_once(*args: Any, **options: Any) -> Any:
        if "BLOCK" in args:
            place = args.index("BLOCK")
            args = (*args[:place], *args[place + 2 :])
        return await send(*args, **options)

    client.execute_command = at_once  # type: ignore[method-assign]
    return client


async def look_and_handle(consumer: Consumer, client: Redis, *, claims: bool) -> None:
    """Do at once what a consumer's upkeep does between batches."""
    await scripts.fire_due(client, consumer.names)
    consumer._upkeep._claim_due = 0.0
    while found := await consumer._upkeep.look(client, may_claim=claims):
        await consumer._handle_found(client, found)
        await consumer._handle_apart(client)
        await consumer._handler.acknowledge(client)
        claims = claims and consumer._upkeep._cursor != b"0-0"


class Call(NamedTuple):
    """A call that a worker is about to make."""

    what: str
    go: "asyncio.Future[None]"


class Worker:
    """A consumer whose calls wait for the test. It has one turn at a time: `read`, `upkeep` or `claim`."""

    def __init__(self, world: World, group: Group, name: str) -> None:
        self.world, self.name, self.group = world, name, group
        self.consumer = Consumer(world.url, 0, group, name=name, limits=Limits(claim_idle_s=0.0))
        self.calls: list[Call] = []
        self.task: asyncio.Task[None] | None = None
        self._client = not_blocking(connect(world.url))
        self._send = self._client.execute_command
        self._client.execute_command = self._gated  # type: ignore[method-assign]
        self._dead = self._dies_after = False
        self._under_way = 0
        self._all_answered = asyncio.Event()
        self._all_answered.set()

    async def _gated(self, *args: Any, **options: Any) -> Any:
        name = str(args[0])
        what = next((s for s in _NAMES if args[1] == _NAMES[s].sha), name) if name == "EVALSHA" else name
        return await self.call(what, lambda: self._send(*args, **options))

    async def call(self, what: str, act: Callable[[], Awaitable[T]]) -> T:
        """Wait for the test, then act. If the test wants that, die before the answer is received."""
        if self._dead:
            raise Killed
        call = Call(what, asyncio.get_running_loop().create_future())
        self.calls.append(call)
        await call.go
        self._under_way += 1
        self._all_answered.clear()
        try:
            answer = await act()
        finally:
            self._under_way -= 1
            if not self._under_way:
                self._all_answered.set()
        if self._dies_after:
            self._end()
        if self._dead:
            raise Killed
        return answer

    @property
    def is_busy(self) -> bool:
        """Whether a turn has begun and not ended."""
        return self.task is not None and not self.task.done()

    async def begin(self, turn: str) -> None:
        """Begin a turn; it stops at its first call."""
        assert not self.is_busy
        self.task = asyncio.create_task(self._turn(turn))
        await self._at_a_call()

    async def _turn(self, turn: str) -> None:
        consumer, client = self.consumer, self._client
        if turn == "read":
            entries = await consumer._read(client, block_ms=1)
            ahead = await consumer._handler.opener.ahead(client, entries)
            await consumer._handler.handle(client, entries, taken=False, ahead=ahead)
            await consumer._handler.acknowledge(client)
        else:
            await look_and_handle(consumer, client, claims=turn == "claim")

    async def step(self, which: int = 0) -> None:
        """Let one of its calls go, and wait for the next one or the end of the turn."""
        self.calls.pop(which % len(self.calls)).go.set_result(None)
        await self._at_a_call()

    async def _at_a_call(self) -> None:
        assert self.task is not None
        quiet = 0
        while not self.task.done() and not (quiet > TURNS_MAX and self.calls):
            quiet = 0 if self._under_way else quiet + 1
            await self._all_answered.wait()
            await asyncio.sleep(0)
        if self.task.done() and not self._dead:
            self.task.result()

    async def whole_turn(self, turn: str) -> None:
        """Do a whole turn, after the rest of one that has begun."""
        while self.is_busy:
            await self.step()
        await self.begin(turn)
        while self.is_busy:
            await self.step()

    async def kill(self, *, after: bool) -> None:
        """Kill the process before its next call is sent, or (`after`) before the answer to it is received."""
        if after and self.calls:
            self._dies_after = True
            await self.step()
        self._end()
        await self.gone()

    def _end(self) -> None:
        self._dead = True
        for call in self.calls:
            if not call.go.done():
                call.go.set_exception(Killed())
        self.calls.clear()

    async def gone(self) -> None:
        """End the worker and close its connection."""
        self._end()
        if self.task is not None:
            await asyncio.wait([self.task])
            if not self.task.cancelled():
                self.task.exception()
        await self._client.aclose()
        self.world.forget(self)


_NAMES = {
    name.strip("_"): script
    for module in (scripts, grants)
    for name, script in vars(module).items()
    if isinstance(script, Script)
}
