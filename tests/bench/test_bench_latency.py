"""`streamproc bench latency`: an open loop, charged from when a payout was due, on a system of its own."""

import asyncio
import json
import time

import pytest
from click.testing import CliRunner

from streamproc.bench.latency import Measured, Run, Spread, spread
from streamproc.bench.report_path import latency_document, latency_headline, latency_table
from streamproc.bench.ticker import ticking
from streamproc.cli import run
from streamproc.cli.bench import _show, bench


@pytest.mark.embedded
def test_every_payout_is_decided_and_timed_and_nothing_of_ours_is_touched(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Nobody listens there: a bench that looked at it would fail.
    monkeypatch.setenv("STREAMPROC_REDIS_URL", "redis://127.0.0.1:1/0")
    said = CliRunner().invoke(bench, ["latency", "--rate", "50", "--seconds", "1", "--json"])
    assert said.exit_code == 0, said.output
    found = json.loads(said.stdout)
    assert {"machine", "versions", "runs"} <= set(found)
    assert (found["rate"], found["samples"], found["dropped"]) == (50, 50, 0)
    assert 0 < found["p50_ms"] <= found["p99_ms"] <= found["p999_ms"] <= found["max_ms"]
    # A decision is seen after its payout was appended, and that after it was handed over.
    assert found["handed"]["p50_ms"] < found["appended"]["p50_ms"] < found["p50_ms"]
    assert found["worker_peak_mb"] > 10
    assert {"valkey", "python"} <= set(found["versions"])


async def test_ticks_go_on_at_their_rate_and_those_that_were_missed_come_together() -> None:
    ticks: list[int] = []
    begin_ns = time.monotonic_ns()
    with ticking(begin_ns, 1_000_000, lambda: ticks.append(time.monotonic_ns())):
        while len(ticks) < 3:
            await asyncio.sleep(0.001)
        time.sleep(0.05)  # the loop stands still  # noqa: ASYNC251
        before = len(ticks)
        await asyncio.sleep(0)
        await asyncio.sleep(0)
    assert ticks[0] >= begin_ns
    assert before <= len(ticks) <= before + 2, "fifty missed ticks are one call, not fifty"


def test_a_percentile_is_the_least_time_that_so_many_were_within() -> None:
    assert spread([float(n) for n in range(1000, 0, -1)]) == Spread(500.0, 990.0, 999.0, 1000.0)
    assert spread([7.0]) == Spread(7.0, 7.0, 7.0, 7.0)


def one(rate: int, number: int, ms: float) -> Run:
    took = Spread(ms, 2 * ms, 3 * ms, 4 * ms)
    return Run(rate, number, 100, 0, took, took, took, took, {"worker": ms, "valkey": ms}, 70.0)


def test_numbers_are_medians_of_the_rounds_and_each_rate_has_its_own() -> None:
    runs = [one(rate, n, ms) for n, ms in enumerate((1.0, 9.0, 2.0), 1) for rate in (100, 500)]
    found = latency_document(Measured(20, 1, 1, {"python": "3"}, runs))
    assert (found["rate"], found["p50_ms"], found["p99_ms"], found["p999_ms"]) == (100, 2.0, 4.0, 6.0)
    assert [(each["rate"], each["p99_ms_min"], each["p99_ms_max"]) for each in found["rates"]] == [
        (100, 2.0, 18.0),
        (500, 2.0, 18.0),
    ]
    columns, rows = latency_table(found)
    assert [row[0] for row in rows] == ["100/s", "500/s"]
    assert len(columns) == len(rows[0])
    assert "600 samples, 0 dropped, 3 rounds of 20 s" in latency_headline(found)[0]


def test_no_figure_is_cut_off_where_the_table_goes_to_a_file(capsys: pytest.CaptureFixture[str]) -> None:
    """Figures of two digits and more made it wider than the 80 columns that were assumed: "14.9…"."""
    found = latency_document(Measured(20, 1, 1, {"python": "3"}, [one(500, 1, 14.987)]))
    _show(found, False, latency_table, latency_headline)
    said = capsys.readouterr().out
    _, rows = latency_table(found)
    assert "…" not in said
    assert all(str(cell) in said for row in rows for cell in row if cell is not None)


@pytest.mark.parametrize(
    "wrong", [["--rate", "0"], ["--seconds", "0"], ["--rate", "20000", "--seconds", "600"]]
)
def test_wrong_use_is_told_and_exits_with_2(wrong: list[str]) -> None:
    assert run(["bench", "latency", *wrong]) == 2
