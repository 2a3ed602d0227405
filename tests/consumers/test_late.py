"""A decision that cannot be told to the bank is tried until it can, and cries out when that takes too long."""

import asyncio
import logging

import pytest
from msgspec.structs import replace

import consumers
from consumers import enact
from consumers.enact import execution
from consumers.vet import Reputations
from streamproc.clients.http import OutcomeUnknown
from streamproc.clients.razorpay import CommandAnswer
from streamproc.domain.events import BankCommandAnswered
from streamproc.domain.payouts import PayoutRecord, fold
from streamproc.log import batch, failures, scripts
from streamproc.log.stream import open_log
from tests.consumers.test_refuted import Bank, at_once
from tests.deadline import DEADLINE_S
from tests.engine import ZONE, Engine
from tests.words import ACCOUNT, Vendors, observed

POLICIES = "policies: {small: {per_txn_limit: 100}}"


class BankAway(Bank):
    """Takes no rejection while it is away."""

    def __init__(self) -> None:
        super().__init__()
        self.is_away = True
        self.tries = 0

    async def reject(self, payout_id: str, remarks: str) -> CommandAnswer:
        self.tries += 1
        if self.is_away:
            raise OutcomeUnknown("the bank answered 503", after_s=0.0)
        return await super().reject(payout_id, remarks)


@pytest.mark.parametrize("ended_meanwhile", [False, True])
async def test_a_rejection_is_retried_until_it_is_told_or_the_payout_is_final(
    redis_url: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    ended_meanwhile: bool,
) -> None:
    monkeypatch.setattr(failures, "BACKOFF", scripts.Backoff(0.0, 0.0, 0.0))
    monkeypatch.setattr(failures, "LATE_S", -60.0)  # every age is too old
    bank = BankAway()
    groups = [consumers.governance(Reputations(Vendors()), zone=ZONE), execution(bank, at_once)]
    with caplog.at_level(logging.ERROR):
        async with Engine(redis_url, groups=groups) as engine:
            await engine.apply(POLICIES)
            await engine.append(ACCOUNT, observed("pout_1", 1000, agent="small"))
            async with asyncio.timeout(DEADLINE_S):
                while bank.tries < 2:
                    await asyncio.sleep(0.01)
            if ended_meanwhile:
                bank.statuses["pout_1"] = "cancelled"  # by a person at the bank
            bank.is_away = False
            async with asyncio.timeout(DEADLINE_S):
                while not [a for a in await engine.story("pout_1") if isinstance(a, BankCommandAnswered)]:
                    await asyncio.sleep(0.01)
            (answer,) = [a for a in await engine.story("pout_1") if isinstance(a, BankCommandAnswered)]
    assert (answer.outcome, answer.bank_status) == (
        ("already", "cancelled") if ended_meanwhile else ("done", "rejected")
    )
    alarms = [record.getMessage() for record in caplog.records if "ALARM" in record.getMessage()]
    assert alarms
    assert "the bank answered 503" in alarms[0]


class BankStuck(Bank):
    """Never answers about one payout."""

    async def reject(self, payout_id: str, remarks: str) -> CommandAnswer:
        if payout_id == "pout_stuck":
            await asyncio.get_running_loop().create_future()
        return await super().reject(payout_id, remarks)


async def test_a_pass_ends_in_time_with_what_it_has_and_puts_the_rest_off(
    redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(enact, "PASS_S", 0.5)
    monkeypatch.setattr(batch, "BATCH_TIMEOUT_S", 3_600.0)  # it is not what ends the pass
    bank = BankStuck()
    groups = [consumers.governance(Reputations(Vendors()), zone=ZONE), execution(bank, at_once)]
    async with Engine(redis_url, groups=groups) as engine:
        await engine.apply(POLICIES)
        payouts = ["pout_stuck", *(f"pout_{n}" for n in range(5))]
        for payout in payouts:
            await engine.append(ACCOUNT, observed(payout, 1000, agent="small"))
        async with asyncio.timeout(DEADLINE_S):
            while sum(bank.statuses.get(payout) == "rejected" for payout in payouts) < 5:
                await asyncio.sleep(0.01)
            while not await engine.client.zcard(engine.names.retries("execution")):
                await asyncio.sleep(0.01)
            # What the bank did is recorded a moment later, and of another batch perhaps long after the first retry.
            while len(answered := await told(engine)) < 5:
                await asyncio.sleep(0.01)
    assert answered == set(payouts) - {"pout_stuck"}


async def told(engine: Engine) -> set[str]:
    """The payouts whose answer of the bank is in the log."""
    return {
        event.payout
        for entry in await engine.entries()
        for event in entry
        if isinstance(event, BankCommandAnswered)
    }


async def assert_told_in_the_end(engine: Engine) -> None:
    """Nothing is put off any more, and nothing is a dead letter."""
    await engine.settled(wholly=True)
    assert await engine.client.xlen(engine.names.dead) == 0


@pytest.mark.parametrize("views_are_behind", [False, True])
async def test_a_decision_that_is_told_after_redis_forgot_its_payout_is_no_dead_letter(
    redis_url: str, monkeypatch: pytest.MonkeyPatch, views_are_behind: bool
) -> None:
    monkeypatch.setattr(failures, "BACKOFF", scripts.Backoff(0.0, 0.0, 0.0))
    bank, asked = Bank(), list[str]()
    governed = [consumers.governance(Reputations(Vendors()), zone=ZONE)]
    async with Engine(redis_url, groups=governed) as engine:
        await open_log(engine.client, partitions=1, groups=[execution(bank, at_once).name])
        await engine.apply(POLICIES)
        await engine.append(ACCOUNT, observed("pout_1", 1000, agent="small"))
        await engine.append(ACCOUNT, observed("pout_1", 1000, agent="small", status="rejected"))
        await engine.settled()
        ended = fold(await engine.story("pout_1"))
        assert ended is not None
        await engine.client.delete(engine.names.payout("pout_1"))  # its retention time is over

    async def archived(payout: str) -> PayoutRecord | None:
        asked.append(payout)
        return replace(ended, bank_status="pending") if views_are_behind and len(asked) == 1 else ended

    told = [execution(bank, at_once, archived=archived)]
    async with Engine(redis_url, groups=told) as engine:
        await assert_told_in_the_end(engine)
    assert asked == (2 if views_are_behind else 1) * ["pout_1"]
    assert bank.statuses == {}


async def test_a_payout_that_redis_forgets_under_a_workers_hands_ends_no_worker(
    redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(failures, "BACKOFF", scripts.Backoff(0.0, 0.0, 0.0))
    bank, times = Bank(), list[str]()
    governed = [consumers.governance(Reputations(Vendors()), zone=ZONE)]
    async with Engine(redis_url, groups=governed) as engine:
        await open_log(engine.client, partitions=1, groups=[execution(bank, at_once).name])
        await engine.apply("policies: {bot: {daily_limit: 100_000}}")
        await engine.append(ACCOUNT, observed("pout_1", 1000))
        await engine.until("pout_1", "PayoutDecided")
        await engine.append(ACCOUNT, observed("pout_1", 1000, status="processed"))
        await engine.settled()
        ended = fold(await engine.story("pout_1"))

    async def archived(payout: str) -> PayoutRecord | None:
        return ended

    async def forgotten(partition: int, entry: str, e: bytes) -> None:
        times.append(entry)
        await engine.client.delete(engine.names.payout("pout_1"))

    told = [execution(bank, forgotten, archived=archived)]
    async with Engine(redis_url, groups=told) as engine:
        await assert_told_in_the_end(engine)
    assert (len(times), bank.told) == (1, [])
