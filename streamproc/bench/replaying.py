"""`bench replay`: loading the archive and rebuilding all views, compared with a naive projector.

Each round has its own database on one Postgres, which is started as `up` starts it (fsync on). The log is in a Valkey.
`archive` reads, chains and copies it in this process. `rebuild` is `streamproc replay` without existing views, with
builders as processes. `naive` folds the same events, one per transaction. CPU is that of our processes and of Postgres,
per event.
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
from streamproc.bench.history import entries
from streamproc.bench.rig import Announce, fresh_database, public_directory
from streamproc.domain.wire import decode_events
from streamproc.embedded import Store
from streamproc.errors import JobFailed
from streamproc.log.connection import connected
from streamproc.log.names import Names
from streamproc.log.stream import Entry, LogView
from streamproc.operate.builders import JobProgress
from streamproc.operate.replay import Result, replay

NAIVE_EVENTS = 2_000
"""Events that the naive projector folds, in about two seconds."""
APPEND_AT_ONCE = 1_000
READ_AT_ONCE = 2_000
"""Entries in one transaction, as in the projector."""
SMALLER = 10
"""The second history, with which memory is compared, is shorter by this factor."""


class Part(Struct, frozen=True, kw_only=True):
    """One measurement of one part. CPU in µs per event, by who used it."""

    events: int
    entries: int
    seconds: float
    cpu_us: dict[str, float]
    peak_mb: float = 0.0

    @property
    def events_per_s(self) -> float:
        """Events per second of elapsed time."""
        return self.events / self.seconds

    @property
    def events_per_core_s(self) -> float:
        """Events per second of CPU, ours and that of Postgres together."""
        return 1e6 / sum(self.cpu_us.values())


class Round(Struct, frozen=True):
    """Each part once. `whole_s` is the time of the rebuild with its checks and the swap."""

    archive: Part
    rebuild: Part
    whole_s: float
    naive: Part


class Measured(Struct, frozen=True):
    """All rounds. `smaller` is the rebuild of a history a tenth as long."""

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


async def measure(payouts: int, rounds: int, *, announce: Announce) -> Measured:
    """Measure. Raises JobFailed if the archive or a rebuild lacks something."""
    jobs = len(os.sched_getaffinity(0))
    with public_directory() as directory:
        async with embedded.postgres(directory) as postgres, embedded.valkey(directory) as valkey:
            bench = _Bench(postgres, jobs)
            small = await _append(valkey.url, payouts // SMALLER, announce)
            announce("a history a tenth as long, for the builders' memory")
            async with bench.database("smaller") as dsn:
                await bench.archive(dsn, small)
                smaller, _ = await bench.rebuild(dsn, small)
            log = await _append(valkey.url, payouts, announce)
            measured = [await bench.round(number, log, announce) for number in range(1, rounds + 1)]
            versions = cost.package_versions() | await _servers(postgres, valkey)
            return Measured(payouts, jobs, measured, smaller, versions)


async def _servers(postgres: Store, valkey: Store) -> dict[str, str]:
    async with connected(valkey.url) as client:
        valkey_version = await cost.valkey_version(client)
    return {"valkey": valkey_version, "postgres": await cost.postgres_version(postgres.url)}


async def _append(url: str, payouts: int, announce: Announce) -> _Log:
    """Put a history of so many payouts in Valkey, instead of any other."""
    announce(f"a log of {payouts:,} payouts")
    history, count, events = entries(payouts), 0, 0
    async with connected(url) as client:
        await client.config_set("appendfsync", "everysec")  # appending is not measured
        await client.delete(Names(0).log)
        while batch := list(islice(history, APPEND_AT_ONCE)):
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
    """The Postgres on which everything is measured."""

    def __init__(self, postgres: Store, jobs: int) -> None:
        self._postgres, self._jobs = postgres, jobs

    @asynccontextmanager
    async def database(self, name: str) -> AsyncIterator[str]:
        """DSN of a new database with our schema; it is dropped afterwards."""
        async with fresh_database(self._postgres, f"bench_{name}") as dsn:
            await prepare(dsn)
            yield dsn

    async def round(self, number: int, log: _Log, announce: Announce) -> Round:
        """Measure each part once, in a new database."""
        async with self.database(str(number)) as dsn:
            announce(f"round {number}: archive")
            archived = await self.archive(dsn, log)
            announce(f"round {number}: rebuild")
            rebuilt, whole_s = await self.rebuild(dsn, log)
            announce(f"round {number}: one event per transaction")
            return Round(archived, rebuilt, whole_s, await self.naive(dsn, log))

    async def archive(self, dsn: str, log: _Log) -> Part:
        """Read the log, chain it and copy it into the archive."""
        usage = self._usage()
        async with connection(dsn, name="bench") as db, LogView(log.url, 0) as view:
            head = await open_head(db, 0)
            known: set[int] = set()
            began = time.monotonic()
            while batch := await view.read(head.entry, READ_AT_ONCE, 0):
                new = [at_ms for at_ms in months_of(batch) if at_ms not in known]
                await make_ranges(db, new)
                known.update(new)
                _, head = await archive(db, 0, head, batch)
            seconds = time.monotonic() - began
            if head.seq != log.entries:
                raise JobFailed(f"the archive has {head.seq} entries, the log {log.entries}")
        return Part(
            events=log.events,
            entries=log.entries,
            seconds=seconds,
            cpu_us=self._spent(usage, log.events),
            peak_mb=cost.mb_of_kib(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss),
        )

    async def rebuild(self, dsn: str, log: _Log) -> tuple[Part, float]:
        """Rebuild without existing views: the time until tables and indexes are built, and until they are in use."""
        db = await asyncpg.connect(dsn)
        try:
            for view in NAMES:  # the comparison with the live views is not measured
                await db.execute(f"DROP TABLE {view}")
            await db.execute("VACUUM ANALYZE events")
        finally:
            await db.close()
        ready_at, spent = 0.0, dict[str, float]()

        def note_end_of_build(progress: JobProgress) -> None:
            nonlocal ready_at, spent
            if progress.stage == "comparing" and not ready_at:
                ready_at, spent = time.monotonic(), self._spent(usage, log.events)

        usage, began = self._usage(), time.monotonic()
        result: Result = await replay(dsn, jobs=self._jobs, on_progress=note_end_of_build)
        if result.events != log.events or not result.swapped:
            raise JobFailed(f"the rebuild folded {result.events} events, the log has {log.events}")
        part = Part(
            events=log.events,
            entries=log.entries,
            seconds=ready_at - began,
            cpu_us=spent,
            peak_mb=cost.mb_of_kib(result.peak_kb),
        )
        return part, time.monotonic() - began

    async def naive(self, dsn: str, log: _Log) -> Part:
        """Fold the first events of the log, one per transaction."""
        async with LogView(log.url, 0) as view:
            first = await view.read("0-0", NAIVE_EVENTS, 0)
        events = [
            (entry.id, place, event) for entry in first for place, event in enumerate(decode_events(entry.e))
        ]
        events = events[:NAIVE_EVENTS]
        usage = self._usage()
        async with connection(dsn, name="bench") as db:
            await naive.make(db)
            began = time.monotonic()
            await naive.project(db, events)
            seconds = time.monotonic() - began
        return Part(events=len(events), entries=0, seconds=seconds, cpu_us=self._spent(usage, len(events)))

    def _usage(self) -> tuple[float, float]:
        children = resource.getrusage(resource.RUSAGE_CHILDREN)
        ours = time.process_time() + children.ru_utime + children.ru_stime
        return ours, cost.tree_cpu_s(self._postgres.process.pid)

    def _spent(self, before: tuple[float, float], events: int) -> dict[str, float]:
        ours, postgres = self._usage()
        return {
            "ours": (ours - before[0]) * 1e6 / events,
            "postgres": (postgres - before[1]) * 1e6 / events,
        }
