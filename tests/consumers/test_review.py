"""A hold is decided once, by a reviewer who may, on rules that still stand."""

import asyncio

import pytest

from streamproc.domain.events import PayoutDecided, ReviewRefused, ReviewSubmitted, TimerFired
from tests.engine import Engine
from tests.words import ACCOUNT, Vendors, observed

POLICIES = """
policies:
  bot: {daily_limit: 10000000, require_approval_above: 100000, dual_approval_above: 500000, hold_ttl: 1h}
  asha: {require_approval_above: 0}
reviewers: [asha, vikram]
"""
VENDOR = "https://vendor.example.com/"


async def held(engine: Engine, amount: int = 200_000, agent: str = "bot") -> None:
    await engine.apply(POLICIES)
    await engine.deliver(observed("pout_1", amount, agent=agent, url=VENDOR))
    assert (await engine.record("pout_1")).state == "held"


async def test_an_approval_by_a_reviewer_approves(redis_url: str) -> None:
    async with Engine(redis_url) as engine:
        await held(engine)
        await engine.review("pout_1", "asha", "approve", account=ACCOUNT)
        record = await engine.record("pout_1")
    assert (record.decision, record.reason, record.reviews[0].by) == ("APPROVED", "REVIEW_APPROVED", "asha")


@pytest.mark.parametrize(
    ("by", "agent", "problem"),
    [
        ("mallory", "bot", "mallory is not in the list of reviewers"),
        ("bot", "bot", "bot is not in the list of reviewers"),
        ("asha", "asha", "asha asked for this payout and cannot review it"),
    ],
)
async def test_who_may_not_review_is_refused_and_the_refusal_is_recorded(
    redis_url: str, by: str, agent: str, problem: str
) -> None:
    async with Engine(redis_url) as engine:
        await held(engine, agent=agent)
        await engine.review("pout_1", by, "approve", account=ACCOUNT)
        story = await engine.story("pout_1")
        assert (await engine.record("pout_1")).state == "held"
    assert isinstance(story[-1], ReviewRefused)
    assert story[-1].problem == problem


async def test_of_twenty_approvals_and_twenty_rejections_one_wins_and_the_others_are_told_who(
    redis_url: str,
) -> None:
    async with Engine(redis_url, workers=3) as engine:
        await held(engine)
        now = engine.producer.now_us()
        answers = [
            ReviewSubmitted(at=now, payout="pout_1", by=by, action=action, why="race", channel="test")
            for by, action in [("asha", "approve"), ("vikram", "reject")] * 20
        ]
        await asyncio.gather(*(engine.append(ACCOUNT, answer) for answer in answers))
        await engine.settled()
        story = await engine.story("pout_1")
    decided = [event for event in story if isinstance(event, PayoutDecided)]
    refused = [event for event in story if isinstance(event, ReviewRefused)]
    assert (len(decided), len(refused)) == (2, 39)
    assert all(f"already {decided[1].decision} by {decided[1].by}" in event.problem for event in refused)


async def test_above_the_dual_threshold_two_different_reviewers_must_approve(redis_url: str) -> None:
    async with Engine(redis_url) as engine:
        await held(engine, amount=500_001)
        await engine.review("pout_1", "asha", "approve", account=ACCOUNT)
        await engine.review("pout_1", "asha", "approve", account=ACCOUNT)
        assert (await engine.record("pout_1")).state == "held"
        await engine.review("pout_1", "vikram", "approve", account=ACCOUNT)
        assert (await engine.record("pout_1")).decision == "APPROVED"


async def test_an_approval_after_the_policy_was_tightened_is_a_rejection(redis_url: str) -> None:
    async with Engine(redis_url) as engine:
        await held(engine)
        await engine.apply(
            POLICIES.replace("hold_ttl: 1h", "hold_ttl: 1h, blocked_domains: [vendor.example.com]")
        )
        await engine.review("pout_1", "asha", "approve", account=ACCOUNT)
        record = await engine.record("pout_1")
    assert (record.decision, record.reason) == ("REJECTED", "DOMAIN_BLOCKED")
    assert record.reservation is not None
    assert record.reservation.state == "released"


async def test_a_reviewer_may_vouch_for_a_vendor_that_could_not_be_asked_about(redis_url: str) -> None:
    async with Engine(redis_url, vendors=Vendors({"vendor": "unavailable"})) as engine:
        await held(engine)
        await engine.review("pout_1", "asha", "approve", account=ACCOUNT)
        assert (await engine.record("pout_1")).decision == "APPROVED"


async def test_a_vendor_that_became_a_threat_while_it_was_held_is_rejected(redis_url: str) -> None:
    vendors = Vendors({"vendor": "unavailable"})
    async with Engine(redis_url, vendors=vendors) as engine:
        await held(engine)
        vendors.verdicts["vendor"] = "threat"
        await engine.review("pout_1", "asha", "approve", account=ACCOUNT)
        assert (await engine.record("pout_1")).reason == "RISK_HIGH"


async def test_a_hold_that_nobody_answers_expires_and_gives_its_reservation_back(redis_url: str) -> None:
    async with Engine(redis_url) as engine:
        await held(engine)
        timers = await engine.client.zrange(engine.names.timers, 0, -1)
        assert len(timers) == 3
        await engine.client.zadd(engine.names.timers, dict.fromkeys(timers, 0))
        async with asyncio.timeout(30):
            while (await engine.record("pout_1")).decision != "REJECTED":
                await asyncio.sleep(0.01)
        await engine.settled()
        record = await engine.record("pout_1")
        assert await engine.client.zcard(engine.names.timers) == 0
    assert (record.reason, record.reservation.state) == ("HOLD_EXPIRED", "released")


async def test_a_timer_of_a_hold_that_was_decided_changes_nothing(redis_url: str) -> None:
    async with Engine(redis_url) as engine:
        await held(engine)
        await engine.review("pout_1", "asha", "approve", account=ACCOUNT)
        await engine.append(ACCOUNT, TimerFired(at=2**52, payout="pout_1", timer="hold_expiry"))
        await engine.settled()
        assert (await engine.record("pout_1")).decision == "APPROVED"
