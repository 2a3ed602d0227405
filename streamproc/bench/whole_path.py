"""`bench e2e`: the whole path at full load, and which process uses how much of the machine.

Workers and projector are started as in production. The driver sends payouts as fast as they are decided and shown: into
the log, or with `serve` as signed webhooks over HTTP to `streamproc serve`. A run ends when Postgres shows every entry.
Then the decisions in the log and in the audit are counted, and `streamproc audit verify` recomputes the archive's
chain.
"""

from collections import Counter
from contextlib import AsyncExitStack
from pathlib import Path

import asyncpg
from msgspec import Struct

from streamproc import embedded
from streamproc.bench import cost, engine, job
from streamproc.bench.driver import Flooded
from streamproc.bench.driving import driven
from streamproc.bench.rig import Announce, fresh_database, home_in, public_directory
from streamproc.bench.site import Site, site
from streamproc.embedded import Store
from streamproc.log.names import Names

RUN_MAX_S = 900.0


class Run(Struct, frozen=True):
    """One run. CPU in µs per payout, by process, all workers together; bytes in Redis per payout."""

    round: int
    seconds: float
    payouts_per_s: float
    decided_per_s: float
    cpu_us: dict[str, float]
    cores_used: float
    worker_peak_mb: float
    projector_peak_mb: float
    log_bytes: float
    redis_bytes: float
    aof_bytes: float
    versions: dict[str, str]
    busiest_worker_us: float
    machine_cores: float
    """Cores that were busy with any program on the machine."""


class Measured(Struct, frozen=True):
    """All runs."""

    payouts: int
    workers: int
    concurrency: int
    serve: bool
    """Whether payouts came over HTTP."""
    outcomes: dict[str, int]
    versions: dict[str, str]
    runs: list[Run]


class Crew(Struct, frozen=True):
    """The processes that take part."""

    workers: int = 1
    concurrency: int = 2
    serve: bool = False


async def measure(payouts: int, rounds: int, *, crew: Crew, announce: Announce) -> Measured:
    """Measure. Raises JobFailed if a run does not finish or its outcomes are wrong."""
    runs, versions = list[Run](), cost.package_versions()
    with public_directory() as directory:
        async with embedded.postgres(directory) as postgres:
            for number in range(1, rounds + 1):
                announce(f"round {number} of {rounds}: {payouts:,} payouts")
                with home_in(directory, f"run-{number}") as home:
                    async with fresh_database(postgres, f"run_{number}") as dsn:
                        fresh = postgres._replace(url=dsn)
                        runs.append(await _run(home, fresh, payouts, number, crew, announce))
                versions |= runs[-1].versions
    outcomes = dict(sorted(job.expected(payouts).items()))
    return Measured(payouts, crew.workers, crew.concurrency, crew.serve, outcomes, versions, runs)


async def _run(home: Path, postgres: Store, payouts: int, number: int, crew: Crew, announce: Announce) -> Run:
    async with AsyncExitStack() as stack:
        at = await stack.enter_async_context(site(home, postgres=postgres))
        workers = await at.workers(stack, crew.workers, crew.concurrency)
        projector = await at.projector(stack)
        front = [await at.serve(stack)] if crew.serve else []
        before, empty = await _usage(at, postgres), await _sizes(at)
        for role in (*workers, projector, *front):
            role.begin()
        flooded = await driven(Flooded, "flood", at.url, at.dsn, payouts, at.port, within_s=RUN_MAX_S)
        after, full = await _usage(at, postgres), await _sizes(at)
        worker_usages, projector_usage = [role.used() for role in workers], projector.used()
        serve_s = sum(role.used().cpu_s for role in front)
        announce(f"round {number}: checking the archive")
        await _check(at, flooded, payouts)
    each_us = 1e6 / payouts
    cpu_s = {
        "producer": flooded.cpu_s,
        **({"serve": serve_s} if crew.serve else {}),
        "worker": sum(usage.cpu_s for usage in worker_usages),
        "projector": projector_usage.cpu_s,
        **{name: after[name] - before[name] for name in after},
    }
    sizes = {name: (full[name] - empty[name]) / payouts for name in full}
    return Run(
        round=number,
        seconds=flooded.shown_s,
        payouts_per_s=payouts / flooded.shown_s,
        decided_per_s=payouts / flooded.decided_s,
        cpu_us={name: used * each_us for name, used in cpu_s.items()},
        cores_used=sum(cpu_s.values()) / flooded.shown_s,
        worker_peak_mb=max(usage.peak_mb for usage in worker_usages),
        projector_peak_mb=projector_usage.peak_mb,
        log_bytes=sizes["log"],
        redis_bytes=sizes["redis"],
        aof_bytes=sizes["aof"],
        versions=at.versions,
        busiest_worker_us=max(usage.cpu_s for usage in worker_usages) * each_us,
        machine_cores=flooded.machine_s / flooded.shown_s,
    )


async def _usage(at: Site, postgres: Store) -> dict[str, float]:
    return {"valkey": await at.server_cpu_s(), "postgres": cost.tree_cpu_s(postgres.process.pid)}


async def _sizes(at: Site) -> dict[str, int]:
    """Bytes of the log, of all data in Redis, and of the append-only file."""
    log = await at.client.execute_command("MEMORY", "USAGE", Names(0).log, "SAMPLES", 0)
    memory, disk = await at.client.info("memory"), await at.client.info("persistence")
    return {"log": int(log), "redis": int(memory["used_memory"]), "aof": int(disk["aof_current_size"])}


async def _check(at: Site, flooded: Flooded, payouts: int) -> None:
    """Raise JobFailed unless the decisions in log and audit are right and the archive's chain is sound."""
    expected = job.expected(payouts)
    job.check("engine", "the stream", Counter(flooded.outcomes), expected)
    db = await asyncpg.connect(at.dsn)
    try:
        rows = await db.fetch(engine.AUDIT_COUNTS)
    finally:
        await db.close()
    job.check("engine", "Postgres", Counter({row["reason"]: row["count"] for row in rows}), expected)
    await at.command("audit", "verify")
