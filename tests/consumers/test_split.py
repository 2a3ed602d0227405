"""A chain in one group, and the same chain with one group for each stage, record the same of every payout."""

import pytest

import consumers
from consumers.vet import Reputations
from streamproc.domain.events import Event
from streamproc.domain.policy import parse_policy_file, plan_changes
from streamproc.domain.wire import type_of
from streamproc.log.connection import connected
from streamproc.log.policies import put_in_force, read_scopes
from tests.engine import ZONE, Engine
from tests.engine import split as one_for_each_stage
from tests.profiles import policy_fields
from tests.words import ACCOUNT, NOW, Vendors, observed

POLICIES = """
policies:
  bot: {daily_limit: 1000, rate_limit: {count: 0, window: 60}, require_approval_above: 300}
  rated: {rate_limit: {count: 1, window: 60}}
  steady: {OF_HABIT}
reviewers: [asha]
""".replace("OF_HABIT", policy_fields())
VENDORS = {"malware": "threat", "unknown": "unavailable"}


async def stories(redis_url: str, *, split: bool) -> dict[str, list[tuple[str, str, str]]]:
    """What was recorded of each payout: the types of events, with decision and reason where they have one."""
    async with connected(redis_url) as client:
        await client.flushdb()
    group = consumers.governance(Reputations(Vendors(VENDORS)), zone=ZONE)
    groups = list(one_for_each_stage(group).values()) if split else [group]
    async with Engine(redis_url, groups=groups) as engine:
        await engine.apply(POLICIES)
        for i, amount in enumerate((200, 300, 301, 400, 500, 100)):
            await engine.deliver(observed(f"pout_{i}", amount))
        await engine.deliver(observed("pout_risk", url="https://malware.example.net/"))
        await engine.deliver(observed("pout_down", 300, agent="rated", url="https://unknown.example.net/"))
        await engine.deliver(observed("pout_rate", 300, agent="rated"))
        await engine.deliver(observed("pout_none", agent="stranger"))
        await engine.deliver(observed("pout_usual", 1_000, agent="steady"))
        await engine.deliver(observed("pout_unlike", 40_000, agent="steady"))
        await engine.review("pout_unlike", "asha", "approve", account=ACCOUNT)
        await engine.review("pout_2", "asha", "approve", account=ACCOUNT)
        # Its vendor is looked up again for the review, which must not ask for room again.
        await engine.review("pout_down", "asha", "approve", account=ACCOUNT)
        await engine.deliver(
            observed("pout_0", 200, status="processed"), observed("pout_2", 301, status="failed")
        )
        payouts = sorted(await engine.records())
        return {payout: [_gist(event) for event in await engine.story(payout)] for payout in payouts}


def _gist(event: Event) -> tuple[str, str, str]:
    return type_of(event), getattr(event, "decision", ""), getattr(event, "reason", "")


async def test_one_group_or_one_for_each_stage_records_the_same(redis_url: str) -> None:
    together = await stories(redis_url, split=False)
    apart = await stories(redis_url, split=True)
    assert len(together) == 12
    assert ("payout.decided", "HELD", "ANOMALY_DETECTED") in together["pout_unlike"]
    assert apart == together


@pytest.mark.parametrize("before", [("screening",), ("screening", "velocity", "reputation")], ids=" ".join)
async def test_a_policy_that_is_removed_between_two_stages_commits_rejects_and_takes_no_room(
    redis_url: str, before: tuple[str, ...]
) -> None:
    stages = one_for_each_stage(consumers.governance(Reputations(Vendors(VENDORS)), zone=ZONE))
    async with Engine(redis_url, groups=[stages[f"governance.{name}"] for name in before]) as engine:
        await engine.apply(POLICIES)
        await engine.deliver(observed("pout_1", 200, url="https://shop.example.net/"))
        assert (await engine.record("pout_1")).decision is None
        await remove_all_policies(engine)
    async with Engine(redis_url, groups=list(stages.values())) as engine:
        await engine.settled()
        record = await engine.record("pout_1")
        assert (record.decision, record.reason, record.reservation) == ("REJECTED", "NO_POLICY", None)
        assert await engine.client.keys(f"{engine.names.base}:budget:*") == []


async def test_a_policy_that_is_removed_before_room_is_asked_for_hides_no_earlier_finding(
    redis_url: str,
) -> None:
    stages = one_for_each_stage(consumers.governance(Reputations(Vendors(VENDORS)), zone=ZONE))
    before = ("screening", "velocity", "reputation")
    async with Engine(redis_url, groups=[stages[f"governance.{name}"] for name in before]) as engine:
        await engine.apply(POLICIES)
        await engine.deliver(observed("pout_1", 200, url="https://unknown.example.net/"))
        await remove_all_policies(engine)
    async with Engine(redis_url, groups=list(stages.values())) as engine:
        await engine.settled()
        assert (await engine.record("pout_1")).reasons == ["NO_POLICY", "REPUTATION_UNAVAILABLE"]


async def remove_all_policies(engine: Engine) -> None:
    rev, scopes = await read_scopes(engine.client, engine.names)
    nothing = parse_policy_file("policies: {}", name="none.yaml")
    changes = plan_changes(scopes, nothing, prune=True, at=NOW, by="test", why="test")
    assert await put_in_force(engine.client, engine.names, rev, changes, actor="test") is not None
