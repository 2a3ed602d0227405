"""`bench latency`: the time that a payout waits for its decision, at fixed rates.

The load is an open loop, with real workers and a log that is synced to disk. Each run has its own servers. Times are
counted from when a payout was due, so a stall is charged to every payout that waits for it. The disk's own sync time is
measured too, since each payout waits for three syncs: of its append, its delivery and its decision.
"""

from collections import Counter
from collections.abc import Sequence
from contextlib import AsyncExitStack
from pathlib import Path

from msgspec import Struct

from streamproc.bench import cost, job
from streamproc.bench.driver import STALLED_MAX_S, Paced
from streamproc.bench.driving import driven
from streamproc.bench.rig import Announce, home_in, public_directory
from streamproc.bench.site import site

WARM_S = 2
"""Seconds that are not counted, since the first batches read policies and reputations."""
SETUP_MAX_S = 60.0
"""Limit for the driver to make its payouts and to print its result."""


class Spread(Struct, frozen=True):
    """The times in ms that half, 99 %, 99.9 % and all of the payouts did not exceed."""

    p50_ms: float
    p99_ms: float
    p999_ms: float
    max_ms: float


class Run(Struct, frozen=True):
    """One run at one rate. `handed` is how late the driver itself was. CPU in µs per payout."""

    rate: int
    round: int
    samples: int
    dropped: int
    handed: Spread
    appended: Spread
    decided: Spread
    disk_sync: Spread
    cpu_us: dict[str, float]
    worker_peak_mb: float


class Measured(Struct, frozen=True):
    """All runs in their order."""

    seconds: int
    workers: int
    concurrency: int
    versions: dict[str, str]
    runs: list[Run]


async def measure(
    rates: Sequence[int], seconds: int, rounds: int, *, workers: int, concurrency: int, announce: Announce
) -> Measured:
    """Measure every rate in each round. Raises JobFailed if a payout is not decided, or decided wrongly."""
    runs, versions = list[Run](), cost.package_versions()
    with public_directory() as directory:
        for number in range(1, rounds + 1):
            for rate in rates:
                announce(f"round {number} of {rounds}: {rate} payouts per second for {seconds} s")
                with home_in(directory, f"run-{len(runs) + 1}") as home:
                    runs.append(await _run(home, rate, seconds, number, (workers, concurrency), versions))
    return Measured(seconds, workers, concurrency, versions, runs)


async def _run(
    home: Path, rate: int, seconds: int, number: int, crew: tuple[int, int], versions: dict[str, str]
) -> Run:
    disk = cost.disk_sync_ms(home)
    workers, concurrency = crew
    warm, counted = rate * WARM_S, rate * seconds
    async with AsyncExitStack() as stack:
        at = await stack.enter_async_context(site(home))
        versions |= at.versions
        roles = await at.workers(stack, workers, concurrency)
        server_s = await at.server_cpu_s()
        for role in roles:
            role.begin()
        within_s = SETUP_MAX_S + WARM_S + seconds + STALLED_MAX_S
        paced = await driven(Paced, "pace", at.url, rate, warm, counted, within_s=within_s)
        used = [role.used() for role in roles]
        server_s = await at.server_cpu_s() - server_s
    job.check("engine", "the stream", Counter(paced.outcomes), job.expected(warm + counted))
    each_us = 1e6 / (warm + counted)
    return Run(
        rate=rate,
        round=number,
        samples=len(paced.decided_us),
        dropped=counted - len(paced.decided_us),
        handed=spread([us / 1000 for us in paced.handed_us]),
        appended=spread([us / 1000 for us in paced.appended_us]),
        decided=spread([us / 1000 for us in paced.decided_us]),
        disk_sync=spread(disk),
        cpu_us={"worker": sum(usage.cpu_s for usage in used) * each_us, "valkey": server_s * each_us},
        worker_peak_mb=max(usage.peak_mb for usage in used),
    )


def spread(times_ms: Sequence[float]) -> Spread:
    """The percentiles of these times; each is the time of one payout, none is interpolated."""
    ordered = sorted(times_ms)
    return Spread(*(cost.at_share(ordered, share) for share in (0.5, 0.99, 0.999, 1.0)))
