"""`streamproc bench floor`: both sides do the same job, wrong answers have no speed, nothing of ours is touched."""

import asyncio
import json
import time
from collections import Counter
from collections.abc import Callable, Sequence
from datetime import datetime
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from click.testing import CliRunner
from msgspec.structs import replace
from redis.exceptions import ResponseError

from streamproc import processes
from streamproc.bench import engine, job
from streamproc.bench.contest import Arena, Measured, Run, measure
from streamproc.bench.left import Left, compare
from streamproc.bench.report import document, headline, table
from streamproc.bench.sides import (
    ENGINE,
    RIVAL,
    RIVAL_TYPED,
    RIVAL_USUAL,
    RIVAL_WHOLE,
    SIDES,
    WHOLE,
    asked_for,
)
from streamproc.bench.whole import Clerk, script
from streamproc.cli import run
from streamproc.cli.bench import bench
from streamproc.domain.budget import Limits, calendar_names, windows_of
from streamproc.domain.events import BudgetReserved, PayoutDecided
from streamproc.domain.policy import PolicyBook, ScopeState, parse_policy_file, plan_changes
from streamproc.domain.wire import decode_events, encode_events
from streamproc.errors import JobFailed
from streamproc.log.connection import connected

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
    book = PolicyBook({c.scope: ScopeState(version=1, own=c.after, effective=c.effective) for c in changes})
    agent = book.agent(job.TIGHT_AGENT)
    assert agent is not None
    days = {
        windows_of(
            Limits(agent.policy), agent=job.TIGHT_AGENT, account=job.ACCOUNT, vendor="",
            received_at=int(began_s + after_s) * 1_000_000, zone=job.ZONE,
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
    said, lines, start = list[str](), list[str](), processes.start

    async def seen(argv: Sequence[str | Path], **options: Any) -> asyncio.subprocess.Process:
        lines.append(" ".join(map(str, argv)))
        return await start(argv, **options)

    monkeypatch.setattr(processes, "start", seen)
    measured = await measure(PAYOUTS, 1, audit=True, announce=said.append)
    assert any("streamproc.bench.engine" in line for line in lines)
    assert not any("://" in line for line in lines), "every user of the machine can read a store's password"
    assert [run.side for run in measured.runs] == list(SIDES)
    assert said == [f"{which}: {side}" for which in ("warm-up", "round 1 of 1") for side in SIDES]
    assert measured.outcomes == dict(sorted(job.expected(PAYOUTS).items()))
    floor, engine = measured.runs
    assert set(floor.cpu_us) == {"worker", "valkey", "postgres"}
    assert set(engine.cpu_us) == {"worker", "archive", "valkey", "postgres"}
    assert all(10 < run.peak_mb < 1_000 for run in measured.runs)
    # A payout and what became of it: never less than its own bytes.
    assert floor.log_bytes > measured.payload_bytes < engine.log_bytes


@pytest.mark.embedded
@pytest.mark.parametrize("side", [*SIDES, WHOLE])
async def test_a_side_that_comes_to_other_outcomes_than_it_must_fails_the_bench(
    side: str, tmp_path: Path
) -> None:
    wanted = job.expected(PAYOUTS)
    wanted["POLICY_OK"] += 1
    with pytest.raises(JobFailed, match=f"{side}: the outcomes in the stream"):
        await Arena(tmp_path, None).run(side, 1, PAYOUTS, wanted)


def copied(left: Left) -> Left:
    payouts = {payout: replace(one, events=[*one.events]) for payout, one in left.payouts.items()}
    budgets = {scope: dict(budget) for scope, budget in left.budgets.items()}
    return replace(left, payouts=payouts, budgets=budgets, slots=dict(left.slots), paid=dict(left.paid))


def without_an_event(left: Left) -> str:
    payout = next(payout for payout, one in left.payouts.items() if len(one.events) > 1)
    del left.payouts[payout].events[0]
    return f"payout {payout}: .*its beneficiary is noted wrongly|of payout {payout} it left"


def with_another_limit(left: Left) -> str:
    payout, one = next(
        (payout, one)
        for payout, one in left.payouts.items()
        if any(type(event) is BudgetReserved for event in one.events)
    )
    one.record = one.record.replace(b'"limit":1000000000000', b'"limit":1000000000001')
    return f"payout {payout}: its record is not the fold of its events"


def with_less_evidence(left: Left) -> str:
    payout, one = next(
        (payout, one)
        for payout, one in left.payouts.items()
        if type(one.events[-1]) is PayoutDecided and one.events[-1].reason == "TXN_LIMIT_EXCEEDED"
    )
    one.record = one.record.replace(b'"limit":10000000}', b'"limit":10000001}')
    e = encode_events(one.events).replace(b'"limit":10000000}', b'"limit":10000001}')
    one.events = decode_events(e)
    return f"of payout {payout} it left .*; the engine left"


def with_another_number(left: Left) -> str:
    payout, one = next((payout, one) for payout, one in left.payouts.items() if one.admission.rate)
    assert one.admission.rate is not None
    one.admission = replace(one.admission, rate=replace(one.admission.rate, number=0))
    return f"payout {payout}: its slot is not what its events tell"


def with_another_cause(left: Left) -> str:
    payout, one = next(iter(left.payouts.items()))
    one.cause = "1-1"
    return f"payout {payout}: its entry is not caused by its observation"


def without_a_payout(left: Left) -> str:
    payout, _ = left.payouts.popitem()
    return f"payout {payout} is not in the log"


def with_less_reserved(left: Left) -> str:
    next(iter(left.budgets.values()))[b"r"] = b"1"
    return "of budgets it left"


def without_a_slot(left: Left) -> str:
    left.slots[job.TIGHT_AGENT] -= 1
    return "of slots it left"


def without_a_beneficiary(left: Left) -> str:
    left.paid.popitem()
    return "of beneficiaries it left"


WRONG: list[Callable[[Left], str]] = [
    without_an_event,
    with_another_limit,
    with_less_evidence,
    with_another_number,
    with_another_cause,
    without_a_payout,
    with_less_reserved,
    without_a_slot,
    without_a_beneficiary,
]


@pytest.mark.embedded
async def test_a_side_that_leaves_less_than_the_engine_or_something_else_is_refused_by_payout(
    tmp_path: Path,
) -> None:
    arena, wanted = Arena(tmp_path, None), job.expected(PAYOUTS)
    engines = await arena.run(ENGINE, 1, PAYOUTS, wanted)
    assert arena.left is not None
    # The whole floor is held against it, and has left the same.
    whole = await arena.run(WHOLE, 1, PAYOUTS, wanted)
    assert whole.log_bytes == pytest.approx(engines.log_bytes, rel=0.1)
    for spoil in WRONG:
        other = copied(arena.left)
        why = spoil(other)
        with pytest.raises(JobFailed, match=f"whole: .*(?:{why})"):
            compare("whole", other, arena.left)


async def test_what_is_not_the_job_stops_the_whole_floor(
    redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    at_us = time.time_ns() // 1000
    async with connected(redis_url) as client:
        await engine.load(client, 100, job.PAYEES, at_us)
        clerk = Clerk(client, await client.script_load(script()), acknowledges=True)
        event = job.observed(0, at_us)
        later = replace(event, facts=replace(event.facts, status="processed"))
        with pytest.raises(JobFailed, match="payout pout_00000000000000 is not of the job"):
            await clerk.batch([(b"1-1", encode_events([later]))])
        # The second payout of an agent finds its window full.
        monkeypatch.setattr(job, "RATE_COUNT", 1)
        entries = [(b"1-%d" % i, job.payload(i, at_us)) for i in range(job.AGENTS + 1)]
        batch = await clerk.batch(entries)
        assert batch is not None
        with pytest.raises(ResponseError, match="a rate window is full, and the job has no such payouts"):
            await clerk.write(batch)
        assert await clerk.batch([(b"1-1", b'[{"type":"policy.changed"}]')]) is None


@pytest.mark.embedded
@pytest.mark.skipif(find_spec("faststream") is None, reason="the extra `bench` is not installed")
async def test_faststream_beside_them_comes_to_the_same_outcomes() -> None:
    sides = asked_for(whole=True, faststream=True, typed=True, usual=True)
    measured = await measure(PAYOUTS, 1, audit=True, sides=sides, announce=lambda _: None)
    assert [run.side for run in measured.runs] == [
        *SIDES,
        WHOLE,
        RIVAL,
        RIVAL_WHOLE,
        RIVAL_TYPED,
        RIVAL_USUAL,
    ]
    assert "faststream" in measured.versions
    found = document(measured)
    for name, side in (
        ("faststream", RIVAL),
        ("faststream_whole", RIVAL_WHOLE),
        ("faststream_typed", RIVAL_TYPED),
        ("faststream_usual", RIVAL_USUAL),
    ):
        assert found[f"ratio_to_{name}"] == pytest.approx(
            found["engine"]["payouts_per_s"] / found[side]["payouts_per_s"], rel=0.01
        )


@pytest.mark.skipif(find_spec("faststream") is not None, reason="the extra `bench` is installed")
@pytest.mark.parametrize("option", ["--faststream", "--faststream-typed", "--faststream-usual"])
def test_without_the_extra_faststream_is_refused_with_the_command(
    option: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["bench", "floor", option]) == 2
    assert (
        "FastStream needs the extra `bench`: in a checkout, pip install '.[bench]'" in capsys.readouterr().err
    )


def runs(*rates: tuple[float, ...], sides: tuple[str, ...] = (*SIDES, RIVAL)) -> Measured:
    made = [
        Run(side, number, 1000 / rate, rate, {"worker": 1e6 / rate, "valkey": 20.0}, 50.0, 700.0)
        for number, each in enumerate(rates, 1)
        for side, rate in zip(sides, each, strict=False)
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


def test_the_whole_floor_is_beside_the_engine_of_the_same_round() -> None:
    found = document(runs((20_000, 6_000, 8_000), (2_000, 900, 1_000), sides=(*SIDES, WHOLE)))
    assert (found["ratio"], found["ratio_whole"], found[WHOLE]["payouts_per_s"]) == (0.375, 0.825, 4_500)
    assert [row[0] for row in table(found)[1]] == ["floor", "engine", "whole"]
    assert headline(found)[1].startswith(
        "engine / whole floor, which leaves the same behind: 0.82 (rounds: 0.75"
    )


@pytest.mark.parametrize(
    ("asked", "sides"),
    [
        ({}, SIDES),
        ({"whole": True}, (*SIDES, WHOLE)),
        ({"faststream": True, "whole": True}, (*SIDES, WHOLE, RIVAL, RIVAL_WHOLE)),
        ({"typed": True, "usual": True}, (*SIDES, RIVAL_TYPED, RIVAL_USUAL)),
    ],
)
def test_the_engine_comes_before_those_who_are_held_against_it(
    asked: dict[str, bool], sides: tuple[str, ...]
) -> None:
    assert asked_for(**asked) == list(sides)


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
