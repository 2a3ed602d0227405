"""Results of `bench floor` and `bench replay`, as JSON and as text: medians, spreads, ratios within a round."""

from collections.abc import Sequence
from statistics import median
from typing import Any

import msgspec

from streamproc.bench import cost
from streamproc.bench.contest import Measured, Run
from streamproc.bench.replaying import Measured as Replayed
from streamproc.bench.replaying import Part
from streamproc.bench.sides import ALL, ENGINE, FLOOR, RIVAL, RIVAL_TYPED, RIVAL_USUAL, RIVAL_WHOLE, WHOLE

RATIOS = {
    FLOOR: ("ratio", "engine / floor"),
    WHOLE: ("ratio_whole", "engine / whole floor, which leaves the same behind"),
    RIVAL: ("ratio_to_faststream", "engine / FastStream"),
    RIVAL_WHOLE: ("ratio_to_faststream_whole", "engine / FastStream that leaves the same behind"),
    RIVAL_TYPED: ("ratio_to_faststream_typed", "engine / FastStream's batches with its defaults"),
    RIVAL_USUAL: ("ratio_to_faststream_usual", "engine / FastStream in its usual idiom"),
}
"""The sides with which the engine is compared: the ratio's name in JSON, and in text."""
PARTS = ("worker", "archive", "valkey", "postgres")


def document(measured: Measured) -> dict[str, Any]:
    """The JSON of `bench floor --json`."""
    by_side = {side: [run for run in measured.runs if run.side == side] for side in ALL}
    by_side = {side: runs for side, runs in by_side.items() if runs}
    ratios: dict[str, float] = {}
    for other, (name, _) in RATIOS.items():
        if other in by_side:
            ratios |= median_and_range(name, _ratios(by_side, other), 3)
    return {
        "machine": cost.machine(),
        "versions": measured.versions,
        "payouts": measured.payouts,
        "payload_bytes": measured.payload_bytes,
        "rounds": len(by_side[ENGINE]),
        "audit": measured.audit,
        "payees": measured.payees,
        "consumers": measured.consumers,
        "outcomes": measured.outcomes,
        **{side: _side(runs) for side, runs in by_side.items()},
        **ratios,
        "runs": msgspec.to_builtins(measured.runs),
    }


def _ratios(by_side: dict[str, list[Run]], other: str) -> list[float]:
    """Speed of the engine by that of another side, of the two runs in each round, so that a noisy minute is in both."""
    pairs = zip(by_side[ENGINE], by_side[other], strict=True)
    return [engine_run.payouts_per_s / other_run.payouts_per_s for engine_run, other_run in pairs]


def median_and_range(name: str, values: Sequence[float], digits: int | None = None) -> dict[str, float]:
    """Median, minimum and maximum under these names, rounded to so many digits; None: to integers."""
    figures = {name: median(values), f"{name}_min": min(values), f"{name}_max": max(values)}
    return {figure: round(value, digits) for figure, value in figures.items()}


def range_cells(result: dict[str, Any], name: str = "payouts_per_s") -> tuple[str, str]:
    """The cells of a table for the median and for its spread."""
    return f"{result[name]:,}", f"{result[f'{name}_min']:,} to {result[f'{name}_max']:,}"


def _side(runs: Sequence[Run]) -> dict[str, Any]:
    return {
        **median_and_range("payouts_per_s", [run.payouts_per_s for run in runs]),
        "cpu_us": {
            part: round(median(run.cpu_us[part] for run in runs), 1)
            for part in PARTS
            if part in runs[0].cpu_us
        },
        "worker_peak_mb": round(max(run.peak_mb for run in runs), 1),
        "log_bytes_per_payout": round(median(run.log_bytes for run in runs)),
    }


def table(result: dict[str, Any]) -> tuple[list[str], list[list[object]]]:
    """Columns and rows of the table."""
    parts = [part for part in PARTS if part in result["engine"]["cpu_us"]]
    rows: list[list[object]] = [
        [
            side,
            *range_cells(result[side]),
            *(result[side]["cpu_us"].get(part) for part in parts),
        ]
        for side in _sides(result)
    ]
    return ["side", "payouts/s", "spread", *(f"{part} µs" for part in parts)], rows


def _sides(result: dict[str, Any]) -> list[str]:
    return [side for side in ALL if side in result]


def headline(result: dict[str, Any]) -> list[str]:
    """The lines below the table, which explain its numbers."""
    floor_ratio, *other_ratios = [
        f"{what}: {result[name]:.2f} (rounds: {result[f'{name}_min']:.2f} to {result[f'{name}_max']:.2f})"
        for name, what in RATIOS.values()
        if name in result
    ]
    return [
        f"{floor_ratio},"
        f" {result['payouts']:,} payouts in {result['rounds']} rounds,"
        f" {'with' if result['audit'] else 'without'} audit, to {result['payees'] or 'always new'} payees;"
        " µs are CPU per payout",
        *other_ratios,
        "; ".join(
            f"{side}: the worker had {result[side]['worker_peak_mb']:g} MB at most, the log takes"
            f" {result[side]['log_bytes_per_payout']:,} bytes of Redis per payout"
            for side in _sides(result)
        ),
        where(result),
    ]


def where(result: dict[str, Any]) -> str:
    """The machine and the versions, in one line."""
    versions = ", ".join(f"{name} {version}" for name, version in result["versions"].items())
    return f"{result['machine']['cpu']}, {result['machine']['cores']} cores; {versions}"


# ---- bench replay -------------------------------------------------------------------------


def replay_document(measured: Replayed) -> dict[str, Any]:
    """The JSON of `bench replay --json`."""
    rounds = measured.rounds
    return {
        "machine": cost.machine(),
        "versions": measured.versions,
        "payouts": measured.payouts,
        "events": rounds[0].archive.events,
        "entries": rounds[0].archive.entries,
        "rounds": len(rounds),
        "jobs": measured.jobs,
        "archive": _part([each.archive for each in rounds]),
        "rebuild": _part([each.rebuild for each in rounds])
        | {"with_checks_and_swap_s": round(median(each.whole_s for each in rounds), 2)},
        "naive": _part([each.naive for each in rounds]),
        "memory": {
            "builder_peak_mb": round(max(each.rebuild.peak_mb for each in rounds), 1),
            "builder_peak_mb_at_a_tenth": round(measured.smaller.peak_mb, 1),
            "events_at_a_tenth": measured.smaller.events,
        },
        "runs": msgspec.to_builtins(rounds),
    }


def _part(parts: Sequence[Part]) -> dict[str, Any]:
    result: dict[str, Any] = {
        **median_and_range("events_per_s", [part.events_per_s for part in parts]),
        "events_per_core_s": round(median(part.events_per_core_s for part in parts)),
        "cpu_us": {name: round(median(part.cpu_us[name] for part in parts), 1) for name in parts[0].cpu_us},
    }
    if parts[0].entries:
        result["entries_per_s"] = round(median(part.entries / part.seconds for part in parts))
    return result


def replay_table(result: dict[str, Any]) -> tuple[list[str], list[list[object]]]:
    """Columns and rows of the table."""
    rows: list[list[object]] = [
        [
            part,
            *range_cells(result[part], "events_per_s"),
            f"{result[part]['events_per_core_s']:,}",
            f"{result[part]['entries_per_s']:,}" if "entries_per_s" in result[part] else None,
            result[part]["cpu_us"]["ours"],
            result[part]["cpu_us"]["postgres"],
        ]
        for part in ("archive", "rebuild", "naive")
    ]
    return ["part", "events/s", "spread", "per core", "entries/s", "ours µs", "postgres µs"], rows


def replay_headline(result: dict[str, Any]) -> list[str]:
    """The lines below the table, which explain its numbers."""
    memory = result["memory"]
    times = result["rebuild"]["events_per_s"] / result["naive"]["events_per_s"]
    return [
        f"{result['events']:,} events in {result['entries']:,} entries of {result['payouts']:,} payouts,"
        f" {result['rounds']} rounds; {result['jobs']} builders; a rebuild is {times:.0f} times as fast as one event"
        f" per transaction, and takes {result['rebuild']['with_checks_and_swap_s']} s with its checks and the swap",
        f"peak memory of a builder: {memory['builder_peak_mb']:g} MB; with a tenth of the history"
        f" {memory['builder_peak_mb_at_a_tenth']:g} MB",
        "per core: per second of CPU, ours and that of Postgres together; µs are CPU per event",
        where(result),
    ]
