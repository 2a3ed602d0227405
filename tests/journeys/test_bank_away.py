"""The bank answers with errors, or not at all: work waits, is seen to wait, and goes on when the bank is back."""

import pytest

from streamproc.domain import events as e
from tests.bank import until
from tests.journeys.system import System

pytestmark = pytest.mark.asyncio(loop_scope="module")

COUNT = 12
BACK_MAX_S = 90.0
"""A breaker opens for 15 s, then the backlog drains."""


async def breakers_of(system: System) -> str:
    ready = (await system.api.get("/readyz")).json()
    assert ready["status"] == "ready"  # webhooks are taken all the same
    (check,) = [check for check in ready["checks"] if check["name"] == "breakers"]
    return str(check["detail"])


async def test_while_the_bank_is_down_work_waits_and_when_it_is_back_the_backlog_is_told_once(
    system: System,
) -> None:
    await system.bank.faults(api=[{"kind": "500"}])
    good = await system.bank.pay(250_000, count=COUNT, notes={"agent_id": "bot"})
    bad = await system.bank.pay(500_001, count=COUNT, notes={"agent_id": "small"})
    approve, reject = [[item["id"] for item in made["items"]] for made in (good, bad)]
    for payout in approve:
        await system.reaches(payout, "approved")

    async def is_open() -> bool:
        return "razorpay" in await breakers_of(system)

    await until(is_open, what="the breaker is open, and said to be", deadline_s=60.0)
    assert [effect for payout in approve + reject for effect in await system.effects(payout)] == []

    async def doctor_says_so() -> bool:
        code, out, _ = await system.cli("doctor")
        return code == 1 and "breakers: razorpay" in out

    # Now and then the breaker lets a call through, and is not open while that is under way.
    await until(doctor_says_so, what="doctor says that the breaker is open", deadline_s=60.0)

    await system.bank.faults(api=[])
    for payout in approve:
        await system.reaches(payout, "processed", deadline_s=BACK_MAX_S)
    for payout in reject:
        await system.bank.reaches(payout, "rejected")
    await system.settled(BACK_MAX_S)
    assert await system.dead() == 0
    for payout in approve:
        assert await system.effects(payout) == ["payout.approve"]
    for payout in reject:
        assert await system.effects(payout) == ["payout.reject"]

    async def is_closed() -> bool:
        return await breakers_of(system) == ""

    await until(is_closed, what="the breaker is closed again", deadline_s=60.0)


def fetched(story: list[e.Event]) -> bool:
    """Somebody has asked the bank what became of it."""
    return any(isinstance(event, e.PayoutObserved) and event.source == "fetch" for event in story)


async def test_a_lost_answer_to_an_approval_keeps_the_reservation_and_the_truth_is_fetched(
    system: System,
) -> None:
    # It takes effect, and then neither the answer nor any webhook comes.
    await system.bank.faults(
        api=[{"kind": "timeout", "path": "/v1/payouts/*/approve", "count": 1}],
        webhooks=[{"kind": "drop", "events": "payout.[!p]*"}, {"kind": "drop", "events": "payout.processed"}],
    )
    made = await system.bank.pay(250_000, notes={"agent_id": "bot"})
    await system.bank.reaches(made["id"], "processed")
    lost = await system.view(made["id"])
    before = await system.story(made["id"])  # later than the view: what is not in it, the view did not know
    if lost is not None and lost.reservation is not None and not fetched(before):
        assert lost.reservation.state == "reserved"

    await system.reaches(made["id"], "processed", deadline_s=BACK_MAX_S)
    await system.settled()  # execution fetched it, governance settles it

    record = await system.view(made["id"])
    assert record is not None
    assert record.reservation is not None
    assert record.reservation.state == "committed"
    assert await system.effects(made["id"]) == ["payout.approve"]
    story = await system.story(made["id"])
    (answer,) = [event for event in story if isinstance(event, e.BankCommandAnswered)]
    assert answer.outcome == "already"
    assert fetched(story)
    code, out, _ = await system.cli("explain", made["id"])
    assert (code, "bank command approve: already" in out, "by fetch" in out) == (0, True, True)
    await system.bank.faults(api=[], webhooks=[])
