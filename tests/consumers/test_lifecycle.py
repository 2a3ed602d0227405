"""After the decision: what the bank says settles the reservation, once, to the windows it was charged to."""

import itertools
from typing import Any

import pytest

from streamproc.domain.events import (
    BankFeeRecorded,
    CancelRequested,
    GovernanceBypassed,
    PayoutDecided,
    PayoutSettled,
)
from streamproc.log.connection import connected
from streamproc.log.names import Names
from tests.engine import Engine
from tests.words import ACCOUNT, NOW, Vendors, apply_policies, copy_of, observed, requested

POLICIES = """
policies:
  bot: {daily_limit: 1000000, require_approval_above: 500000, rate_limit: {count: 0, window: 60}}
reviewers: [asha]
"""
DAY = Names(0).budget("agent:bot", "2026-09-21")


async def reserved_and_committed(engine: Engine) -> tuple[int, int]:
    row = await engine.client.hmget(DAY, "r", "c")
    return int(row[0] or 0), int(row[1] or 0)


@pytest.mark.parametrize(
    ("statuses", "state", "reserved", "committed"),
    [
        (["processing"], "confirmed", 1000, 0),
        (["processing", "processed"], "processed", 0, 1000),
        (["processed", "processing"], "processed", 0, 1000),
        (["processed", "reversed"], "reversed", 0, 0),
        (["processing", "failed"], "failed", 0, 0),
        (["rejected"], "declined", 0, 0),
        (["cancelled"], "cancelled", 0, 0),
        (["processing", "reversed", "failed"], "reversed", 0, 0),
    ],
)
async def test_the_bank_settles_an_approved_payout(
    redis_url: str, statuses: list[str], state: str, reserved: int, committed: int
) -> None:
    async with Engine(redis_url) as engine:
        await engine.apply(POLICIES)
        await engine.deliver(observed(amount=1000))
        assert await reserved_and_committed(engine) == (1000, 0)
        for status in statuses:
            await engine.deliver(observed(amount=1000, status=status))
        record = await engine.record("pout_1")
        assert (record.state, *await reserved_and_committed(engine)) == (state, reserved, committed)


async def test_whatever_the_order_of_deliveries_the_budget_comes_to_the_same(redis_url: str) -> None:
    for order in itertools.permutations(["processing", "processed", "reversed"]):
        async with connected(redis_url) as client:
            await client.flushdb()
        async with Engine(redis_url) as engine:
            await engine.apply(POLICIES)
            await engine.deliver(observed(amount=1000))
            for status in order:
                await engine.deliver(observed(amount=1000, status=status))
            assert await reserved_and_committed(engine) == (0, 0), order
            assert (await engine.record("pout_1")).state == "reversed"


async def test_a_payout_that_moves_at_the_bank_without_approval_is_a_bypass(redis_url: str) -> None:
    async with Engine(redis_url) as engine:
        await engine.apply(POLICIES)
        await engine.deliver(observed("pout_1", status="processing"), observed("pout_2", 600_000))
        await engine.deliver(
            observed("pout_1", status="processed"), observed("pout_2", 600_000, status="processing")
        )
        await engine.deliver(observed("pout_1", status="pending"))
        story = await engine.story("pout_1")
        records = await engine.records()
    assert sum(isinstance(event, GovernanceBypassed) for event in story) == 1
    assert (records["pout_1"].state, records["pout_1"].decision) == ("bypassed", None)
    assert (records["pout_2"].state, records["pout_2"].decision) == ("bypassed", "HELD")


async def test_a_foreign_payout_under_an_intents_reference_is_one_bypass_of_its_own_amount(
    redis_url: str,
) -> None:
    """However often the bank shows it: each bypass alarms people."""
    asked = requested(1_000, at=NOW)
    async with Engine(redis_url) as engine:
        await engine.apply(POLICIES)
        await engine.append(asked.account, asked)
        for status in ("processing", "processed"):
            await engine.append(asked.account, copy_of(asked, "pout_foreign", status, amount=200))
            await engine.settled()
        bypasses = [e for e in await engine.story(asked.payout) if isinstance(e, GovernanceBypassed)]
    assert [(bypass.bank_payout, bypass.amount) for bypass in bypasses] == [("pout_foreign", 200)]


async def test_what_is_rejected_while_the_bank_has_it_queued_is_ended_by_the_decision_alone(
    redis_url: str,
) -> None:
    async with Engine(redis_url, vendors=Vendors({"malware": "threat"})) as engine:
        await engine.apply(POLICIES)
        await engine.deliver(observed(url="https://malware.example.net/", status="queued"))
        recorded = [type(event) for event in await engine.story("pout_1")]
    assert (recorded.count(PayoutDecided), recorded.count(CancelRequested)) == (1, 0)


@pytest.mark.parametrize(
    ("amount", "then", "cancels"),
    [
        (600_000, "queued_hold: cancel", True),
        (600_000, "queued_hold: allow", False),
        (600_000, None, True),
        (1_000_001, "queued_hold: allow", True),
        (1_000, "queued_hold: cancel", False),
    ],
    ids=["held", "held, and allowed", "held, of no policy any more", "rejected", "approved"],
)
async def test_what_somebody_moved_to_the_banks_queue_is_ended_once_unless_it_may_pay_itself(
    redis_url: str, amount: int, then: str | None, cancels: bool
) -> None:
    """It would be paid as soon as there is money, whoever is still asked about it."""
    async with Engine(redis_url) as engine:
        await engine.apply(POLICIES)
        await engine.deliver(observed("pout_1", amount))
        policies = POLICIES.replace("{daily", f"{{{then}, daily") if then else "policies: {other: {}}"
        await apply_policies(engine.client, policies, prune=True)
        for _ in range(2):
            await engine.append(ACCOUNT, observed("pout_1", amount, status="queued"))
            await engine.settled()
        asked = [event for event in await engine.story("pout_1") if isinstance(event, CancelRequested)]
    assert len(asked) == cancels


FEES = f"policies: {{bot: {{}}}}\naccounts: {{{ACCOUNT}: {{fee_fund_accounts: [fa_fees]}}}}"


async def test_a_fee_that_the_bank_collects_is_recorded_once_and_is_no_bypass(redis_url: str) -> None:
    async with Engine(redis_url) as engine:
        await engine.apply(FEES)
        for status in ("processing", "processed"):
            await engine.deliver(observed(agent=None, fund_account="fa_fees", status=status))
        recorded = [type(event) for event in await engine.story("pout_1")]
    assert (recorded.count(BankFeeRecorded), recorded.count(GovernanceBypassed)) == (1, 0)


@pytest.mark.parametrize(
    ("what", "before"),
    [
        ({"fund_account": "fa_1"}, []),
        ({"account": "acc_Other000000001"}, []),
        ({"fund_account": "fa_fees"}, ["pending"]),  # it was rejected
    ],
    ids=["to a fund account that the policy does not name", "from another account", "that was decided"],
)
async def test_what_is_no_fee_of_the_bank_is_a_bypass(
    redis_url: str, what: dict[str, str], before: list[str]
) -> None:
    payout: dict[str, Any] = {"agent": None, "fund_account": "fa_fees"} | what
    async with Engine(redis_url) as engine:
        await engine.apply(FEES)
        for status in (*before, "processing"):
            await engine.deliver(observed(**payout, status=status))
        recorded = [type(event) for event in await engine.story("pout_1")]
    assert (recorded.count(BankFeeRecorded), recorded.count(GovernanceBypassed)) == (0, 1)


async def test_a_held_payout_keeps_its_reservation_until_a_reviewer_rejects_it(redis_url: str) -> None:
    async with Engine(redis_url) as engine:
        await engine.apply(POLICIES)
        event = observed("pout_1", 600_000)
        await engine.deliver(event)
        assert await reserved_and_committed(engine) == (600_000, 0)
        await engine.review("pout_1", "asha", "reject", account=event.account)
        assert await reserved_and_committed(engine) == (0, 0)
        entry = next(
            entry
            for entry in await engine.entries()
            if any(isinstance(event, PayoutSettled) for event in entry)
        )
        assert [type(event).__name__ for event in entry] == [
            "ReviewCounted",
            "PayoutDecided",
            "PayoutSettled",
        ]
