"""A hold is decided once, by a reviewer who may, on rules that still stand."""

import asyncio

import pytest

from streamproc.domain.events import PayoutDecided, ReviewCounted, ReviewRefused, TimerFired
from tests.deadline import DEADLINE_S
from tests.engine import Engine
from tests.words import ACCOUNT, Forgotten, Vendors, observed, reviewed

POLICIES = """
policies:
  bot: {daily_limit: 10000000, require_approval_above: 100000, dual_approval_above: 500000, hold_ttl: 1h}
  helper: {require_approval_above: 0}
reviewers:
  asha: {slack: U0ASHA}
  vikram: {slack: U0VIKRAM}
  meera: {slack: U0MEERA}
agents:
  bot: {slack: [U0BOT], owners: [meera]}
  helper: {slack: [U0HELPER]}
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
    assert (record.decision, record.reason) == ("APPROVED", "REVIEW_APPROVED")
    assert [(review.by, review.via, review.action) for review in record.reviews] == [("asha", "", "approve")]


@pytest.mark.parametrize(
    ("by", "agent", "problem"),
    [
        ("mallory", "bot", "mallory is not in the list of reviewers"),
        ("bot", "bot", "bot is not in the list of reviewers"),
        ("helper", "bot", "helper is not in the list of reviewers"),
        ("slack:U0EVE", "bot", "Slack user U0EVE is not in the list of reviewers"),
        ("slack:", "bot", "slack: is not in the list of reviewers"),
        ("slack:u0asha", "bot", "Slack user u0asha is not in the list of reviewers"),
        (
            "slack:U0BOT",
            "bot",
            "Slack user U0BOT is the agent bot's own account, and an agent never reviews",
        ),
        (
            "slack:U0HELPER",
            "bot",
            "Slack user U0HELPER is the agent helper's own account, and an agent never reviews",
        ),
        ("meera", "bot", "meera acts for the agent bot and cannot review its payouts"),
        ("slack:U0MEERA", "bot", "meera acts for the agent bot and cannot review its payouts"),
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


async def test_a_click_in_slack_counts_in_the_name_of_the_reviewer_whose_account_it_is(
    redis_url: str,
) -> None:
    async with Engine(redis_url) as engine:
        await held(engine)
        await engine.review("pout_1", "slack:U0ASHA", "approve", account=ACCOUNT)
        story = await engine.story("pout_1")
    [counted] = [event for event in story if isinstance(event, ReviewCounted)]
    assert (counted.by, counted.via) == ("asha", "slack:U0ASHA")
    assert [event.by for event in story if isinstance(event, PayoutDecided)] == ["", "asha"]


async def test_a_rejection_from_slack_names_the_reviewer(redis_url: str) -> None:
    async with Engine(redis_url) as engine:
        await held(engine)
        await engine.review("pout_1", "slack:U0ASHA", "reject", account=ACCOUNT)
        record = await engine.record("pout_1")
    assert (record.reason, record.findings[-1].evidence["by"]) == ("REVIEW_REJECTED", "asha")
    assert [(r.by, r.via, r.action) for r in record.reviews] == [("asha", "slack:U0ASHA", "reject")]


async def test_who_owns_one_agent_reviews_anothers_payouts(redis_url: str) -> None:
    async with Engine(redis_url) as engine:
        await held(engine, agent="helper")
        await engine.review("pout_1", "slack:U0MEERA", "approve", account=ACCOUNT)
        assert (await engine.record("pout_1")).decision == "APPROVED"


async def test_whose_account_it_is_says_the_list_of_the_moment_of_the_decision(redis_url: str) -> None:
    async with Engine(redis_url) as engine:
        await held(engine)
        await engine.stop()
        click = reviewed("pout_1", "slack:U0ASHA", at=engine.producer.now_us(), why="", channel="slack")
        await engine.append(ACCOUNT, click)
        await engine.apply("reviewers: {vikram: {slack: U0VIKRAM}}")
        engine.start()
        await engine.settled()
        story = await engine.story("pout_1")
    assert isinstance(story[-1], ReviewRefused)
    assert story[-1].problem == "Slack user U0ASHA is not in the list of reviewers"


@pytest.mark.parametrize("again", ["asha", "slack:U0ASHA"])
@pytest.mark.parametrize("first", ["asha", "slack:U0ASHA"])
async def test_by_slack_and_by_name_a_person_is_one_reviewer(redis_url: str, first: str, again: str) -> None:
    async with Engine(redis_url) as engine:
        await held(engine, amount=500_001)
        await engine.review("pout_1", first, "approve", account=ACCOUNT)
        await engine.review("pout_1", again, "approve", account=ACCOUNT)
        story = await engine.story("pout_1")
        assert (await engine.record("pout_1")).state == "held"
        await engine.review("pout_1", "slack:U0VIKRAM", "approve", account=ACCOUNT)
        assert (await engine.record("pout_1")).decision == "APPROVED"
    assert isinstance(story[-1], ReviewRefused)
    assert (story[-1].by, story[-1].problem) == (
        "asha",
        "asha has approved already; another reviewer must approve too",
    )


async def test_an_account_that_got_another_name_in_between_gives_no_second_approval(redis_url: str) -> None:
    async with Engine(redis_url) as engine:
        await held(engine, amount=500_001)
        await engine.review("pout_1", "slack:U0ASHA", "approve", account=ACCOUNT)
        await engine.apply("reviewers: {asha: {}, vikram: {slack: U0ASHA}, kiran: {}}")
        for _ in range(2):
            await engine.review("pout_1", "slack:U0ASHA", "approve", account=ACCOUNT)
            assert (await engine.record("pout_1")).state == "held"
        await engine.review("pout_1", "kiran", "approve", account=ACCOUNT)
        assert (await engine.record("pout_1")).decision == "APPROVED"


async def test_who_got_another_account_may_approve_again_where_the_old_one_does_not_count(
    redis_url: str,
) -> None:
    async with Engine(redis_url) as engine:
        await held(engine, amount=500_001)
        await engine.review("pout_1", "slack:U0ASHA", "approve", account=ACCOUNT)
        await engine.apply("reviewers: {asha: {slack: U0NEW}, vikram: {}}")
        await engine.review("pout_1", "vikram", "approve", account=ACCOUNT)
        assert (await engine.record("pout_1")).state == "held"
        await engine.review("pout_1", "slack:U0NEW", "approve", account=ACCOUNT)
        assert (await engine.record("pout_1")).decision == "APPROVED"


async def test_an_account_in_slack_is_believed_from_slack_alone(redis_url: str) -> None:
    async with Engine(redis_url) as engine:
        await held(engine)
        claim = reviewed(
            "pout_1", "slack:U0ASHA", at=engine.producer.now_us(), why="let me in", channel="cli"
        )
        await engine.append(ACCOUNT, claim)
        await engine.settled()
        story = await engine.story("pout_1")
        assert (await engine.record("pout_1")).state == "held"
    assert isinstance(story[-1], ReviewRefused)
    assert (story[-1].by, story[-1].kind) == ("slack:U0ASHA", "forbidden")
    assert "did not come from there" in story[-1].problem


async def test_an_approval_by_who_became_the_agents_owner_does_not_count_any_more(redis_url: str) -> None:
    async with Engine(redis_url) as engine:
        await held(engine, amount=500_001)
        await engine.review("pout_1", "asha", "approve", account=ACCOUNT)
        await engine.apply("agents: {bot: {owners: [asha]}}")
        await engine.review("pout_1", "vikram", "approve", account=ACCOUNT)
        assert (await engine.record("pout_1")).state == "held"
        await engine.review("pout_1", "meera", "approve", account=ACCOUNT)
        assert (await engine.record("pout_1")).decision == "APPROVED"


async def test_who_comes_after_the_expiry_is_told_of_that_and_of_no_winner(redis_url: str) -> None:
    async with Engine(redis_url) as engine:
        await held(engine, amount=500_001)
        await engine.review("pout_1", "asha", "approve", account=ACCOUNT)
        timers = await engine.client.zrange(engine.names.timers, 0, -1)
        [timer] = [timer for timer in timers if b'"hold_expiry"' in timer]
        await engine.client.zadd(engine.names.timers, {timer: 0})
        async with asyncio.timeout(DEADLINE_S):
            while (await engine.record("pout_1")).decision != "REJECTED":
                await asyncio.sleep(0.01)
        await engine.review("pout_1", "vikram", "approve", account=ACCOUNT)
        story = await engine.story("pout_1")
    assert isinstance(story[-1], ReviewRefused)
    assert story[-1].problem.startswith("already REJECTED (HOLD_EXPIRED) at ")


async def test_of_twenty_approvals_and_twenty_rejections_one_wins_and_the_others_are_told_who(
    redis_url: str,
) -> None:
    async with Engine(redis_url, workers=3) as engine:
        await held(engine)
        now = engine.producer.now_us()
        answers = [
            reviewed("pout_1", by, action, at=now, why="race")
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


@pytest.mark.parametrize(
    ("policy", "reason"),
    [
        ("frozen: true", "FROZEN"),
        ("per_txn_limit: 100000", "TXN_LIMIT_EXCEEDED"),
        ("blocked_domains: [vendor.example.com]", "DOMAIN_BLOCKED"),
    ],
)
async def test_what_would_be_rejected_by_now_is_also_while_the_vendor_cannot_be_asked_about(
    redis_url: str, policy: str, reason: str
) -> None:
    """The approval was refused, to be tried again, and the reservation stayed; a rejection needs no reputation."""
    vendors = Forgotten()
    async with Engine(redis_url, vendors=vendors) as engine:
        await held(engine)
        vendors.verdicts["vendor"] = "unavailable"
        await engine.review("pout_1", "asha", "approve", account=ACCOUNT)
        refused = (await engine.story("pout_1"))[-1]
        assert (await engine.record("pout_1")).state == "held"
        await engine.apply(POLICIES.replace("hold_ttl: 1h", f"hold_ttl: 1h, {policy}"))
        await engine.review("pout_1", "asha", "approve", account=ACCOUNT)
        record = await engine.record("pout_1")
    assert isinstance(refused, ReviewRefused)
    assert refused.kind == "unavailable"
    assert (record.decision, record.reason) == ("REJECTED", reason)
    assert record.reservation is not None
    assert record.reservation.state == "released"


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
        async with asyncio.timeout(DEADLINE_S):
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
