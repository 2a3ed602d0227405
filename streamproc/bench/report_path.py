"""Results of `bench latency` and `bench e2e`, as JSON and as text."""

from collections.abc import Sequence
from statistics import median
from typing import Any

import msgspec

from streamproc.bench import cost
from streamproc.bench.latency import Measured, Run, Spread
from streamproc.bench.limits import used_up
from streamproc.bench.report import median_and_range, range_cells, where
from streamproc.bench.whole_path import Measured as Whole

SIZES = ("log_bytes", "redis_bytes", "aof_bytes")
PERCENTILES = ("p50_ms", "p99_ms", "p999_ms", "max_ms")


def latency_document(measured: Measured) -> dict[str, Any]:
    """The JSON of `bench latency --json`: figures of the first rate, and `rates` with all. Medians of the rounds."""
    rates = list(dict.fromkeys(run.rate for run in measured.runs))
    figures = [_rate([run for run in measured.runs if run.rate == rate]) for rate in rates]
    return {
        "machine": cost.machine(),
        "versions": measured.versions,
        "workers": measured.workers,
        "concurrency": measured.concurrency,
        "seconds": measured.seconds,
        "rounds": len(measured.runs) // len(rates),
        **figures[0],
        "rates": figures,
        "runs": msgspec.to_builtins(measured.runs),
    }


def _rate(runs: Sequence[Run]) -> dict[str, Any]:
    decided = _medians([run.decided for run in runs])
    p99 = [run.decided.p99_ms for run in runs]
    return {
        "rate": runs[0].rate,
        **decided,
        "p99_ms_min": round(min(p99), 3),
        "p99_ms_max": round(max(p99), 3),
        "samples": sum(run.samples for run in runs),
        "dropped": sum(run.dropped for run in runs),
        "appended": _medians([run.appended for run in runs]),
        "handed": _medians([run.handed for run in runs]),
        "disk_sync": _medians([run.disk_sync for run in runs]),
        "cpu_us": {part: round(median(run.cpu_us[part] for run in runs), 1) for part in runs[0].cpu_us},
        "worker_peak_mb": round(max(run.worker_peak_mb for run in runs), 1),
    }


def _medians(spreads: Sequence[Spread]) -> dict[str, float]:
    return {name: round(median(getattr(times, name) for times in spreads), 3) for name in PERCENTILES}


def latency_table(result: dict[str, Any]) -> tuple[list[str], list[list[object]]]:
    """Columns and rows of the table."""
    rows: list[list[object]] = [
        [
            f"{rate['rate']:,}/s",
            *(rate[name] for name in PERCENTILES),
            rate["appended"]["p99_ms"],
            rate["handed"]["p99_ms"],
            rate["disk_sync"]["p50_ms"],
            rate["disk_sync"]["p99_ms"],
            rate["cpu_us"]["worker"],
            rate["cpu_us"]["valkey"],
        ]
        for rate in result["rates"]
    ]
    times = ("p50 ms", "p99", "p99.9", "max", "append p99", "driver p99", "disk p50", "disk p99")
    return ["rate", *times, "worker µs", "valkey µs"], rows


def latency_headline(result: dict[str, Any]) -> list[str]:
    """The lines below the table, which explain its numbers."""
    samples = sum(rate["samples"] for rate in result["rates"])
    dropped = sum(rate["dropped"] for rate in result["rates"])
    return [
        f"from the time when a payout was due until its decision was seen in the log: {samples:,} samples,"
        f" {dropped} dropped, {result['rounds']} rounds of {result['seconds']} s, {result['workers']} workers of"
        f" {result['concurrency']} consumers",
        "append: until the payout was in the log and synced; driver: how late the driver itself was; disk: time to sync"
        " 1 kB, before the run; µs are CPU per payout",
        where(result),
    ]


# ---- bench e2e ----------------------------------------------------------------------------


def whole_document(measured: Whole) -> dict[str, Any]:
    """The JSON of `bench e2e --json`. `busy` is in cores, by kind of process; `limit` is what was used up."""
    runs, machine = measured.runs, cost.machine()
    cpu_us = {part: median(run.cpu_us[part] for run in runs) for part in runs[0].cpu_us}
    busy = {part: median(run.cpu_us[part] * run.payouts_per_s / 1e6 for run in runs) for part in cpu_us}
    busiest = median(run.busiest_worker_us * run.payouts_per_s / 1e6 for run in runs)
    machine_busy, cores = median(run.machine_cores for run in runs), int(machine["cores"])
    return {
        "machine": machine,
        "versions": measured.versions,
        "payouts": measured.payouts,
        "workers": measured.workers,
        "concurrency": measured.concurrency,
        "serve": measured.serve,
        "rounds": len(runs),
        "outcomes": measured.outcomes,
        **median_and_range("payouts_per_s", [run.payouts_per_s for run in runs]),
        "decided_per_s": round(median(run.decided_per_s for run in runs)),
        "cpu_us": {part: round(us, 1) for part, us in cpu_us.items()},
        "busy": {part: round(share, 2) for part, share in busy.items()},
        "busiest_worker": round(busiest, 2),
        "machine_busy": round(machine_busy, 2),
        "limit": used_up(_by_worker(busy, measured.workers, busiest), machine_busy, cores),
        "possible_payouts_per_s": round(cores * 1e6 / sum(cpu_us.values())),
        "worker_peak_mb": round(max(run.worker_peak_mb for run in runs), 1),
        "projector_peak_mb": round(max(run.projector_peak_mb for run in runs), 1),
        **{name: round(median(getattr(run, name) for run in runs)) for name in SIZES},
        "runs": msgspec.to_builtins(runs),
    }


def _by_worker(busy: dict[str, float], workers: int, busiest: float) -> dict[str, float]:
    """`busy` by single worker, since a process uses one core at most: the busiest, and the mean of the others."""
    if workers == 1:
        return busy
    rest = busy["worker"] - busiest
    return {**busy, "worker": busiest, **{f"worker {n}": rest / (workers - 1) for n in range(2, workers + 1)}}


def whole_table(result: dict[str, Any]) -> tuple[list[str], list[list[object]]]:
    """Columns and rows of the table."""
    rows: list[list[object]] = [
        [part, us, result["busy"][part], result.get(f"{part}_peak_mb")]
        for part, us in result["cpu_us"].items()
    ]
    rows.append(
        ["all", round(sum(result["cpu_us"].values()), 1), round(sum(result["busy"].values()), 2), None]
    )
    return ["process", "µs a payout", "cores", "peak MB"], rows


def whole_headline(result: dict[str, Any]) -> list[str]:
    """The lines below the table: the throughput, and what the table's numbers mean."""
    per_s, range_per_s = range_cells(result)
    way = "taken over HTTP, appended" if result["serve"] else "appended"
    return [
        f"{per_s} payouts/s ({range_per_s}) {way}, decided, archived, chained and shown;"
        f" {result['payouts']:,} payouts in {result['rounds']} rounds, {result['workers']} workers of"
        f" {result['concurrency']} consumers; decided: {result['decided_per_s']:,}/s",
        f"used up: {result['limit']} (the busiest worker {result['busiest_worker']:.2f} of a core, the whole machine"
        f" {result['machine_busy']:.2f}); with {result['machine']['cores']} cores and this CPU per payout at most"
        f" {result['possible_payouts_per_s']:,}/s",
        f"bytes per payout: {result['log_bytes']:,} in the log, {result['redis_bytes']:,} in Redis with records"
        f" and keys, {result['aof_bytes']:,} in its file",
        where(result),
    ]
