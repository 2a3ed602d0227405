"""Results of `bench scale` and `bench govern`, as JSON and as text."""

from collections.abc import Sequence
from statistics import median
from typing import Any

import msgspec

from streamproc.bench import cost
from streamproc.bench.limits import used_up
from streamproc.bench.pure import PARTS
from streamproc.bench.pure import Measured as Decided
from streamproc.bench.report import median_and_range, range_cells, where
from streamproc.bench.scale import Measured, Point, Run


def scale_document(measured: Measured) -> dict[str, Any]:
    """The JSON of `bench scale --json`: the values of each axis, each compared with the first."""
    axes = list(dict.fromkeys(run.axis for run in measured.runs))
    machine = cost.machine()
    cores = int(machine["cores"])
    return {
        "machine": machine,
        "versions": measured.versions,
        "payouts": measured.payouts,
        "rounds": measured.rounds,
        "base": msgspec.to_builtins(Point()),
        "axes": {axis: _axis([run for run in measured.runs if run.axis == axis], cores) for axis in axes},
        "runs": msgspec.to_builtins(measured.runs),
    }


def _axis(runs: Sequence[Run], cores: int) -> list[dict[str, Any]]:
    values = list(dict.fromkeys(run.value for run in runs))
    by_value = {value: [run for run in runs if run.value == value] for value in values}
    first = by_value[values[0]]
    return [_value(value, turns, first) | _used(turns, cores) for value, turns in by_value.items()]


def _used(runs: Sequence[Run], cores: int) -> dict[str, Any]:
    """How busy each process kept the cores. Workers are ordered by that, since each turn starts new ones."""
    turns = [_by_rank(run.cores) for run in runs]
    used = {name: median(turn[name] for turn in turns) for name in turns[0]}
    machine_busy = median(run.machine_cores for run in runs)
    return {
        "cores": {name: round(share, 2) for name, share in used.items()},
        "machine_busy": round(machine_busy, 2),
        "limit": used_up(used, machine_busy, cores),
    }


def _by_rank(cores: dict[str, float]) -> dict[str, float]:
    workers = sorted((share for name, share in cores.items() if name.startswith("worker")), reverse=True)
    others = {name: share for name, share in cores.items() if not name.startswith("worker")}
    return others | {f"worker {rank}": share for rank, share in enumerate(workers, 1)}


def _value(value: int, runs: Sequence[Run], first: Sequence[Run]) -> dict[str, Any]:
    # Runs of the same round are compared, so that a noisy minute is in both.
    pairs = list(zip(runs, first, strict=True))
    costs = [_cost(run) / _cost(base) for run, base in pairs]
    speeds = [run.payouts_per_s / base.payouts_per_s for run, base in pairs]
    return {
        "value": value,
        **median_and_range("payouts_per_s", [run.payouts_per_s for run in runs]),
        "cpu_us": {part: round(median(run.cpu_us[part] for run in runs), 1) for part in runs[0].cpu_us},
        **median_and_range("cost_ratio", costs, 3),
        "speed_ratio": round(median(speeds), 3),
    }


def _cost(run: Run) -> float:
    return sum(run.cpu_us.values())


def scale_table(result: dict[str, Any]) -> tuple[list[str], list[list[object]]]:
    """Columns and rows of the table."""
    rows: list[list[object]] = [
        [
            f"{axis} {item['value']:,}",
            f"{item['payouts_per_s']:,}",
            item["cpu_us"]["worker"],
            item["cpu_us"]["valkey"],
            f"{item['cost_ratio']:.2f}",
            f"{item['cost_ratio_min']:.2f} to {item['cost_ratio_max']:.2f}",
            f"{item['speed_ratio']:.2f}",
            item["limit"],
        ]
        for axis, values in result["axes"].items()
        for item in values
    ]
    return ["", "payouts/s", "worker µs", "valkey µs", "cost", "spread", "speed", "used up"], rows


def scale_headline(result: dict[str, Any]) -> list[str]:
    """The lines below the table, which explain its numbers."""
    base = ", ".join(f"{name} {value:,}" for name, value in result["base"].items())
    return [
        "cost: CPU of workers and Valkey per payout; cost and speed are relative to the first value of the same axis;"
        f" {result['rounds']} rounds in turns of {result['payouts']:,} payouts",
        f"where not varied: {base}",
        where(result),
    ]


# ---- bench govern -------------------------------------------------------------------------


def govern_document(measured: Decided) -> dict[str, Any]:
    """The JSON of `bench govern --json`."""
    return {
        "machine": cost.machine(),
        "versions": measured.versions,
        "payouts": measured.payouts,
        "rounds": measured.rounds,
        "outcomes": measured.outcomes,
        **{part: _part(measured, part) for part in PARTS},
        "runs": msgspec.to_builtins(measured.runs),
    }


def _part(measured: Decided, part: str) -> dict[str, Any]:
    runs = [run for run in measured.runs if run.part == part]
    cpu_us = [run.cpu_us for run in runs]
    return {
        **median_and_range("payouts_per_s", [run.payouts_per_s for run in runs]),
        "payouts_per_core_s": round(1e6 / median(cpu_us)),
        "cpu_us": round(median(cpu_us), 1),
        "cpu_us_min": round(min(cpu_us), 1),
    }


def govern_table(result: dict[str, Any]) -> tuple[list[str], list[list[object]]]:
    """Columns and rows of the table."""
    rows: list[list[object]] = [
        [
            part,
            *range_cells(result[part]),
            f"{result[part]['payouts_per_core_s']:,}",
            result[part]["cpu_us"],
            result[part]["cpu_us_min"],
        ]
        for part in PARTS
    ]
    return ["", "payouts/s", "spread", "per core", "µs", "least µs"], rows


def govern_headline(result: dict[str, Any]) -> list[str]:
    """The lines below the table, which explain its numbers."""
    return [
        "rules: all rules on a case; fast_path: from decoding an entry to encoding events and record;"
        " stages: the same by the whole chain; nothing is read or written",
        f"{result['payouts']:,} payouts in {result['rounds']} rounds; per core: per second of CPU",
        where(result),
    ]
