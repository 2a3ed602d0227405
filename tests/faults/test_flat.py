"""The judgement of a soak run: a leak is found; noise, or growth in one step, is not taken for one."""

import asyncio
import os
import random
import sys

import pytest

from tests.faults.driver import run
from tests.faults.flat import (
    CONNECTIONS,
    DESCRIPTORS,
    IDLE,
    LOOK_S,
    MEMORY,
    SAMPLES_MIN,
    WARM_S,
    Grown,
    Series,
    growing,
    judged,
    used,
)
from tests.faults.plan import CALM, ENDING, LINKS, plan_of
from tests.signals import killed

HALF_S = 300.0
NOISE_KB = 1500


def series(value_at: object, *, begins_s: float = 0.0, ends_s: float = 2 * HALF_S) -> Series:
    one, at = Series("worker-1", MEMORY), begins_s
    chance = random.Random(7)
    while at < ends_s:
        one.add(at, value_at(at) + chance.uniform(0, NOISE_KB))  # type: ignore[operator]
        at += LOOK_S
    return one


def verdict(one: Series) -> list[Grown]:
    return list(judged([one], HALF_S))


def test_noise_about_a_level_is_flat() -> None:
    assert [grown.is_growth for grown in verdict(series(lambda _: 70_000))] == [False]


def test_a_little_more_at_each_payout_is_growth() -> None:
    leak_kb_s = 3 * 4  # 4 kB for each of 3 payouts a second
    (grown,) = verdict(series(lambda at: 70_000 + leak_kb_s * at))
    assert grown.is_growth
    assert grown.per_min == pytest.approx(60 * leak_kb_s, rel=0.25)
    assert growing([grown])[0].startswith("worker-1: memory grew by ")


def test_one_step_is_not_growth_and_neither_is_the_first_half() -> None:
    assert not verdict(series(lambda at: 70_000 if at < 1.4 * HALF_S else 75_000))[0].is_growth
    assert not verdict(series(lambda at: 30_000 + 150 * min(at, HALF_S)))[0].is_growth


def test_two_connections_more_are_not_growth() -> None:
    one = Series("postgres", CONNECTIONS)
    for n in range(300):
        one.add(n * LOOK_S, 14 + n // 150 + n // 240)
    assert not verdict(one)[0].is_growth


def test_a_process_that_came_or_went_in_the_second_half_says_nothing() -> None:
    assert verdict(series(lambda _: 1, begins_s=HALF_S - WARM_S + 1)) == []
    assert verdict(series(lambda _: 1, ends_s=HALF_S + (SAMPLES_MIN - 1) * LOOK_S)) == []


def test_a_descriptor_or_a_connection_a_minute_is_growth() -> None:
    for kind in (DESCRIPTORS, CONNECTIONS, IDLE):
        one = Series("serve", kind)
        for n in range(300):
            one.add(n * LOOK_S, 20 + int(n * LOOK_S) // 60)
        assert verdict(one)[0].is_growth


def test_a_role_or_store_that_was_not_seen_for_long_enough_is_a_finding() -> None:
    flat = verdict(series(lambda _: 70_000))
    assert growing(flat, ["worker"]) == []
    assert growing(flat, (*LINKS, "redis")) == [
        f"{name} was not measured long enough in the run's second half"
        for name in ("poller", "projector", "redis", "serve")
    ]


def test_a_calm_plan_ends_one_worker_only() -> None:
    faults = plan_of(1, 600, calm=True).faults
    assert {fault.slot for fault in faults if fault.kind in ENDING} == {CALM}
    assert {fault.slot for fault in faults if fault.kind not in ENDING} > {CALM, "serve"}


LEAKING = """
import os, sys
kept = []
while True:
    sys.stdin.readline()
    kept.append((os.urandom(400_000), open(os.devnull)))
    print(flush=True)
"""


async def test_memory_and_descriptors_are_measured_at_a_real_process() -> None:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", LEAKING, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE
    )
    assert process.stdin is not None
    assert process.stdout is not None
    memory, descriptors = Series("it", MEMORY), Series("it", DESCRIPTORS)
    try:
        for turn in range(60):
            process.stdin.write(b"\n")
            await process.stdout.readline()
            seen = used(process.pid)
            assert seen is not None
            memory.add(turn * LOOK_S, seen[0])
            descriptors.add(turn * LOOK_S, seen[1])
    finally:
        await killed(process)
    assert used(process.pid) is None
    assert used(os.getpid()) is not None
    grown = {one.kind: one for one in judged([memory, descriptors], WARM_S)}
    assert grown[DESCRIPTORS].per_min == pytest.approx(60 / LOOK_S, rel=0.1)
    assert grown[MEMORY].per_min == pytest.approx(400 * 60 / LOOK_S, rel=0.1)


@pytest.mark.soak
@pytest.mark.timeout(600)
async def test_a_leak_in_the_workers_is_found() -> None:
    plan = plan_of(7, 180.0, per_s=4.0, kinds=("reset",))

    report = await run(plan, reverts=("leak",), flat=True)

    print(report)
    found = {(one.of, one.kind): one for one in report.verdict}
    assert found["worker-1", MEMORY].is_growth
    assert found["worker-1", DESCRIPTORS].is_growth
    assert found["redis", IDLE].is_growth
    assert "nothing_grows" in {violation.invariant for violation in report.violations}
