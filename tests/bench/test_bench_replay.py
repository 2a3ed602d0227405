"""`streamproc bench replay`: a history that holds together, measured on servers of its own, told with its spread."""

from collections import Counter
from itertools import pairwise

import pytest
from click.testing import CliRunner

from streamproc.bench.history import entries
from streamproc.bench.replaying import Measured, Part, Round, measure
from streamproc.bench.report import replay_document, replay_headline, replay_table
from streamproc.cli.bench import bench
from streamproc.domain.wire import decode_events, type_of
from tests.projections.histories import key

PAYOUTS = 1_000


def test_the_history_is_of_the_shape_that_the_engine_writes_and_always_the_same() -> None:
    found = list(entries(PAYOUTS))
    assert found == list(entries(PAYOUTS))
    assert all(key(one.id) < key(other.id) for one, other in pairwise(found))
    kinds = Counter(type_of(event) for entry in found for event in decode_events(entry.e))
    assert 9 < sum(kinds.values()) / PAYOUTS < 11
    assert kinds["payout.budget_reserved"] > PAYOUTS * 0.8
    assert kinds["payout.settled"] >= kinds["payout.budget_reserved"]


@pytest.mark.embedded
async def test_all_parts_are_measured_and_nothing_of_ours_is_touched(monkeypatch: pytest.MonkeyPatch) -> None:
    # Nobody listens there: a bench that looked at it would fail.
    monkeypatch.setenv("STREAMPROC_REDIS_URL", "redis://127.0.0.1:1/0")
    monkeypatch.setenv("STREAMPROC_POSTGRES_DSN", "postgresql://nobody@127.0.0.1:1/none")
    said: list[str] = []
    # The rebuild refuses views that contradict themselves: budgets that the payouts do not add up to, and others.
    measured = await measure(PAYOUTS, 1, announce=said.append)
    assert [text.partition(":")[2].strip() for text in said if text.startswith("round 1")] == [
        "archive",
        "rebuild",
        "one event per transaction",
    ]
    (one,) = measured.rounds
    assert one.archive.events == one.rebuild.events == sum(len(decode_events(e.e)) for e in entries(PAYOUTS))
    found = replay_document(measured)
    assert {"machine", "versions", "runs", "memory"} <= set(found)
    for part in ("archive", "rebuild", "naive"):
        assert found[part]["events_per_s"] > 0
        assert set(found[part]["cpu_us"]) == {"ours", "postgres"}
    assert found["memory"]["builder_peak_mb"] > 0


def part(events_per_s: float, us: float) -> Part:
    return Part(
        events=1_000,
        entries=500,
        seconds=1_000 / events_per_s,
        cpu_us={"ours": us, "postgres": us},
        peak_mb=80.0,
    )


def test_numbers_are_medians_with_their_spread_and_what_a_core_does() -> None:
    rounds = [
        Round(part(r, 5.0), part(2 * r, 10.0), 1.5, part(r / 10, 500.0)) for r in (10_000, 40_000, 20_000)
    ]
    found = replay_document(Measured(100, 2, rounds, part(1, 1.0), {"python": "3"}))
    assert found["archive"]["events_per_s"] == 20_000
    assert (found["archive"]["events_per_s_min"], found["archive"]["events_per_s_max"]) == (10_000, 40_000)
    assert found["archive"]["events_per_core_s"] == 100_000
    assert found["archive"]["entries_per_s"] == 10_000
    assert found["rebuild"]["events_per_s"] == 40_000
    columns, rows = replay_table(found)
    assert [row[0] for row in rows] == ["archive", "rebuild", "naive"]
    assert len(columns) == len(rows[0])
    assert "a rebuild is 20 times as fast as one event per transaction" in replay_headline(found)[0]


@pytest.mark.parametrize("wrong", [["--payouts", "999"], ["--rounds", "0"]])
def test_wrong_use_is_told_and_exits_with_2(wrong: list[str]) -> None:
    assert CliRunner().invoke(bench, ["replay", *wrong]).exit_code == 2
