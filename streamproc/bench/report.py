"""Numbers for people and for machines: medians, the spread beside them, and the ratio of neighbours in time."""

from collections.abc import Sequence
from statistics import median
from typing import Any

import msgspec

from streamproc.bench import cost
from streamproc.bench.contest import SIDES, Measured, Run

PARTS = ("worker", "archive", "valkey", "postgres")


def document(measured: Measured) -> dict[str, Any]:
    """The JSON of `bench floor --json`."""
    by_side = {side: [run for run in measured.runs if run.side == side] for side in SIDES}
    ratios = [
        ours.payouts_per_s / theirs.payouts_per_s
        for theirs, ours in zip(by_side["floor"], by_side["engine"], strict=True)
    ]
    return {
        "machine": cost.machine(),
        "versions": measured.versions,
        "payouts": measured.payouts,
        "payload_bytes": measured.payload_bytes,
        "rounds": len(ratios),
        "audit": measured.audit,
        "outcomes": measured.outcomes,
        **{side: _side(runs) for side, runs in by_side.items()},
        # Of each round's two runs, so that a noisy minute is in both.
        "ratio": round(median(ratios), 3),
        "ratio_min": round(min(ratios), 3),
        "ratio_max": round(max(ratios), 3),
        "runs": msgspec.to_builtins(measured.runs),
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
        for side in SIDES
    ]
    return ["side", "payouts/s", "spread", *(f"{part} µs" for part in parts)], rows


def headline(found: dict[str, Any]) -> list[str]:
    """What the table's numbers mean, in lines below it."""
    return [
        f"engine / floor: {found['ratio']:.2f} (rounds: {found['ratio_min']:.2f} to {found['ratio_max']:.2f}),"
        f" {found['payouts']:,} payouts in {found['rounds']} rounds,"
        f" {'with' if found['audit'] else 'without'} audit; µs are CPU for each payout",
        f"{found['machine']['cpu']}, {found['machine']['cores']} cores; "
        + ", ".join(f"{name} {version}" for name, version in found["versions"].items()),
    ]
