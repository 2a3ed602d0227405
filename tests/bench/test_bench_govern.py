"""`streamproc bench govern`: the decision alone, on the same payouts as the other benches, and nothing but memory."""

import asyncio
import json

import pytest
from click.testing import CliRunner

from streamproc.bench import job
from streamproc.bench.pure import PARTS, measure
from streamproc.cli import run
from streamproc.cli.bench import bench


def test_each_piece_is_measured_and_decides_as_it_must(monkeypatch: pytest.MonkeyPatch) -> None:
    # Nobody listens there: a bench that looked at it would fail.
    monkeypatch.setenv("STREAMPROC_REDIS_URL", "redis://127.0.0.1:1/0")
    said = CliRunner().invoke(bench, ["govern", "--payouts", "2000", "--rounds", "2", "--json"])
    assert said.exit_code == 0, said.output
    found = json.loads(said.stdout)
    assert {"machine", "versions", "runs"} <= set(found)
    assert [(one["part"], one["round"]) for one in found["runs"]] == [
        (part, number) for number in (1, 2) for part in ("stages", "rules", "fast_path")
    ]
    assert found["outcomes"] == dict(sorted(job.expected(2000).items()))
    # The rules are a part of the short way, and that is shorter than the chain.
    assert all(found[part]["payouts_per_core_s"] > 0 for part in PARTS)
    assert found["rules"]["cpu_us_min"] < found["stages"]["cpu_us_min"]


def test_the_table_has_a_row_for_each_piece() -> None:
    said = CliRunner().invoke(bench, ["govern", "--payouts", "1000", "--rounds", "1"])
    assert said.exit_code == 0, said.output
    lines = said.stdout.splitlines()
    assert [line.split()[0] for line in lines[1:4]] == list(PARTS)
    assert "1,000 payouts in 1 rounds" in said.stdout


def test_a_decision_that_is_not_what_it_must_be_fails_the_bench(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    expected = job.expected
    monkeypatch.setattr(job, "expected", lambda payouts: expected(payouts + 1))
    assert run(["bench", "govern", "--payouts", "1000", "--rounds", "1"]) == 1
    assert "stages: the outcomes in memory are" in capsys.readouterr().err


async def test_it_ends_within_a_batch_when_it_is_interrupted(monkeypatch: pytest.MonkeyPatch) -> None:
    checked = list[str]()
    monkeypatch.setattr(job, "check", lambda part, *_: checked.append(part))

    def interrupt(_: str) -> None:
        """As Ctrl-C does it, which cancels the task as soon as it waits."""
        measuring.cancel()

    measuring = asyncio.create_task(measure(1000, 1, announce=interrupt))
    with pytest.raises(asyncio.CancelledError):
        await measuring
    assert checked == []  # not even the first part of the round came to its end


@pytest.mark.parametrize("wrong", [["--payouts", "999"], ["--rounds", "0"]])
def test_wrong_use_is_told_and_exits_with_2(wrong: list[str]) -> None:
    assert run(["bench", "govern", *wrong]) == 2
