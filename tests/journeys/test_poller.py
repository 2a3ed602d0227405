"""The poller as a process: what it finds when no webhook comes, who polls, and what operators see of it."""

import pytest

from streamproc.log.cursor import PollCursor, PollState
from streamproc.log.lease import LEASE_S
from streamproc.operate.polling import FAILING_S_MAX, LATE_S, view_of
from tests.bank import until
from tests.journeys.system import ACCOUNT, System

pytestmark = pytest.mark.asyncio(loop_scope="module")

MIXED = {"pending": 100, "queued": 60, "scheduled": 40, "processing": 50}


async def state_of(system: System) -> PollState | None:
    return await PollCursor(system.redis_url, account=ACCOUNT, partitions=1).state()


async def a_poller(system: System) -> str:
    """The role that polls, started by whichever test comes first."""
    for name in system.roles:
        if name.startswith("poller"):
            return name
    await system.start("poller-1")
    return "poller-1"


async def polled_by(system: System, name: str) -> PollState | None:
    state = await state_of(system)
    return state if state is not None and f"-{system.roles[name].pid}-" in state.holder else None


async def test_250_payouts_in_mixed_states_over_three_pages_are_all_found(system: System) -> None:
    await system.bank.faults(webhooks=[{"kind": "drop"}])
    made = [
        item["id"]
        for status, count in MIXED.items()
        for item in (await system.bank.pay(1_000, count=count, status=status, notes={"agent_id": "bot"}))[
            "items"
        ]
    ]
    assert len(made) == 250
    await a_poller(system)

    async def all_known() -> bool:
        system.check_alive()
        sql = "SELECT count(*) FROM payouts WHERE payout = ANY($1::text[])"
        return int(await system.pool.fetchval(sql, made)) == 250

    await until(all_known, what="the poller found all", deadline_s=90.0)
    await system.bank.faults(webhooks=[])
    await system.settled(90.0)
    folds = await system.folds()
    moved = [folds[payout] for payout in made if folds[payout].bypassed]
    assert len(moved) == MIXED["processing"]  # they moved without us
    assert all(folds[p].decision == "APPROVED" for p in made if not folds[p].bypassed)


async def test_another_poller_takes_over_from_one_that_was_killed(system: System) -> None:
    name, other = await a_poller(system), "poller-other"
    first = await until(lambda: polled_by(system, name), what="the first one polls", deadline_s=60.0)
    assert first is not None
    await system.start(other)
    await system.kill(name)
    second = await until(
        lambda: polled_by(system, other), what="the other took over", deadline_s=60.0 + 2 * LEASE_S
    )
    assert second is not None
    assert second.term > first.term


async def test_a_poller_that_fails_says_so_where_operators_look(system: System) -> None:
    name = await a_poller(system)
    await until(lambda: polled_by(system, name), what="it polls", deadline_s=60.0 + 2 * LEASE_S)
    await system.bank.faults(api=[{"kind": "500", "path": "/v1/payouts"}])

    async def failing() -> PollState | None:
        state = await state_of(system)
        return state if state is not None and state.failures else None

    state = await until(failing, what="a pass failed", deadline_s=60.0)
    assert state is not None
    assert "answered 500" in state.problem
    assert state.good_at > 0
    ready = (await system.api.get("/readyz")).json()
    (check,) = [check for check in ready["checks"] if check["name"] == "poller"]
    assert "in a row" in check["detail"]
    await system.bank.faults(api=[])


def state(**changes: object) -> PollState:
    plain = {"holder": "host-1", "term": 3, "pass_at": 1_000, "next_at": 1_010, "good_at": 1_000}
    return PollState(**(plain | changes))  # type: ignore[arg-type]


async def test_operators_are_told_of_failures_by_age_and_of_silence() -> None:
    well = view_of(state(listed=7), 1_005)
    assert (well.ok, "7 listed" in well.detail) == (True, True)
    failing = {"failures": 9, "failing_since": 400, "good_at": 390, "problem": "the bank is away"}
    bad = view_of(state(**failing), 1_005)
    assert (bad.ok, "fails since 10 min, 9 in a row" in bad.detail) == (False, True)
    assert view_of(state(**(failing | {"failing_since": 1_005 - int(FAILING_S_MAX)})), 1_005).ok
    silent = view_of(state(), 1_010 + LATE_S + 1)
    assert (silent.ok, "nobody polls since" in silent.detail) == (False, True)
    assert not view_of(state(unknown=("pout_1: 400",)), 1_005).ok
