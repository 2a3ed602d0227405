"""`streamproc bench floor`: both sides do the same job, wrong answers have no speed, nothing of ours is touched."""

import json
import time
from collections import Counter
from datetime import datetime
from importlib.util import find_spec
from pathlib import Path
from zoneinfo import ZoneInfo

import pytest
from click.testing import CliRunner

from streamproc.bench import job
from streamproc.bench.cli import bench
from streamproc.bench.contest import RIVAL, SIDES, Arena, Measured, Run, measure
from streamproc.bench.report import document, headline, table
from streamproc.cli import run
from streamproc.domain.budget import calendar_names, windows_of
from streamproc.domain.policy import ScopeState, build_book, parse_policy_file, plan_changes
from streamproc.domain.wire import decode_events
from streamproc.errors import JobFailed

PAYOUTS = 1_000


def test_two_in_a_hundred_are_over_the_limit_and_two_are_blocked_and_one_agent_runs_dry() -> None:
    outcomes = job.expected(100_000)
    assert sum(outcomes.values()) == 100_000
    assert 0.015 < outcomes["TXN_LIMIT_EXCEEDED"] / 100_000 < 0.022
    assert 0.012 < outcomes["DOMAIN_BLOCKED"] / 100_000 < 0.022
    assert outcomes["LIMIT_EXCEEDED"] == 100_000 // job.AGENTS - job.TIGHT_COUNT


def test_a_payload_is_an_entry_of_the_real_log_of_about_600_bytes() -> None:
    payload = job.payload(7, time.time_ns() // 1000)
    (event,) = decode_events(payload)
    assert event == job.observed(7, event.at)
    assert 500 < len(payload) < 700


@pytest.mark.parametrize("day", ["2026-12-31", "2027-01-31", "2028-02-29", "2026-11-29"])
def test_no_day_week_or_month_ends_in_the_eleven_hours_after_a_zones_noon(day: str) -> None:
    midnight = datetime.fromisoformat(f"{day}T00:00:00Z").timestamp()
    for minute in range(1_440):
        at_s = midnight + 60 * minute + 59
        zone = job.noon_zone(at_s)
        later = at_s + 11 * 3_600
        assert datetime.fromtimestamp(at_s, ZoneInfo(zone)).hour == 12
        assert calendar_names(zone, at_s) == calendar_names(zone, later)


def test_the_tight_agent_runs_dry_though_midnight_comes_while_the_bench_runs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    began_s = datetime.fromisoformat("2026-12-31T23:59:59+05:30").timestamp()
    monkeypatch.setattr(job.time, "time", lambda: began_s)
    file = parse_policy_file(json.dumps(job.policy_file()), name="bench.json")
    changes = plan_changes({}, file, prune=False, at=0, by="bench", why="bench")
    book = build_book({c.scope: ScopeState(version=1, own=c.after, effective=c.effective) for c in changes})
    agent = book.agent(job.TIGHT_AGENT)
    assert agent is not None
    days = {
        windows_of(
            agent=job.TIGHT_AGENT, account=job.ACCOUNT, vendor="", policy=agent.policy,
            account_limits=None, team_limits=None, received_at=int(began_s + after_s) * 1_000_000, zone=job.ZONE,
        )
        for after_s in (0, 2, 3_600)
    }  # fmt: skip
    assert len(days) == 1


def test_wrong_outcomes_are_refused_by_name() -> None:
    with pytest.raises(
        JobFailed, match="engine: the outcomes in the stream are POLICY_OK 2; they must be POLICY_OK 3"
    ):
        job.check("engine", "the stream", Counter(POLICY_OK=2), Counter(POLICY_OK=3))


@pytest.mark.embedded
async def test_both_sides_come_to_the_same_outcomes_in_the_stream_and_in_postgres(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Nobody listens there: a bench that looked at it would fail.
    monkeypatch.setenv("STREAMPROC_REDIS_URL", "redis://127.0.0.1:1/0")
    said: list[str] = []
    measured = await measure(PAYOUTS, 1, audit=True, said=said.append)
    assert [run.side for run in measured.runs] == list(SIDES)
    assert said == ["warm-up: floor", "warm-up: engine", "round 1 of 1: floor", "round 1 of 1: engine"]
    assert measured.outcomes == dict(sorted(job.expected(PAYOUTS).items()))
    floor, engine = measured.runs
    assert set(floor.cpu_us) == {"worker", "valkey", "postgres"}
    assert set(engine.cpu_us) == {"worker", "archive", "valkey", "postgres"}
    assert all(10 < run.peak_mb < 1_000 for run in measured.runs)
    # A payout and what became of it: never less than its own bytes.
    assert floor.log_bytes > measured.payload_bytes < engine.log_bytes


@pytest.mark.embedded
@pytest.mark.parametrize("side", SIDES)
async def test_a_side_that_comes_to_other_outcomes_than_it_must_fails_the_bench(
    side: str, tmp_path: Path
) -> None:
    wanted = job.expected(PAYOUTS)
    wanted["POLICY_OK"] += 1
    with pytest.raises(JobFailed, match=f"{side}: the outcomes in the stream"):
        await Arena(tmp_path, None).run(side, 1, PAYOUTS, wanted)


@pytest.mark.embedded
@pytest.mark.skipif(find_spec("faststream") is None, reason="the extra `bench` is not installed")
async def test_faststream_beside_them_comes_to_the_same_outcomes() -> None:
    measured = await measure(PAYOUTS, 1, audit=True, faststream=True, said=lambda _: None)
    assert [run.side for run in measured.runs] == [*SIDES, RIVAL]
    assert "faststream" in measured.versions
    found = document(measured)
    assert found["ratio_to_faststream"] == pytest.approx(
        found["engine"]["payouts_per_s"] / found[RIVAL]["payouts_per_s"], rel=0.01
    )


@pytest.mark.skipif(find_spec("faststream") is not None, reason="the extra `bench` is installed")
def test_without_the_extra_faststream_is_refused_with_the_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["bench", "floor", "--faststream"]) == 2
    assert "--faststream needs the extra `bench`: pip install 'streamproc[bench]'" in capsys.readouterr().err


def runs(*rates: tuple[float, ...]) -> Measured:
    made = [
        Run(side, number, 1000 / rate, rate, {"worker": 1e6 / rate, "valkey": 20.0}, 50.0, 700.0)
        for number, each in enumerate(rates, 1)
        for side, rate in zip((*SIDES, RIVAL), each, strict=False)
    ]
    return Measured(1000, False, 200, 2, 600, {"POLICY_OK": 1000}, {"python": "3"}, made)


def test_the_ratio_is_the_median_of_each_rounds_own_ratio() -> None:
    # In the second round something else ran on the machine: both are slow, the ratio is not.
    found = document(runs((20_000, 10_000), (2_000, 1_200), (20_000, 8_000)))
    assert (found["ratio"], found["ratio_min"], found["ratio_max"]) == (0.5, 0.4, 0.6)
    assert found["floor"]["payouts_per_s"] == 20_000
    assert found["engine"]["payouts_per_s"] == 8_000
    assert {"machine", "versions", "runs"} <= set(found)
    assert RIVAL not in found


def test_faststream_is_beside_the_engine_of_the_same_round() -> None:
    found = document(runs((20_000, 10_000, 5_000), (2_000, 1_200, 400)))
    assert (found["ratio"], found["ratio_to_faststream"]) == (0.55, 2.5)
    _, rows = table(found)
    assert [row[:2] for row in rows][-1] == ["faststream", "2,700"]
    assert headline(found)[1] == "engine / FastStream: 2.50 (rounds: 2.00 to 3.00)"


def test_the_table_has_a_row_for_each_side() -> None:
    found = document(runs((20_000, 10_000)))
    columns, rows = table(found)
    assert columns == ["side", "payouts/s", "spread", "worker µs", "valkey µs"]
    assert [row[:2] for row in rows] == [["floor", "20,000"], ["engine", "10,000"]]
    assert headline(found)[0].startswith(
        "engine / floor: 0.50 (rounds: 0.50 to 0.50), 1,000 payouts in 1 rounds"
    )
    assert "engine: the worker had 50 MB at most, the log takes 700 bytes" in headline(found)[1]


@pytest.mark.parametrize("wrong", [["--payouts", "999"], ["--rounds", "0"], ["--payouts", "1e4"]])
def test_wrong_use_is_told_and_exits_with_2(wrong: list[str]) -> None:
    assert CliRunner().invoke(bench, ["floor", *wrong]).exit_code == 2


def test_payouts_go_to_known_payees_in_turn_or_each_to_a_new_one() -> None:
    def payees(number: int) -> dict[str, set[str]]:
        found: dict[str, set[str]] = {}
        for i in range(1_000):
            facts = job.observed(i, 0, number).facts
            found.setdefault(facts.fund_account_id, set()).add(f"vendor{i % job.VENDORS}")
        return found

    known = payees(job.PAYEES)
    assert len(known) == job.PAYEES
    assert all(len(vendors) == 1 for vendors in known.values())
    assert len(payees(0)) == 1_000
