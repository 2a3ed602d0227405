"""What `bench scale` and `bench govern` found, for people and for machines."""

from collections.abc import Sequence
from statistics import median
from typing import Any

import msgspec

from streamproc.bench import cost
from streamproc.bench.limits import used_up
from streamproc.bench.pure import PARTS
from streamproc.bench.pure import Measured as Decided
from streamproc.bench.report import where
from streamproc.bench.scale import Measured, Place, Run


def scale_document(measured: Measured) -> dict[str, Any]:
    """The JSON of `bench scale --json`: for each axis its values, each beside the first of them."""
    axes = list(dict.fromkeys(run.axis for run in measured.runs))
    machine = cost.machine()
    cores = int(machine["cores"])
    return {
        "machine": machine,
        "versions": measured.versions,
        "payouts": measured.payouts,
        "rounds": measured.rounds,
        "base": msgspec.to_builtins(Place()),
        "axes": {axis: _axis([run for run in measured.runs if run.axis == axis], cores) for axis in axes},
        "runs": msgspec.to_builtins(measured.runs),
    }


def _axis(runs: Sequence[Run], cores: int) -> list[dict[str, Any]]:
    values = list(dict.fromkeys(run.value for run in runs))
    by_value = {value: [run for run in runs if run.value == value] for value in values}
    first = by_value[values[0]]
    return [_value(value, turns, first) | _used(turns, cores) for value, turns in by_value.items()]


def _used(runs: Sequence[Run], cores: int) -> dict[str, Any]:
    """Who kept the cores busy. Workers go by how busy they were: each turn has others."""
    turns = [_by_place(run.cores) for run in runs]
    used = {name: median(turn[name] for turn in turns) for name in turns[0]}
    everybody = median(run.machine_cores for run in runs)
    return {
        "cores": {name: round(share, 2) for name, share in used.items()},
        "machine_busy": round(everybody, 2),
        "limit": used_up(used, everybody, cores),
    }


def _by_place(cores: dict[str, float]) -> dict[str, float]:
    workers = sorted((share for name, share in cores.items() if name.startswith("worker")), reverse=True)
    others = {name: share for name, share in cores.items() if not name.startswith("worker")}
    return others | {f"worker {place}": share for place, share in enumerate(workers, 1)}


def _value(value: int, runs: Sequence[Run], first: Sequence[Run]) -> dict[str, Any]:
    rates = [run.payouts_per_s for run in runs]
    # Of neighbours in time, so that a noisy minute is in both.
    costs = [_cost(one) / _cost(other) for one, other in zip(runs, first, strict=True)]
    speeds = [one.payouts_per_s / other.payouts_per_s for one, other in zip(runs, first, strict=True)]
    return {
        "value": value,
        "payouts_per_s": round(median(rates)),
        "payouts_per_s_min": round(min(rates)),
        "payouts_per_s_max": round(max(rates)),
        "cpu_us": {part: round(median(run.cpu_us[part] for run in runs), 1) for part in runs[0].cpu_us},
        "cost_ratio": round(median(costs), 3),
        "cost_ratio_min": round(min(costs), 3),
        "cost_ratio_max": round(max(costs), 3),
        "speed_ratio": round(median(speeds), 3),
    }


def _cost(run: Run) -> float:
    return sum(run.cpu_us.values())


def scale_table(found: dict[str, Any]) -> tuple[list[str], list[list[object]]]:
    """Columns and rows of the table for people."""
    rows: list[list[object]] = [
        [
            f"{axis} {one['value']:,}",
            f"{one['payouts_per_s']:,}",
            one["cpu_us"]["worker"],
            one["cpu_us"]["valkey"],
            f"{one['cost_ratio']:.2f}",
            f"{one['cost_ratio_min']:.2f} to {one['cost_ratio_max']:.2f}",
            f"{one['speed_ratio']:.2f}",
            one["limit"],
        ]
        for axis, values in found["axes"].items()
        for one in values
    ]
    return ["", "payouts/s", "worker µs", "valkey µs", "cost", "spread", "speed", "used up"], rows


def scale_headline(found: dict[str, Any]) -> list[str]:
    """What the table's numbers mean, in lines below it."""
    base = ", ".join(f"{name} {value:,}" for name, value in found["base"].items())
    return [
        "cost: CPU of workers and Valkey for each payout, and speed, both beside the first line of the same kind;"
        f" {found['rounds']} rounds in turns of {found['payouts']:,} payouts",
        f"what is not varied: {base}",
        where(found),
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
    rates, cpu_us = [run.payouts_per_s for run in runs], [run.cpu_us for run in runs]
    return {
        "payouts_per_s": round(median(rates)),
        "payouts_per_s_min": round(min(rates)),
        "payouts_per_s_max": round(max(rates)),
        "payouts_per_core_s": round(1e6 / median(cpu_us)),
        "cpu_us": round(median(cpu_us), 1),
        "cpu_us_min": round(min(cpu_us), 1),
    }


def govern_table(found: dict[str, Any]) -> tuple[list[str], list[list[object]]]:
    """Columns and rows of the table for people."""
    rows: list[list[object]] = [
        [
            part,
            f"{found[part]['payouts_per_s']:,}",
            f"{found[part]['payouts_per_s_min']:,} to {found[part]['payouts_per_s_max']:,}",
            f"{found[part]['payouts_per_core_s']:,}",
            found[part]["cpu_us"],
            found[part]["cpu_us_min"],
        ]
        for part in PARTS
    ]
    return ["", "payouts/s", "spread", "per core", "µs", "least µs"], rows


def govern_headline(found: dict[str, Any]) -> list[str]:
    """What the table's numbers mean, in lines below it."""
    return [
        "rules: all of them on a case; straight: an entry decoded, the rules asked, events and record encoded; stages:"
        " the same by the whole chain; nothing is read or written",
        f"{found['payouts']:,} payouts in {found['rounds']} rounds; per core: for each second of CPU",
        where(found),
    ]
