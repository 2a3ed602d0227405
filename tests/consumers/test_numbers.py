"""Every number that `admit` gave out is in the log, with the terms it was given on: a replay needs all of them."""

from streamproc.domain.budget import Ask, RateAsk, Window
from streamproc.domain.events import BudgetReserved, PayoutDecided, PayoutSettled, VelocityChecked
from streamproc.log import scripts
from tests.engine import Engine
from tests.words import ACCOUNT, NOW, observed

RATED = "policies: {bot: {daily_limit: 1000, rate_limit: {count: 2, window: 60}%s}}"
FAR = 4_000_000_000


async def admitted_by_a_worker_that_died(engine: Engine, payout: str, amount: int) -> None:
    """A slot and a reservation, and no commit."""
    ask = Ask(
        payout, amount, NOW, RateAsk("bot", 2, 60_000_000, False), (Window("agent:bot", "d", 1000, FAR),)
    )
    await scripts.admit(engine.client, engine.names, [ask], keep_budgets_s=60)


async def test_a_slot_that_a_crash_left_taken_is_recorded_with_the_decision_that_did_not_want_it(
    redis_url: str,
) -> None:
    async with Engine(redis_url) as engine:
        await engine.apply(RATED % "")
        await admitted_by_a_worker_that_died(engine, "pout_1", 300)
        await engine.apply(RATED % ", frozen: true")
        await engine.deliver(observed("pout_1", 300))
        kinds = [type(event) for event in await engine.story("pout_1")][1:]
        assert kinds == [PayoutDecided, VelocityChecked, BudgetReserved, PayoutSettled]
        slot = (await engine.story("pout_1"))[2]
        assert isinstance(slot, VelocityChecked)
        assert (slot.number, slot.used, slot.limit, slot.window_s) == (1, 0, 2, 60)
        record = await engine.record("pout_1")
        assert (record.decision, record.reason) == ("REJECTED", "FROZEN")


async def test_a_slot_of_a_payout_that_moved_without_a_decision_is_recorded(redis_url: str) -> None:
    async with Engine(redis_url) as engine:
        await engine.apply(RATED % "")
        await admitted_by_a_worker_that_died(engine, "pout_1", 300)
        await engine.deliver(observed("pout_1", 300, status="processing"))
        await engine.deliver(observed("pout_1", 300, status="processed"))
        slots = [e for e in await engine.story("pout_1") if isinstance(e, VelocityChecked)]
        assert [slot.number for slot in slots] == [1]


async def test_a_slot_of_a_payout_that_the_bank_ended_without_a_decision_is_recorded_with_its_room(
    redis_url: str,
) -> None:
    """Whoever took them finds the room recorded, and takes the slot for recorded too."""
    async with Engine(redis_url) as engine:
        await engine.apply(RATED % "")
        await admitted_by_a_worker_that_died(engine, "pout_1", 300)
        await engine.deliver(observed("pout_1", 300, status="cancelled"))
        kinds = [type(event) for event in await engine.story("pout_1")][1:]
        assert kinds == [VelocityChecked, BudgetReserved, PayoutSettled]


async def test_a_slot_is_recorded_if_its_payout_moved_before_its_taker_could_commit(redis_url: str) -> None:
    """Whoever saw it move had looked at it before the slot was taken; then the taker died."""
    async with Engine(redis_url, claim_idle_s=0.1) as engine:
        await engine.apply(RATED % "")
        await engine.deliver(observed("pout_1", 300, status="processing"))
        await engine.stop()
        await engine.append(ACCOUNT, observed("pout_1", 300))
        await engine.client.xreadgroup("governance", "died", {engine.names.log: ">"})
        await admitted_by_a_worker_that_died(engine, "pout_1", 300)
        engine.start()
        await engine.settled()
        story = await engine.story("pout_1")
        assert [type(event) for event in story[3:]] == [VelocityChecked, BudgetReserved]
        await engine.deliver(observed("pout_1", 300, status="processed"))
        numbers = [
            event.number for event in await engine.story("pout_1") if isinstance(event, VelocityChecked)
        ]
        assert numbers == [1]


async def test_a_slot_is_recorded_if_screening_rejected_its_payout_before_its_taker_could_commit(
    redis_url: str,
) -> None:
    """No rule that rejects so early looks at the slot, so the decision does not tell of it."""
    async with Engine(redis_url, claim_idle_s=0.1) as engine:
        await engine.apply(RATED % ", frozen: true")
        await engine.deliver(observed("pout_1", 300))
        await engine.stop()
        await engine.append(ACCOUNT, observed("pout_1", 300, status="queued"))
        await engine.client.xreadgroup("governance", "died", {engine.names.log: ">"})
        await admitted_by_a_worker_that_died(engine, "pout_1", 300)
        engine.start()
        await engine.settled()
        slots = [e for e in await engine.story("pout_1") if isinstance(e, VelocityChecked)]
    assert [slot.number for slot in slots] == [1]


async def test_a_rejection_for_its_rate_names_its_number_and_the_terms_it_was_asked_on(
    redis_url: str,
) -> None:
    async with Engine(redis_url) as engine:
        await engine.apply(RATED % "")
        for n in range(3):
            await engine.deliver(observed(f"pout_{n}", 10, at=NOW + n))
        findings = (await engine.record("pout_2")).findings
        assert [f.evidence for f in findings] == [{"used": 2, "limit": 2, "window_s": 60, "number": 3}]
        assert not any(isinstance(event, VelocityChecked) for event in await engine.story("pout_2"))


async def test_what_was_admitted_on_old_terms_keeps_them_under_a_new_policy(redis_url: str) -> None:
    async with Engine(redis_url) as engine:
        await engine.apply(RATED % "")
        await admitted_by_a_worker_that_died(engine, "pout_1", 300)
        await engine.apply("policies: {bot: {daily_limit: 1000, rate_limit: {count: 0, window: 5}}}")
        await engine.deliver(observed("pout_1", 300))
        slot = next(e for e in await engine.story("pout_1") if isinstance(e, VelocityChecked))
        assert (slot.number, slot.used, slot.limit, slot.window_s) == (1, 0, 2, 60)
        assert (await engine.record("pout_1")).decision == "APPROVED"


async def test_a_slot_that_an_older_version_admitted_is_told_by_the_terms_of_the_policy(
    redis_url: str,
) -> None:
    async with Engine(redis_url) as engine:
        await engine.apply(RATED % "")
        await engine.client.hset(engine.names.payout("pout_1"), "a", "7 1 0||")
        await engine.deliver(observed("pout_1", 300))
        slot = next(e for e in await engine.story("pout_1") if isinstance(e, VelocityChecked))
        assert (slot.number, slot.used, slot.limit, slot.window_s) == (7, 1, 2, 60)
