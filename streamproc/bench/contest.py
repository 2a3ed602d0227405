"""`bench floor`: the floor, the engine and optional other sides do the same payouts in turns, on fresh servers.

Each run has its own empty Valkey with `appendfsync always`, and a new database on a Postgres that all runs share. The
payouts are in the stream before the contestants start. A run lasts from `go` until the group has read and acknowledged
everything (the engine's own outputs too) and, with audit, until the views show the last entry. A run with wrong
outcomes ends the benchmark, and so does one that had to leave behind all that the engine leaves and did not.
"""

import asyncio
import json
import signal
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Collection, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import asyncpg
from msgspec import Struct
from redis.asyncio import Redis

from projections.schema import prepare
from streamproc import embedded, processes
from streamproc.bench import cost, faststream_side, floor, job
from streamproc.bench.arguments import environment
from streamproc.bench.contestant import GO, STOP
from streamproc.bench.left import Left, compare, left
from streamproc.bench.rig import Announce, fresh_database, fresh_valkey, home_in, public_directory
from streamproc.bench.sides import ALL, ENGINE, Side, asked_for
from streamproc.embedded import Store
from streamproc.errors import JobFailed
from streamproc.host_clock import host_clock_us

POLL_S = 0.01
"""Interval of checking whether a run is done: 1 % of a run that lasts a second."""
RUN_MAX_S = 600.0
ANSWER_MAX_S = 60.0
"""Limit for a contestant to get ready, or to say what it used."""
TEMPLATE = "bench_template"
VIEWS_AT = "SELECT entry_id FROM view_heads WHERE partition = 0 ORDER BY seq LIMIT 1"


class Run(Struct, frozen=True):
    """One side's run. CPU is in µs per payout; `worker` and `archive` are our processes.

    `peak_mb` is the worker's peak resident memory. `log_bytes` is the memory that the side's streams take in Redis, per
    payout and including the payout itself.
    """

    side: str
    round: int
    seconds: float
    payouts_per_s: float
    cpu_us: dict[str, float]
    peak_mb: float = 0.0
    log_bytes: float = 0.0


class Measured(Struct, frozen=True):
    """All runs in their order, without the warm-up."""

    payouts: int
    audit: bool
    payees: int
    """Number of fund accounts that are paid; 0: every payout goes to a new one."""
    consumers: int
    """Number of consumers in the engine's one worker process."""
    payload_bytes: int
    outcomes: dict[str, int]
    versions: dict[str, str]
    runs: list[Run]


async def measure(
    payouts: int,
    rounds: int,
    *,
    audit: bool,
    payees: int = job.PAYEES,
    consumers: int = job.CONSUMERS,
    sides: Sequence[str] = tuple(asked_for()),
    announce: Announce,
) -> Measured:
    """Run the contest. Raises JobFailed if a side's outcomes are wrong, or it dies or does not finish; InputError if
    FastStream is among the sides and not installed."""
    expected, runs = job.expected(payouts), list[Run]()
    has_faststream = any(ALL[side].module == faststream_side.__name__ for side in sides)
    versions = cost.package_versions() | (faststream_side.versions() if has_faststream else {})
    async with _arena(audit, payees, consumers) as arena:
        for number in range(rounds + 1):
            for side in sides:
                announce(f"{'warm-up' if number == 0 else f'round {number} of {rounds}'}: {side}")
                run = await arena.run(side, number, payouts, expected)
                if number > 0:
                    runs.append(run)
        return Measured(
            payouts=payouts,
            audit=audit,
            payees=payees,
            consumers=consumers,
            payload_bytes=len(job.payload(0, host_clock_us())),
            outcomes=dict(sorted(expected.items())),
            versions=versions | arena.versions,
            runs=runs,
        )


@asynccontextmanager
async def _arena(audit: bool, payees: int, consumers: int) -> AsyncIterator["Arena"]:
    with public_directory() as directory:
        async with AsyncExitStack() as stack:
            postgres = await stack.enter_async_context(embedded.postgres(directory)) if audit else None
            arena = Arena(directory, postgres, payees, consumers)
            await arena.open()
            yield arena


class Arena:
    """The servers, and the runs on them, one after the other. STREAMPROC_REDIS_URL is never read."""

    def __init__(
        self,
        directory: Path,
        postgres: Store | None,
        payees: int = job.PAYEES,
        consumers: int = job.CONSUMERS,
    ) -> None:
        self._directory, self._postgres, self._payees = directory, postgres, payees
        self._consumers = consumers
        self._runs = 0
        self.left: Left | None = None
        """What the engine left behind in its last run."""
        self.versions: dict[str, str] = {}

    async def open(self) -> None:
        """Make the schema once; the database of each run is a copy."""
        if self._postgres is None:
            return
        async with self._database("postgres") as db:
            await db.execute(f"CREATE DATABASE {TEMPLATE}")
            self.versions["postgres"] = str(await db.fetchval("SHOW server_version"))
        await prepare(self._dsn(TEMPLATE))

    def _dsn(self, database: str) -> str:
        assert self._postgres is not None
        return f"{self._postgres.url.rpartition('/')[0]}/{database}"

    @asynccontextmanager
    async def _database(self, name: str) -> AsyncIterator[asyncpg.Connection]:
        db = await asyncpg.connect(self._dsn(name))
        try:
            yield db
        finally:
            await db.close()

    async def run(self, name: str, number: int, payouts: int, expected: Counter[str]) -> Run:
        """Do one run of one side, and check it."""
        side = ALL[name]
        self._runs += 1
        async with AsyncExitStack() as stack:
            home = stack.enter_context(home_in(self._directory, f"run-{self._runs}"))
            store, client = await stack.enter_async_context(fresh_valkey(home))
            await self._learn_version(client)
            db = None
            if self._postgres is not None:
                db = await stack.enter_async_context(self._fresh_database(side))
            await side.load(client, payouts, self._payees, host_clock_us())
            seconds, cpu_s, peak_mb = await self._timed(side, store.url, client, db)
            await _check(side, store.url, client, db, expected)
            if side.keeps_all:
                self._compare_with_engine(name, await left(store.url, client, payouts, self._payees))
            log_bytes = await side.log_bytes(client) / payouts
        cpu_us = {name: used * 1e6 / payouts for name, used in cpu_s.items()}
        return Run(name, number, seconds, payouts / seconds, cpu_us, peak_mb, log_bytes)

    def _compare_with_engine(self, side: str, found: Left) -> None:
        if side == ENGINE:
            self.left = found
        elif self.left is not None:
            compare(side, found, self.left)

    async def _learn_version(self, client: Redis) -> None:
        if "valkey" not in self.versions:
            self.versions["valkey"] = await cost.valkey_version(client)

    @asynccontextmanager
    async def _fresh_database(self, side: Side) -> AsyncIterator[asyncpg.Connection]:
        assert self._postgres is not None
        name, template = f"bench_{self._runs}", TEMPLATE if side.keeps_all else "template0"
        async with fresh_database(self._postgres, name, template), self._database(name) as db:
            if not side.keeps_all:
                await db.execute(floor.AUDIT_TABLE)
            yield db

    async def _timed(
        self, side: Side, url: str, client: Redis, db: asyncpg.Connection | None
    ) -> tuple[float, dict[str, float], float]:
        dsn = self._dsn(f"bench_{self._runs}") if db is not None else None
        async with AsyncExitStack() as stack:
            contestants = {
                name: await stack.enter_async_context(_contestant(*command))
                for name, command in side.commands(url, dsn, self._consumers).items()
            }
            servers = await self._servers_cpu_s(client)
            began = time.monotonic()
            for contestant in contestants.values():
                contestant.order(GO)
            await _until_done(side, client, db, contestants.values())
            seconds = time.monotonic() - began
            spent = {name: used - servers[name] for name, used in (await self._servers_cpu_s(client)).items()}
            peak_mb = cost.peak_mb(contestants["worker"].pid)
            used = {name: await contestant.stop() for name, contestant in contestants.items()}
        return seconds, used | spent, peak_mb

    async def _servers_cpu_s(self, client: Redis) -> dict[str, float]:
        used = {"valkey": await cost.valkey_cpu_s(client)}
        if self._postgres is not None:
            used["postgres"] = cost.tree_cpu_s(self._postgres.process.pid)
        return used


class _Contestant:
    """Our end of the pipe to a process that runs `contestant.compete`."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process
        self._other_lines: list[str] = []

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def has_ended(self) -> bool:
        return self._process.returncode is not None

    def order(self, order: bytes) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(order)

    async def stop(self) -> float:
        """CPU seconds since `go`."""
        self.order(STOP)
        return float((await self.answer())["cpu_s"])

    async def answer(self) -> dict[str, float]:
        """Its next line that is an answer; other lines are kept for the error text."""
        assert self._process.stdout is not None
        async with asyncio.timeout(ANSWER_MAX_S):
            while line := (await self._process.stdout.readline()).decode():
                if line.startswith(('{"ready"', '{"cpu_s"')):
                    answer: dict[str, float] = json.loads(line)
                    return answer
                self._other_lines.append(line)
        raise self.failed()

    def failed(self) -> JobFailed:
        return JobFailed(
            f"a contestant ended early; it said: {''.join(self._other_lines[-20:]).strip() or 'nothing'}"
        )


@asynccontextmanager
async def _contestant(module: str, *arguments: str) -> AsyncIterator[_Contestant]:
    """Start a process and wait until it is ready; it is killed at the end."""
    process = await processes.start(
        [sys.executable, "-m", module],
        env=environment(*arguments),
        on_parent_death=signal.SIGKILL,
        output=asyncio.subprocess.PIPE,
        stdin=asyncio.subprocess.PIPE,
    )
    try:
        contestant = _Contestant(process)
        await contestant.answer()
        yield contestant
    finally:
        processes.kill(process)
        await process.wait()


async def _until_done(
    side: Side, client: Redis, db: asyncpg.Connection | None, contestants: Collection[_Contestant]
) -> None:
    try:
        async with asyncio.timeout(RUN_MAX_S):
            while not await _is_done(side, client, db):
                for contestant in contestants:
                    if contestant.has_ended:
                        raise contestant.failed()
                await asyncio.sleep(POLL_S)
    except TimeoutError as problem:
        raise JobFailed(f"{side.name}: not done within {RUN_MAX_S:g} s") from problem


async def _is_done(side: Side, client: Redis, db: asyncpg.Connection | None) -> bool:
    (group,) = await client.xinfo_groups(side.stream)
    if group["lag"] != 0 or group["pending"] != 0:
        return False
    if not side.keeps_all or db is None:
        return True
    shown = await db.fetchval(VIEWS_AT)
    return bool(shown is not None and shown.encode() == group["last-delivered-id"])


async def _check(
    side: Side, url: str, client: Redis, db: asyncpg.Connection | None, expected: Counter[str]
) -> None:
    job.check(side.name, "the stream", await side.outcomes(url, client), expected)
    if db is not None:
        rows = await db.fetch(side.audit_counts)
        job.check(side.name, "Postgres", Counter({row["reason"]: row["count"] for row in rows}), expected)
