"""The log for producers and readers: open it, append to it, read it without a group.

Appends of concurrent callers are coalesced: one writer per partition sends all that wait in one script call, and each
caller gets its own answer. A producer may say 2xx only after that answer, when the entry is synced to disk.
"""

import asyncio
import logging
import time
from collections import deque
from collections.abc import Awaitable, Callable, Collection, Iterable
from contextlib import suppress
from typing import TYPE_CHECKING, Any, NamedTuple, Self, TypeAlias

from msgspec import Struct
from redis.asyncio import Redis
from redis.exceptions import RedisError

from streamproc.domain.deliveries import derived_keys
from streamproc.domain.entry_ids import ZERO
from streamproc.domain.events import Event
from streamproc.domain.wire import encode_events, written_by
from streamproc.errors import WHEN_LOST, LogBroken, LogUnavailable
from streamproc.log import scripts
from streamproc.log.clock import Clock
from streamproc.log.connection import BLOCK_MS_MAX, connect, connected, named_errors, session
from streamproc.log.names import META, Names, partition_of
from streamproc.telemetry import watch

if TYPE_CHECKING:
    from asyncio import Future

log = logging.getLogger(__name__)

APPENDS_WAITING_MAX = 10_000
"""Appends that may wait for Redis. More are refused at once, since the bank stops waiting after 5 s anyway."""


class Append(Struct, frozen=True):
    """One delivery: events that belong together, and the keys that make it idempotent."""

    account: str
    keys: tuple[str, ...]
    events: tuple[Event, ...]
    body: str = ""
    """Digest of the webhook's body, if keys are made of it."""

    def delivery(self, m: bytes) -> scripts.Delivery:
        """What is sent, with the entry's metadata `m`."""
        if self.keys != derived_keys(self.events, self.body):
            return scripts.Delivery(self.keys, encode_events(self.events), m)
        m = m[:-1] + b',"body":"' + self.body.encode() + b'"}' if self.body else m
        return scripts.Delivery(self.keys, encode_events(self.events), m, keys_derived=True)


class Appended(Struct, frozen=True):
    """The entry that has the delivery, and whether this call appended it."""

    entry: str
    new: bool


class Entry(NamedTuple):
    """A log entry as it is stored: id, events and metadata as bytes."""

    id: str
    e: bytes
    m: bytes


def entry_of(raw: Any) -> Entry:
    """An Entry of Redis's [id, [field, value, ...]]."""
    identity, fields = raw
    if len(fields) == 4 and fields[0] == b"e" and fields[2] == b"m":  # as we write all entries
        return Entry(identity.decode(), fields[1], fields[3])
    values = dict(zip(fields[::2], fields[1::2], strict=True))
    return Entry(identity.decode(), values.get(b"e", b"[]"), values.get(b"m", b"{}"))


Archived: TypeAlias = Callable[[], Awaitable[Collection[int]]]
"""The partitions of which the archive has entries; raises TryAgain while it is away."""


async def _no_archive() -> Collection[int]:
    return ()


BEGUN = "begun"
"""Field of META: when the log was made (Unix s by Redis's clock). If it is missing, nobody knows what was before."""


BEING_RECOVERED = "this log is being recovered; if `streamproc recover` was interrupted, run it again"
"""What to say of a log that has the mark of a recovery under way."""


async def open_log(
    client: Redis,
    *,
    partitions: int,
    groups: Iterable[str],
    from_end: Collection[str] = (),
    archived: Archived = _no_archive,
) -> None:
    """Make the log at the first start, and check it at every later one. Raises LogBroken, with what to do, if it is not
    sound.

    The partition count is fixed at the first start, since with another count accounts would change partition. A group
    that is new begins at the log's beginning (one of `from_end` at the end of an older log); one that was made and is
    gone is not made again, since at `$` it would skip payouts. A stream that is missing is only made if it never was:
    if it was made before, or the archive has entries of it, it is lost.
    """
    with named_errors():
        meta = await client.hgetall(META)
        if b"recovering" in meta:
            raise LogBroken(BEING_RECOVERED)
        _check_count(meta.get(b"partitions", b""), partitions)
        await _refuse_if_lost(client, partitions, meta, archived)
        logs = [Names(partition).log for partition in range(partitions)]
        # Without marks nothing was ever in this log: one that `recover` rebuilds has marks before it is opened.
        if not meta and not any([await client.exists(log) for log in logs]):
            await client.hsetnx(META, BEGUN, str((await client.time())[0]))
        # To a log that is there nothing is written: a full server would refuse it, and one of the roles that could not
        # start then trims the log.
        if b"partitions" not in meta:
            await client.hsetnx(META, "partitions", str(partitions))
            # Another process may have set it first.
            _check_count(await client.hget(META, "partitions"), partitions)
        for partition in range(partitions):
            made = f"made:{partition}"
            await _open_partition(
                client, Names(partition), groups, made_before=made.encode() in meta, from_end=from_end
            )
            if made.encode() not in meta:
                await client.hset(META, made, "1")


def other_count(wanted: int, made_with: int) -> str:
    """What to say of a log that was made with another partition count than the settings have."""
    return f"STREAMPROC_PARTITIONS is {wanted}, but this log was made with {made_with}: set that"


def _check_count(made_with: bytes | str | None, partitions: int) -> None:
    if made_with and int(made_with) != partitions:
        raise LogBroken(other_count(partitions, int(made_with)))


async def _refuse_if_lost(client: Redis, partitions: int, meta: Any, archived: Archived) -> None:
    """Raise LogBroken if a stream is lost. The archive is asked only if one is missing: at a first start, or after a
    loss."""
    there = {p for p in range(partitions) if await client.exists(Names(p).log)}
    if len(there) == partitions and meta:
        return
    made = {p for p in range(partitions) if f"made:{p}".encode() in meta}
    gone = made - there or set(await archived()) - there
    if gone:
        what = f"the log of partition {min(gone)} is gone" if meta else "this Redis holds no log"
        raise LogBroken(f"{what}, though it was written before; {WHEN_LOST}")


async def _open_partition(
    client: Redis, names: Names, groups: Iterable[str], *, made_before: bool, from_end: Collection[str]
) -> None:
    gone = await scripts.open_partition(
        client, names, list(groups), made_before=made_before, from_end=from_end
    )
    if gone:
        raise LogBroken(
            f"consumer group {gone} of {names.log} is gone; it is not made again, because entries could be"
            f" skipped: {WHEN_LOST}"
        )


class _Waiting(NamedTuple):
    delivery: scripts.Delivery
    done: "Future[Appended]"
    steps: int
    """Of the clock, when it came."""


class Producer:
    """The only way to append to the log. Use as an async context manager."""

    def __init__(self, url: str, *, partitions: int, name: str) -> None:
        self._url = url
        self._partitions = partitions
        self._name = name
        self._meta = written_by(name) + b"}"
        self._waiting: dict[int, deque[_Waiting]] = {p: deque() for p in range(partitions)}
        self._wake: dict[int, asyncio.Event] = {p: asyncio.Event() for p in range(partitions)}
        self._writers: list[asyncio.Task[None]] = []
        self.clock = Clock()

    async def __aenter__(self) -> Self:
        try:
            async with connected(self._url) as client:
                await self.clock.sync(client)
        except LogUnavailable:
            log.warning("Redis is away: until it answers, times are this host's")
        self._loop = asyncio.get_running_loop()
        self._writers = [
            asyncio.create_task(self._write(p), name=f"append-{p}") for p in range(self._partitions)
        ]
        return self

    async def __aexit__(self, *_: object) -> None:
        for task in self._writers:
            task.cancel()
        await asyncio.gather(*self._writers, return_exceptions=True)
        for queue in self._waiting.values():
            _refuse(list(queue), LogUnavailable("this process is stopping"))

    def now_us(self) -> int:
        """µs since 1970 by Redis's clock. Read it with no wait before the append: the clock may be found to be another
        one in between, and what was told by it before would pass for right."""
        return self.clock.now_us()

    async def sync(self) -> None:
        """Ask for Redis's clock if that is due: for callers that read it and append nothing. Raises LogUnavailable."""
        if self.clock.is_stale():
            async with connected(self._url) as client:
                await self.clock.sync(client)

    async def append(self, what: Append) -> Appended:
        """Append a delivery at most once; returns when it is in the log and synced.

        Raises LogUnavailable when Redis is away or refuses, or too many appends wait. Whether it was appended is not
        known then, and does not matter: the same delivery again finds its keys.
        """
        return await self.submit(what)

    def submit(self, what: Append) -> "Future[Appended]":
        """`append` for callers without a task of their own: its result or error comes in the future."""
        partition = partition_of(what.account, self._partitions)
        queue = self._waiting[partition]
        if len(queue) >= APPENDS_WAITING_MAX:
            raise LogUnavailable(f"{len(queue)} appends wait already, the limit is {APPENDS_WAITING_MAX}")
        delivery = what.delivery(watch.with_caller(self._meta))
        waiting = _Waiting(delivery, self._loop.create_future(), self.clock.steps)
        queue.append(waiting)
        self._wake[partition].set()
        return waiting.done

    async def _write(self, partition: int) -> None:
        """Send what waits for a partition, one batch at a time, as long as the process runs."""
        names, queue, wake = Names(partition), self._waiting[partition], self._wake[partition]
        client = connect(self._url, home=names.log)
        try:
            while True:
                await wake.wait()
                wake.clear()
                while queue:
                    batch = [queue.popleft() for _ in range(min(len(queue), scripts.BATCH_MAX))]
                    client = await self._send(client, names, [w for w in batch if not w.done.done()])
        finally:
            await client.aclose()

    async def _send(self, client: Redis, names: Names, batch: list[_Waiting]) -> Redis:
        if not batch:
            return client
        try:
            if self.clock.is_stale():
                await self.clock.sync(client)
            batch = _timed_by_this_clock(batch, self.clock.steps)
            if not batch:
                return client
            begun_ns = time.time_ns()
            answers = await scripts.append_once(client, names, [w.delivery for w in batch])
            new = sum(is_new for _, is_new in answers)
            watch.appended(self._name, new, len(answers) - new, begun_ns)
        except (LogUnavailable, LogBroken) as problem:
            _refuse(batch, LogUnavailable(str(problem)))
            return await self._instead_of(client, names)
        except Exception:  # the writer must not end: all later appends would have no answer
            log.exception("ALARM, an append failed unexpectedly; its callers are told")
            _refuse(batch, LogUnavailable("the append failed"))
            return await self._instead_of(client, names)
        except BaseException:
            _refuse(batch, LogUnavailable("the append was interrupted"))
            raise
        for waiting, (entry, new) in zip(batch, answers, strict=True):
            if not waiting.done.done():
                waiting.done.set_result(Appended(entry, new))
        return client

    async def _instead_of(self, client: Redis, names: Names) -> Redis:
        """A new client in place of one that must not be used again, since a reply may still be on its way."""
        self.clock.doubt()
        with suppress(RedisError, OSError):  # a peer that does not answer is not waited for
            await client.aclose()
        return connect(self._url, home=names.log)


def _timed_by_this_clock(batch: list[_Waiting], steps: int) -> list[_Waiting]:
    """The deliveries whose times are by the clock as it is known now; the others are refused, to be delivered again.

    What came a day ahead would be charged to that day, and keep an agent's slots until then.
    """
    old = [waiting for waiting in batch if waiting.steps != steps]
    _refuse(old, LogUnavailable("Redis's clock is another one than was thought; deliver again"))
    return [waiting for waiting in batch if waiting.steps == steps] if old else batch


def _refuse(batch: list[_Waiting], problem: LogUnavailable) -> None:
    for waiting in batch:
        if not waiting.done.done():
            waiting.done.set_exception(problem)


class LogView:
    """One partition's log, read without a group: for the projector, `log tail` and `explain`."""

    def __init__(self, url: str, partition: int) -> None:
        self._url = url
        self._log = Names(partition).log
        self._blocking: Redis | None = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    async def read(self, after: str, count: int, block_ms: int) -> list[Entry]:
        """Entries after an id; waits up to `block_ms` (at most BLOCK_MS_MAX; 0 does not wait) for the first."""
        if self._blocking is None:
            self._blocking = connect(self._url, blocking=True)
        args: list[Any] = ["XREAD", "COUNT", count]
        if block_ms > 0:
            args += ["BLOCK", min(block_ms, BLOCK_MS_MAX)]
        try:
            with named_errors():
                reply = await self._blocking.execute_command(*args, "STREAMS", self._log, after)
        except BaseException:
            await self.aclose()
            raise
        return [entry_of(raw) for raw in reply[0][1]] if reply else []

    async def last_id(self) -> str:
        """The id of the newest entry; 0-0 if there is none."""
        async with session(self._url) as client:
            rows = await client.execute_command("XREVRANGE", self._log, "+", "-", "COUNT", 1)
        return rows[0][0].decode() if rows else ZERO

    async def aclose(self) -> None:
        """Close the reading connection."""
        client, self._blocking = self._blocking, None
        if client is not None:
            await client.aclose()
