"""What a trace tells where somebody else is faster: the bank moves a payout during our call, or while people think."""

from collections import Counter

import pytest

import consumers
from consumers.channels import Channels
from consumers.enact import execution
from consumers.vet import Reputations
from streamproc.clients.razorpay import CommandAnswer
from streamproc.domain.events import TimerFired
from streamproc.domain.payouts import decode_record
from streamproc.log.digests import Digests
from streamproc.operate.people import notification_over
from streamproc.telemetry import watch
from streamproc.telemetry.exposure import snapshot
from streamproc.telemetry.spans import Span
from tests.bank import until
from tests.consumers.test_refuted import Bank, at_once
from tests.engine import ZONE, Engine
from tests.telemetry.test_traces import Keeping, archived, assert_connected
from tests.telemetry.test_traces import tracer as tracer
from tests.words import ACCOUNT, Vendors, delivery, observed

POLICIES = """
policies:
  small: {per_txn_limit: 100}
  careful: {daily_limit: 10_000_000, require_approval_above: 100}
reviewers: [asha]
"""


def named(trace: dict[int, Span], name: str) -> list[Span]:
    return [span for span in trace.values() if span.name.startswith(name)]


def held_for_s(decision: str, reason: str) -> float:
    """How many holds ended so, by the metric."""
    meters = watch.meters()
    assert meters is not None
    return sum(
        point.value
        for family in snapshot(meters.registry)
        for point in family.points
        if point.name == "streamproc_hold_seconds_count"
        and (point.labels["decision"], point.labels["reason"]) == (decision, reason)
    )


class BankThatTellsFirst(Bank):
    """Its webhook is handled before the call that caused it has returned."""

    engine: Engine

    async def reject(self, payout_id: str, remarks: str) -> CommandAnswer:
        with watch.Called("razorpay", "POST /v1/payouts/pout_1/reject"):
            answer = await super().reject(payout_id, remarks)
            moved = observed(payout_id, 101, agent="small", status="rejected")
            await self.engine.producer.append(delivery(moved))
            await until(lambda: self.is_known_rejected(payout_id), what="the webhook is handled")
        return answer

    async def is_known_rejected(self, payout: str) -> bool:
        record = await self.engine.client.hget(self.engine.names.payout(payout), "s")
        return decode_record(record).bank_status == "rejected"


async def test_a_call_is_within_its_stage_where_a_webhook_overtook_its_commit(
    redis_url: str, tracer: Keeping
) -> None:
    bank = BankThatTellsFirst()
    groups = [consumers.governance(Reputations(Vendors()), zone=ZONE), execution(bank, at_once)]
    async with Engine(redis_url, groups=groups) as engine:
        bank.engine = engine
        await engine.apply(POLICIES)
        await engine.deliver(observed("pout_1", 101, agent="small"))
        await archived(engine)
    trace = tracer.of("pout_1")
    assert_connected(trace)
    [call], [enact] = named(trace, "razorpay POST"), named(trace, "enact")
    assert enact.parent is not None
    process = trace[enact.parent]
    assert call.parent == enact.context.span
    assert process.begun_ns <= enact.begun_ns <= call.begun_ns
    assert call.ended_ns <= enact.ended_ns <= process.ended_ns


@pytest.mark.parametrize(("status", "state"), [("processing", "bypassed"), ("cancelled", "cancelled")])
async def test_a_hold_that_the_bank_ended_is_told_and_timed(
    redis_url: str, tracer: Keeping, status: str, state: str
) -> None:
    async with Engine(redis_url) as engine:
        await engine.apply(POLICIES)
        await engine.deliver(observed("pout_1", 101, agent="careful"))
        assert named(tracer.of("pout_1"), "hold") == []
        await engine.deliver(observed("pout_1", 101, agent="careful", status=status))
        await archived(engine)
    trace = tracer.of("pout_1")
    assert_connected(trace)
    [hold] = named(trace, "hold")
    assert hold.attributes["streamproc.held_for"] == "APPROVAL_REQUIRED"
    assert hold.attributes["streamproc.state"] == state
    assert "streamproc.decision" not in hold.attributes
    assert [trace[link.span].name for link in hold.links] == ["process sp:{partition}:log"]
    assert held_for_s("OVER", status) == 1


async def test_a_hold_that_a_person_ended_is_timed_by_its_decision(redis_url: str, tracer: Keeping) -> None:
    async with Engine(redis_url) as engine:
        await engine.apply(POLICIES)
        await engine.deliver(observed("pout_1", 101, agent="careful"))
        await engine.review("pout_1", "asha", "reject", account=ACCOUNT)
    [hold] = named(tracer.of("pout_1"), "hold")
    assert hold.attributes["streamproc.decision"] == "REJECTED"
    assert held_for_s("REJECTED", str(hold.attributes["streamproc.reason"])) == 1


async def test_a_timer_that_two_groups_handle_has_one_append(redis_url: str, tracer: Keeping) -> None:
    people = notification_over(redis_url, Channels(), Digests(redis_url))
    groups = [consumers.governance(Reputations(Vendors()), zone=ZONE), people]
    async with Engine(redis_url, groups=groups) as engine:
        await engine.apply(POLICIES)
        await engine.deliver(observed("pout_1", 101, agent="careful"))
        reminder = TimerFired(at=engine.producer.now_us(), payout="pout_1", timer="hold_reminder")
        await engine.append(ACCOUNT, reminder)
        await engine.settled()
        await archived(engine)
    trace = tracer.of("pout_1")
    assert_connected(trace)
    appends = Counter(span.context for span in tracer.told if span.name.startswith("append"))
    assert sorted(appends.values()) == [1, 1]
    handled = [span.attributes["messaging.consumer.group.name"] for span in named(trace, "process")]
    assert handled.count("notification") == 2
