"""Numbers for people and for machines: medians, the spread beside them, and the ratio of neighbours in time."""

from collections.abc import Sequence
from statistics import median
from typing import Any

import msgspec

from streamproc.bench import cost
from streamproc.bench.contest import Measured, Run
from streamproc.bench.replaying import Measured as Replayed
from streamproc.bench.replaying import Part
from streamproc.bench.sides import ALL, ENGINE, FLOOR, RIVAL, RIVAL_USUAL, RIVAL_WHOLE, WHOLE

RATIOS = {
    FLOOR: ("ratio", "engine / floor"),
    WHOLE: ("ratio_whole", "engine / whole floor, which leaves the same behind"),
    RIVAL: ("ratio_to_faststream", "engine / FastStream"),
    RIVAL_WHOLE: ("ratio_to_faststream_whole", "engine / FastStream that leaves the same behind"),
    RIVAL_USUAL: ("ratio_to_faststream_usual", "engine / FastStream in its usual idiom"),
}
"""Whom the engine is held against: the name in JSON, and for people."""
PARTS = ("worker", "archive", "valkey", "postgres")


def document(measured: Measured) -> dict[str, Any]:
    """The JSON of `bench floor --json`."""
    by_side = {side: [run for run in measured.runs if run.side == side] for side in ALL}
    by_side = {side: runs for side, runs in by_side.items() if runs}
    ratios: dict[str, float] = {}
    for other, (name, _) in RATIOS.items():
        if other in by_side:
            ratios |= _spread(name, _ratios(by_side, other))
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
    """Engine to another, of each round's two runs, so that a noisy minute is in both."""
    pairs = zip(by_side[other], by_side[ENGINE], strict=True)
    return [ours.payouts_per_s / theirs.payouts_per_s for theirs, ours in pairs]


def _spread(name: str, values: Sequence[float]) -> dict[str, float]:
    return {
        name: round(median(values), 3),
        f"{name}_min": round(min(values), 3),
        f"{name}_max": round(max(values), 3),
    }


def _side(runs: Sequence[Run]) -> dict[str, Any]:
    rates = [run.payouts_per_s for run in runs]
    return {
        "payouts_per_s": round(median(rates)),
        "payouts_per_s_min": round(min(rates)),
        "payouts_per_s_max": round(max(rates)),
        "cpu_us": {
            part: round(median(run.cpu_us[part] for run in runs), 1)
            for part in PARTS
            if part in runs[0].cpu_us
        },
        "worker_peak_mb": round(max(run.peak_mb for run in runs), 1),
        "log_bytes_per_payout": round(median(run.log_bytes for run in runs)),
    }


def table(found: dict[str, Any]) -> tuple[list[str], list[list[object]]]:
    """Columns and rows of the table for people."""
    parts = [part for part in PARTS if part in found["engine"]["cpu_us"]]
    rows: list[list[object]] = [
        [
            side,
            f"{found[side]['payouts_per_s']:,}",
            f"{found[side]['payouts_per_s_min']:,} to {found[side]['payouts_per_s_max']:,}",
            *(found[side]["cpu_us"].get(part) for part in parts),
        ]
        for side in _sides(found)
    ]
    return ["side", "payouts/s", "spread", *(f"{part} µs" for part in parts)], rows


def _sides(found: dict[str, Any]) -> list[str]:
    return [side for side in ALL if side in found]


def headline(found: dict[str, Any]) -> list[str]:
    """What the table's numbers mean, in lines below it."""
    floors, *beside = [
        f"{what}: {found[name]:.2f} (rounds: {found[f'{name}_min']:.2f} to {found[f'{name}_max']:.2f})"
        for name, what in RATIOS.values()
        if name in found
    ]
    return [
        f"{floors},"
        f" {found['payouts']:,} payouts in {found['rounds']} rounds,"
        f" {'with' if found['audit'] else 'without'} audit, to {found['payees'] or 'ever new'} payees;"
        " µs are CPU for each payout",
        *beside,
        " and ".join(
            f"{side}: the worker had {found[side]['worker_peak_mb']:g} MB at most, the log takes"
            f" {found[side]['log_bytes_per_payout']:,} bytes of Redis for each payout"
            for side in _sides(found)
        ),
        where(found),
    ]


def where(found: dict[str, Any]) -> str:
    """The machine and the versions, in a line."""
    versions = ", ".join(f"{name} {version}" for name, version in found["versions"].items())
    return f"{found['machine']['cpu']}, {found['machine']['cores']} cores; {versions}"


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
        "archive": _part([one.archive for one in rounds]),
        "rebuild": _part([one.rebuild for one in rounds])
        | {"with_checks_and_swap_s": round(median(one.whole_s for one in rounds), 2)},
        "naive": _part([one.naive for one in rounds]),
        "memory": {
            "builder_peak_mb": round(max(one.rebuild.peak_mb for one in rounds), 1),
            "builder_peak_mb_at_a_tenth": round(measured.smaller.peak_mb, 1),
            "events_at_a_tenth": measured.smaller.events,
        },
        "runs": msgspec.to_builtins(rounds),
    }


def _part(parts: Sequence[Part]) -> dict[str, Any]:
    rates = [part.events_per_s for part in parts]
    found: dict[str, Any] = {
        "events_per_s": round(median(rates)),
        "events_per_s_min": round(min(rates)),
        "events_per_s_max": round(max(rates)),
        "events_per_core_s": round(median(part.events_per_core_s for part in parts)),
        "cpu_us": {name: round(median(part.cpu_us[name] for part in parts), 1) for name in parts[0].cpu_us},
    }
    if parts[0].entries:
        found["entries_per_s"] = round(median(part.entries / part.seconds for part in parts))
    return found


def replay_table(found: dict[str, Any]) -> tuple[list[str], list[list[object]]]:
    """Columns and rows of the table for people."""
    rows: list[list[object]] = [
        [
            part,
            f"{found[part]['events_per_s']:,}",
            f"{found[part]['events_per_s_min']:,} to {found[part]['events_per_s_max']:,}",
            f"{found[part]['events_per_core_s']:,}",
            f"{found[part]['entries_per_s']:,}" if "entries_per_s" in found[part] else None,
            found[part]["cpu_us"]["ours"],
            found[part]["cpu_us"]["postgres"],
        ]
        for part in ("archive", "rebuild", "naive")
    ]
    return ["part", "events/s", "spread", "per core", "entries/s", "ours µs", "postgres µs"], rows


def replay_headline(found: dict[str, Any]) -> list[str]:
    """What the table's numbers mean, in lines below it."""
    memory = found["memory"]
    times = found["rebuild"]["events_per_s"] / found["naive"]["events_per_s"]
    return [
        f"{found['events']:,} events in {found['entries']:,} entries of {found['payouts']:,} payouts,"
        f" {found['rounds']} rounds; {found['jobs']} builders; a rebuild is {times:.0f} times as fast as one event a"
        f" transaction, and with its checks and the swap takes {found['rebuild']['with_checks_and_swap_s']} s",
        f"a builder's memory at most: {memory['builder_peak_mb']:g} MB; for a tenth of the history"
        f" {memory['builder_peak_mb_at_a_tenth']:g} MB",
        "per core: for each second of CPU, ours and that of Postgres together; µs are CPU for each event",
        where(found),
    ]
