"""What a reading with fresh eyes proved wrong once, kept from coming back."""

import asyncio
from collections.abc import Sequence

import pytest
from msgspec.structs import replace

import consumers
from consumers.enact import execution
from consumers.vet import Reputations
from streamproc.clients.razorpay import CommandAnswer
from streamproc.domain.case import Reputation
from streamproc.domain.events import BankPayout, GovernanceBypassed, ReviewRefused
from streamproc.domain.wire import type_of
from streamproc.errors import TryAgain
from streamproc.log import failures, scripts
from tests.deadline import DEADLINE_S
from tests.engine import ZONE, Engine
from tests.words import ACCOUNT, NOW, Vendors, observed, reviewed

POLICIES = """
policies:
  bot: {daily_limit: 10000000, require_approval_above: 100000, dual_approval_above: 500000, hold_ttl: 1h}
reviewers: [asha, vikram]
"""
VENDOR = "https://vendor.example.com/"


class Bank:
    """The bank as a table of statuses that commands move as the documents say; records what it was told."""

    def __init__(self) -> None:
        self.statuses: dict[str, str] = {}
        self.told: list[tuple[str, str]] = []
        self.fetched = 0

    async def fetch(self, payout_id: str) -> BankPayout:
        self.fetched += 1
        return BankPayout(
            id=payout_id, amount=100, currency="INR", status=self.statuses.get(payout_id, "pending")
        )

    async def approve(self, payout_id: str, remarks: str) -> CommandAnswer:
        return await self._move(payout_id, "approve", "pending", "processing")

    async def reject(self, payout_id: str, remarks: str) -> CommandAnswer:
        return await self._move(payout_id, "reject", "pending", "rejected")

    async def cancel(self, payout_id: str) -> CommandAnswer:
        return await self._move(payout_id, "cancel", "queued", "cancelled")

    async def _move(self, payout: str, command: str, wanted: str, then: str) -> CommandAnswer:
        self.told.append((payout, command))
        if self.statuses.get(payout, "pending") != wanted:
            return CommandAnswer(http_status=400, outcome="refused", code="payout_approval_not_allowed")
        self.statuses[payout] = then
        return CommandAnswer(http_status=200, outcome="done", payout=await self.fetch(payout))


async def at_once(partition: int, entry: str, e: bytes) -> None:
    """A barrier that is always passed."""


def engine_with(redis_url: str, bank: Bank, vendors: Vendors | None = None) -> Engine:
    reputations = Reputations(vendors or Vendors())
    groups = [consumers.governance(reputations, zone=ZONE), execution(bank, at_once)]
    return Engine(redis_url, groups=groups)


async def test_a_held_payout_that_somebody_moves_to_queued_is_cancelled(redis_url: str) -> None:
    bank = Bank()
    async with engine_with(redis_url, bank) as engine:
        await engine.apply(POLICIES)
        await engine.deliver(observed("pout_1", 200_000))
        bank.statuses["pout_1"] = "queued"
        await engine.deliver(observed("pout_1", 200_000, status="queued"))
        await engine.settled()
        record = await engine.record("pout_1")
    assert bank.told == [("pout_1", "cancel")]
    assert (record.state, record.reservation.state) == ("cancelled", "released")


async def test_a_rejected_payout_that_is_queued_by_then_is_cancelled(redis_url: str) -> None:
    bank = Bank()
    bank.statuses["pout_1"] = "queued"
    async with engine_with(redis_url, bank) as engine:
        await engine.deliver(observed("pout_1"))
        record = await engine.record("pout_1")
        assert await engine.client.xlen(engine.names.dead) == 0
    assert bank.told == [("pout_1", "reject"), ("pout_1", "cancel")]
    assert (record.decision, record.bank_status) == ("REJECTED", "cancelled")


async def test_an_approval_after_the_hold_ran_out_does_not_count(redis_url: str) -> None:
    async with Engine(redis_url) as engine:
        await engine.apply(POLICIES)
        await engine.deliver(observed("pout_1", 200_000))
        expires_at = (await engine.record("pout_1")).hold_expires_at
        late = reviewed("pout_1", at=expires_at, why="late")
        await engine.append(ACCOUNT, late)
        await engine.settled()
        story = await engine.story("pout_1")
        assert (await engine.record("pout_1")).decision == "HELD"
    assert isinstance(story[-1], ReviewRefused)
    assert "ran out" in story[-1].problem


class SlowVendors(Vendors):
    """A look-up during which something else happens."""

    def __init__(self) -> None:
        super().__init__()
        self.asking, self.go_on = asyncio.Event(), asyncio.Event()

    async def __call__(self, urls: Sequence[str]) -> dict[str, Reputation]:
        self.asking.set()
        await self.go_on.wait()
        return await super().__call__(urls)


async def test_a_freeze_that_comes_during_a_look_up_binds_the_payout_that_is_being_decided(
    redis_url: str,
) -> None:
    vendors = SlowVendors()
    async with Engine(redis_url, vendors=vendors) as engine:
        await engine.apply(POLICIES)
        await engine.append(ACCOUNT, observed("pout_1", 1000, url=VENDOR))
        await vendors.asking.wait()
        await engine.apply(POLICIES.replace("hold_ttl: 1h", "frozen: true"))
        vendors.go_on.set()
        await engine.settled()
        record = await engine.record("pout_1")
        kept = await engine.client.hget(engine.names.budget("agent:bot", "2026-09-21"), "r")
    assert (record.decision, record.reason, record.policy_version) == ("REJECTED", "FROZEN", 2)
    assert int(kept or 0) == 0


async def test_a_reversal_that_is_told_before_what_it_reverses_is_a_bypass_too(redis_url: str) -> None:
    async with Engine(redis_url) as engine:
        await engine.deliver(observed("pout_1", status="reversed"))
        await engine.deliver(observed("pout_1", status="processed"))
        story = await engine.story("pout_1")
    assert sum(isinstance(event, GovernanceBypassed) for event in story) == 1


async def test_an_approval_cannot_stand_in_for_a_look_up_that_nobody_said_was_missing(redis_url: str) -> None:
    vendors = Vendors()
    async with Engine(redis_url, vendors=vendors) as engine:
        await engine.apply(POLICIES)
        await engine.deliver(observed("pout_1", 200_000, url=VENDOR))
    vendors.verdicts["vendor"] = "unavailable"
    async with Engine(redis_url, vendors=vendors) as engine:
        await engine.client.delete(*[key async for key in engine.client.scan_iter("*reputation*")])
        await engine.review("pout_1", "asha", "approve", account=ACCOUNT)
        assert (await engine.record("pout_1")).decision == "HELD"
        vendors.verdicts.clear()
        await engine.review("pout_1", "asha", "approve", account=ACCOUNT)
        story = [type_of(event) for event in await engine.story("pout_1")]
        assert (await engine.record("pout_1")).decision == "APPROVED"
    assert story[-5:-1] == [
        "review.submitted",
        "payout.reputation_checked",
        "review.counted",
        "payout.decided",
    ]


async def test_the_approval_of_a_reviewer_who_was_removed_does_not_count_as_one_of_two(
    redis_url: str,
) -> None:
    async with Engine(redis_url) as engine:
        await engine.apply(POLICIES)
        await engine.deliver(observed("pout_1", 600_000))
        await engine.review("pout_1", "asha", "approve", account=ACCOUNT)
        await engine.apply(POLICIES.replace("[asha, vikram]", "[vikram, meera]"))
        await engine.review("pout_1", "vikram", "approve", account=ACCOUNT)
        assert (await engine.record("pout_1")).decision == "HELD"
        await engine.review("pout_1", "meera", "approve", account=ACCOUNT)
        assert (await engine.record("pout_1")).decision == "APPROVED"


async def test_an_entry_without_fields_is_set_aside_and_the_worker_lives(redis_url: str) -> None:
    async with Engine(redis_url) as engine:
        await engine.apply(POLICIES)
        await engine.client.xadd(engine.names.log, {"x": "1"})
        await engine.deliver(observed("pout_1", 1000))
        assert (await engine.record("pout_1")).decision == "APPROVED"
        assert await engine.client.xlen(engine.names.dead) == 1


async def test_an_earlier_observation_found_later_gives_the_facts_in_either_order(redis_url: str) -> None:
    from streamproc.domain.payouts import fold

    first, earlier = observed("pout_1", 1000, at=NOW), observed("pout_1", 1000, at=NOW - 5, status="queued")
    assert fold([first, earlier]) == fold([earlier, first])
    assert fold([replace(first, at=NOW), earlier]).received_at == NOW - 5


async def test_while_the_barrier_is_closed_the_bank_is_not_asked_again_and_again(
    redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    tries: list[str] = []

    async def closed(partition: int, entry: str, e: bytes) -> None:
        tries.append(entry)
        raise TryAgain("not archived yet", after_s=0.0)

    monkeypatch.setattr(failures, "BACKOFF", scripts.Backoff(0.0, 0.0, 0.0))
    bank = Bank()
    groups = [consumers.governance(Reputations(Vendors()), zone=ZONE), execution(bank, closed)]
    async with Engine(redis_url, groups=groups) as engine:
        await engine.apply(POLICIES)
        await engine.append(ACCOUNT, observed("pout_1", 1000))
        async with asyncio.timeout(DEADLINE_S):
            while len(tries) < 3:
                await asyncio.sleep(0.01)
    assert (bank.told, bank.fetched) == ([], 0)
