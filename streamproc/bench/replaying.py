"""How fast the archive is loaded and all views are rebuilt, beside a projector as one would write it first.

Each round has a database of its own on one Postgres, made as `up` makes it (fsync on). The log is in a Valkey.
`archive` reads it, chains it and copies it, in this process; `rebuild` is `streamproc replay` into an empty place,
with builders as processes; `naive` folds the same events, one in each transaction. CPU is that of our processes and
of Postgres, for each event.
"""

import os
import resource
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from itertools import islice

import asyncpg
from msgspec import Struct
from redis.asyncio import Redis

from projections.loop import months_of
from projections.schema import prepare
from projections.views import NAMES
from streamproc import embedded
from streamproc.archive.load import archive, make_ranges
from streamproc.archive.store import connection, open_head
from streamproc.bench import cost, naive
from streamproc.bench.history import Entry, entries
from streamproc.bench.rig import Said, fresh_database, public_directory
from streamproc.domain.wire import decode_events
from streamproc.embedded import Store
from streamproc.errors import JobFailed
from streamproc.log.connection import connected
from streamproc.log.names import Names
from streamproc.log.stream import LogView
from streamproc.operate.replay import Progress, Result, replay

NAIVE_EVENTS = 2_000
"""Events that the naive projector folds: some two seconds."""
APPEND_AT_ONCE = 1_000
READ_AT_ONCE = 2_000
"""Entries in one transaction, as the projector takes them."""
SMALLER = 10
"""How much shorter the history is that memory is compared with."""
KB = 1024


class Part(Struct, frozen=True, kw_only=True):
    """One thing that was measured once. CPU in µs for each event, by who used it."""

    events: int
    entries: int
    seconds: float
    cpu_us: dict[str, float]
    peak_mb: float = 0.0

    @property
    def events_per_s(self) -> float:
        """By the clock on the wall."""
        return self.events / self.seconds

    @property
    def events_per_core_s(self) -> float:
        """For each second of CPU, whoever used it."""
        return 1e6 / sum(self.cpu_us.values())


class Round(Struct, frozen=True):
    """Everything once. `whole_s` is the rebuild with its checks and the swap."""

    archive: Part
    rebuild: Part
    whole_s: float
    naive: Part


class Measured(Struct, frozen=True):
    """What came out. `smaller` is the rebuild of a history of a tenth."""

    payouts: int
    jobs: int
    rounds: list[Round]
    smaller: Part
    versions: dict[str, str]


class _Log(Struct, frozen=True):
    """A log that is in Valkey."""

    url: str
    entries: int
    events: int


async def measure(payouts: int, rounds: int, *, said: Said) -> Measured:
    """Measure; raises JobFailed where something does not come to what it must."""
    jobs = len(os.sched_getaffinity(0))
    with public_directory() as directory:
        async with embedded.postgres(directory) as postgres, embedded.valkey(directory) as valkey:
            bench = _Bench(postgres, jobs)
            small = await _append(valkey.url, payouts // SMALLER, said)
            said("a history of a tenth, for its memory")
            async with bench.database("smaller") as dsn:
                await bench.archive(dsn, small)
                smaller, _ = await bench.rebuild(dsn, small)
            log = await _append(valkey.url, payouts, said)
            found = [await bench.round(number, log, said) for number in range(1, rounds + 1)]
            versions = cost.package_versions() | await _servers(postgres, valkey)
            return Measured(payouts, jobs, found, smaller, versions)


async def _servers(postgres: Store, valkey: Store) -> dict[str, str]:
    async with connected(valkey.url) as client:
        version = await cost.valkey_version(client)
    db = await asyncpg.connect(postgres.url)
    try:
        return {
            "valkey": version,
            "postgres": str(await db.fetchval("SHOW server_version")),
        }
    finally:
        await db.close()


async def _append(url: str, payouts: int, said: Said) -> _Log:
    """Put a history of so many payouts in Valkey, in the place of any other."""
    said(f"a log of {payouts:,} payouts")
    found, events = entries(payouts), 0
    count = 0
    async with connected(url) as client:
        await client.config_set("appendfsync", "everysec")  # it is not the append that is measured
        await client.delete(Names(0).log)
        while batch := list(islice(found, APPEND_AT_ONCE)):
            await _put(client, batch)
            count += len(batch)
            events += sum(len(decode_events(entry.e)) for entry in batch)
    return _Log(url, count, events)


async def _put(client: Redis, batch: Sequence[Entry]) -> None:
    async with client.pipeline(transaction=False) as pipe:
        for entry in batch:
            pipe.xadd(Names(0).log, {"e": entry.e, "m": entry.m}, id=entry.id)
        await pipe.execute()


class _Bench:
    """The server that everything is measured on."""

    def __init__(self, postgres: Store, jobs: int) -> None:
        self._postgres, self._jobs = postgres, jobs

    @asynccontextmanager
    async def database(self, name: str) -> AsyncIterator[str]:
        """DSN of a database with our schema, dropped afterwards."""
        async with fresh_database(self._postgres, f"bench_{name}") as dsn:
            await prepare(dsn)
            yield dsn

    async def round(self, number: int, log: _Log, said: Said) -> Round:
        """Everything once, in a database of its own."""
        async with self.database(str(number)) as dsn:
            said(f"round {number}: archive")
            archived = await self.archive(dsn, log)
            said(f"round {number}: rebuild")
            rebuilt, whole_s = await self.rebuild(dsn, log)
            said(f"round {number}: one event a transaction")
            return Round(archived, rebuilt, whole_s, await self.naive(dsn, log))

    async def archive(self, dsn: str, log: _Log) -> Part:
        """Read the log, chain it, copy it."""
        usage = self._usage()
        async with connection(dsn, name="bench") as db, LogView(log.url, 0) as view:
            head = await open_head(db, 0)
            known: set[int] = set()
            began = time.monotonic()
            while found := await view.read(head.entry, READ_AT_ONCE, 0):
                new = [at_ms for at_ms in months_of(found) if at_ms not in known]
                await make_ranges(db, new)
                known.update(new)
                _, head = await archive(db, 0, head, found)
            seconds = time.monotonic() - began
            if head.seq != log.entries:
                raise JobFailed(f"the archive has {head.seq} entries, the log {log.entries}")
        return Part(
            events=log.events,
            entries=log.entries,
            seconds=seconds,
            cpu_us=self._spent(usage, log.events),
            peak_mb=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / KB,
        )

    async def rebuild(self, dsn: str, log: _Log) -> tuple[Part, float]:
        """Replay into an empty place: until its tables and indexes are there, and until they are in use."""
        db = await asyncpg.connect(dsn)
        try:
            for view in NAMES:  # nothing to compare with: that is not what is measured
                await db.execute(f"DROP TABLE {view}")
            await db.execute("VACUUM ANALYZE events")
        finally:
            await db.close()
        ready_at, spent = 0.0, dict[str, float]()

        def hear(progress: Progress) -> None:
            nonlocal ready_at, spent
            if progress.stage == "comparing" and not ready_at:
                ready_at, spent = time.monotonic(), self._spent(usage, log.events)

        usage, began = self._usage(), time.monotonic()
        result: Result = await replay(dsn, jobs=self._jobs, on_progress=hear)
        if result.events != log.events or not result.swapped:
            raise JobFailed(f"the rebuild folded {result.events} events, the log has {log.events}")
        part = Part(
            events=log.events,
            entries=log.entries,
            seconds=ready_at - began,
            cpu_us=spent,
            peak_mb=result.peak_kb / KB,
        )
        return part, time.monotonic() - began

    async def naive(self, dsn: str, log: _Log) -> Part:
        """The first events of the log, one a transaction."""
        async with LogView(log.url, 0) as view:
            found = await view.read("0-0", NAIVE_EVENTS, 0)
        told = [
            (entry.id, place, event) for entry in found for place, event in enumerate(decode_events(entry.e))
        ]
        told = told[:NAIVE_EVENTS]
        usage = self._usage()
        async with connection(dsn, name="bench") as db:
            await naive.make(db)
            began = time.monotonic()
            await naive.project(db, told)
            seconds = time.monotonic() - began
        return Part(events=len(told), entries=0, seconds=seconds, cpu_us=self._spent(usage, len(told)))

    def _usage(self) -> tuple[float, float]:
        children = resource.getrusage(resource.RUSAGE_CHILDREN)
        ours = time.process_time() + children.ru_utime + children.ru_stime
        return ours, cost.tree_cpu_s(self._postgres.process.pid)

    def _spent(self, before: tuple[float, float], events: int) -> dict[str, float]:
        ours, theirs = self._usage()
        return {
            "ours": (ours - before[0]) * 1e6 / events,
            "postgres": (theirs - before[1]) * 1e6 / events,
        }
