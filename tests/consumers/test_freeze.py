"""A freeze binds the next decision, and what is approved and not sent yet; only a person lifts it."""

import asyncio

import pytest

import consumers
from consumers.enact import execution
from consumers.vet import Reputations
from streamproc.clients.http import OutcomeUnknown
from streamproc.domain import events as e
from streamproc.log.work import Group
from tests.consumers.test_refuted import Bank, at_once
from tests.engine import ZONE, Engine
from tests.words import ACCOUNT, Vendors, observed

POLICIES = """
policies:
  bot: {daily_limit: 1000000, require_approval_above: 500000, team: desk}
  other: {daily_limit: 1000000}
teams: {desk: {daily_limit: 5000000}}
reviewers: [asha]
"""


class Gate:
    """A barrier that lets nobody pass until it is opened, as while Postgres is away."""

    def __init__(self) -> None:
        self.waiting, self.open = asyncio.Event(), asyncio.Event()

    async def __call__(self, partition: int, entry: str, e: bytes) -> None:
        self.waiting.set()
        await self.open.wait()


class Forgetful(Bank):
    """A bank whose first answers to an approval are lost, without or with effect."""

    def __init__(self, *, takes_effect: bool) -> None:
        super().__init__()
        self.takes_effect, self.lost = takes_effect, 0

    async def approve(self, payout_id: str, remarks: str):  # type: ignore[no-untyped-def]
        if self.lost:
            return await super().approve(payout_id, remarks)
        self.lost += 1
        if self.takes_effect:
            await super().approve(payout_id, remarks)
        raise OutcomeUnknown("the answer was lost", after_s=0.1)


def groups(bank: Bank, barrier: object = at_once) -> list[Group]:
    return [
        consumers.governance(Reputations(Vendors()), zone=ZONE),
        execution(bank, barrier),  # type: ignore[arg-type]
    ]


@pytest.mark.parametrize("scope", ["agent:bot", f"account:{ACCOUNT}", "team:desk", "agent:stranger"])
async def test_a_freeze_rejects_the_next_payout_of_its_scope_with_who_and_why(
    redis_url: str, scope: str
) -> None:
    async with Engine(redis_url) as engine:
        await engine.apply(POLICIES)
        await engine.freeze(scope)
        agent = "stranger" if scope == "agent:stranger" else "bot"
        await engine.deliver(observed("pout_1", 1000, agent=agent))
        record = await engine.record("pout_1")
        await engine.freeze(scope, frozen=False)
        await engine.deliver(observed("pout_2", 1000, agent=agent))
        after = await engine.record("pout_2")
    assert (record.decision, record.reason) == ("REJECTED", "FROZEN")
    assert record.findings[0].evidence == {"scope": scope, "by": "test", "why": "test"}
    assert after.reason == ("NO_POLICY" if agent == "stranger" else "POLICY_OK")


async def test_a_freeze_of_one_agent_leaves_the_others_alone(redis_url: str) -> None:
    async with Engine(redis_url) as engine:
        await engine.apply(POLICIES)
        await engine.freeze("agent:bot")
        await engine.freeze("account:acc_Other")
        await engine.freeze("team:None")  # a name like any other, and not that of agents without a team
        await engine.deliver(observed("pout_1", 1000, agent="other"))
        assert (await engine.record("pout_1")).reason == "POLICY_OK"


async def test_no_policy_file_lifts_a_freeze(redis_url: str) -> None:
    async with Engine(redis_url) as engine:
        await engine.freeze("agent:bot")
        await engine.apply(POLICIES)
        await engine.apply(POLICIES.replace("1000000", "2000000"))
        await engine.apply("policies: {bot: {frozen: false}}")
        await engine.deliver(observed("pout_1", 1000))
        assert (await engine.record("pout_1")).reason == "FROZEN"


async def test_a_reviewer_cannot_approve_what_is_frozen_by_then(redis_url: str) -> None:
    async with Engine(redis_url) as engine:
        await engine.apply(POLICIES)
        await engine.deliver(observed("pout_1", 600_000))
        await engine.freeze("agent:bot")
        await engine.review("pout_1", "asha", "approve", account=ACCOUNT)
        record = await engine.record("pout_1")
    assert (record.decision, record.reason, record.state) == ("REJECTED", "FROZEN", "rejected")


async def test_what_was_frozen_while_it_waited_at_the_barrier_is_not_sent_but_rejected_at_the_bank(
    redis_url: str,
) -> None:
    bank, gate = Bank(), Gate()
    async with Engine(redis_url, groups=groups(bank, gate)) as engine:
        await engine.apply(POLICIES)
        await engine.append(ACCOUNT, observed("pout_1", 1000))
        await gate.waiting.wait()
        await engine.freeze("agent:bot")
        gate.open.set()
        await engine.settled()
        record, story = await engine.record("pout_1"), await engine.story("pout_1")
        reserved = await engine.client.hget(engine.names.budget("agent:bot", "2026-09-21"), "r")
    assert bank.told == [("pout_1", "reject")]
    assert (record.state, record.reason, record.bank_status) == ("rejected", "FROZEN", "rejected")
    [stop] = [event for event in story if isinstance(event, e.PayoutStopped)]
    assert (stop.command, stop.finding.code, stop.maybe_sent) == ("approve", "FROZEN", False)
    assert (record.reservation.state, reserved) == ("released", b"0")  # type: ignore[union-attr]
    kinds = [type(event).__name__ for event in story]
    # Nothing was sent, so the money is free in the commit that rejects.
    assert kinds[kinds.index("PayoutStopped") + 1 :][:2] == ["PayoutDecided", "PayoutSettled"]


async def test_where_an_approval_may_have_arrived_the_money_stays_reserved_until_the_bank_has_rejected(
    redis_url: str,
) -> None:
    bank = Forgetful(takes_effect=False)
    async with Engine(redis_url, groups=groups(bank), claim_idle_s=0.2) as engine:
        await engine.apply(POLICIES)
        await engine.deliver(observed("pout_1", 1000))
        await engine.freeze("agent:bot")
        await engine.until("pout_1", "PayoutSettled")
        record, story = await engine.record("pout_1"), await engine.story("pout_1")
    assert bank.told == [("pout_1", "reject")]
    [stop] = [event for event in story if isinstance(event, e.PayoutStopped)]
    assert stop.maybe_sent
    kinds = [type(event).__name__ for event in story]
    assert kinds.index("BankCommandAnswered") < kinds.index("PayoutSettled")
    assert (record.state, record.reservation.state) == ("rejected", "released")  # type: ignore[union-attr]


async def test_an_approval_whose_answer_was_lost_and_that_took_effect_is_not_called_back(
    redis_url: str,
) -> None:
    bank = Forgetful(takes_effect=True)
    async with Engine(redis_url, groups=groups(bank), claim_idle_s=0.2) as engine:
        await engine.apply(POLICIES)
        await engine.deliver(observed("pout_1", 1000))
        await engine.freeze("agent:bot")
        await engine.until("pout_1", "BankCommandAnswered")
        record = await engine.record("pout_1")
    assert bank.told == [("pout_1", "approve")]
    assert (record.state, record.decision) == ("confirmed", "APPROVED")
    assert record.reservation.state == "reserved"  # type: ignore[union-attr]
