"""What `bench latency` found, for people and for machines."""

from collections.abc import Sequence
from statistics import median
from typing import Any

import msgspec

from streamproc.bench import cost
from streamproc.bench.latency import Measured, Run, Spread
from streamproc.bench.report import where

PERCENTILES = ("p50_ms", "p99_ms", "p999_ms", "max_ms")


def latency_document(measured: Measured) -> dict[str, Any]:
    """The JSON of `bench latency --json`: the first rate, and `rates` with each of them. Medians of the rounds."""
    rates = list(dict.fromkeys(run.rate for run in measured.runs))
    found = [_rate([run for run in measured.runs if run.rate == rate]) for rate in rates]
    return {
        "machine": cost.machine(),
        "versions": measured.versions,
        "workers": measured.workers,
        "concurrency": measured.concurrency,
        "seconds": measured.seconds,
        "rounds": len(measured.runs) // len(rates),
        **found[0],
        "rates": found,
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
    return {name: round(median(getattr(one, name) for one in spreads), 3) for name in PERCENTILES}


def latency_table(found: dict[str, Any]) -> tuple[list[str], list[list[object]]]:
    """Columns and rows of the table for people."""
    rows: list[list[object]] = [
        [
            f"{one['rate']:,}/s",
            *(one[name] for name in PERCENTILES),
            one["appended"]["p99_ms"],
            one["handed"]["p99_ms"],
            one["disk_sync"]["p50_ms"],
            one["disk_sync"]["p99_ms"],
            one["cpu_us"]["worker"],
            one["cpu_us"]["valkey"],
        ]
        for one in found["rates"]
    ]
    times = ("p50 ms", "p99", "p99.9", "max", "append p99", "driver p99", "disk p50", "disk p99")
    return ["rate", *times, "worker µs", "valkey µs"], rows


def latency_headline(found: dict[str, Any]) -> list[str]:
    """What the table's numbers mean, in lines below it."""
    samples = sum(one["samples"] for one in found["rates"])
    dropped = sum(one["dropped"] for one in found["rates"])
    return [
        f"from when a payout was due to its decision seen in the log: {samples:,} samples, {dropped} dropped,"
        f" {found['rounds']} rounds of {found['seconds']} s, {found['workers']} workers of {found['concurrency']}"
        " consumers",
        "append: until it is in the log and synced; driver: how late it was itself; disk: its time to sync 1 kB, before"
        " the run; µs are CPU for each payout",
        where(found),
    ]
