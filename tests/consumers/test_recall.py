"""A payout that was decided months ago is not decided again when the bank shows it once more."""

import asyncio

import pytest
from msgspec.structs import replace

from consumers import recall
from streamproc.domain.events import GovernanceBypassed
from streamproc.domain.payouts import PayoutRecord, decode_record, fold
from streamproc.errors import TryAgain
from streamproc.log import batch
from tests.engine import Engine
from tests.words import observed

POLICIES = """
policies:
  bot: {daily_limit: 1000000}
"""


def old(status: str = "pending"):  # type: ignore[no-untyped-def]
    event = observed("pout_old", status=status)
    return replace(event, facts=replace(event.facts, created_at=1_580_000_000))


async def test_the_archive_is_asked_about_an_old_payout_that_redis_does_not_know(redis_url: str) -> None:
    known = PayoutRecord(
        payout="pout_old",
        account="acc",
        received_at=1,
        amount=250_000,
        bank_status="processed",
        decision="APPROVED",
    )
    asked: list[str] = []

    async def archived(payout: str) -> PayoutRecord | None:
        asked.append(payout)
        return known

    async with Engine(redis_url, archived=archived) as engine:
        await engine.apply(POLICIES)
        await engine.deliver(old(), observed("pout_new"))
        story = [type(event).__name__ for event in await engine.story("pout_old")]
        assert (await engine.record("pout_new")).decision == "APPROVED"
    assert asked == ["pout_old"]
    assert story == ["PayoutObserved"]


async def test_a_payout_of_today_that_redis_forgot_as_its_clock_was_ahead_is_no_bypass_and_is_settled(
    redis_url: str,
) -> None:
    """Its reversal was an alarm, and gave no budget back."""
    kept: dict[str, PayoutRecord] = {}

    async def archived(payout: str) -> PayoutRecord | None:
        return kept.get(payout)

    async with Engine(redis_url, archived=archived) as engine:
        await engine.apply(POLICIES)
        await engine.deliver(observed("pout_new"), observed("pout_new", status="processed"))
        kept["pout_new"] = await engine.record("pout_new")
        await engine.client.delete(engine.names.payout("pout_new"))
        await engine.deliver(observed("pout_new", status="reversed"))
        record = await engine.record("pout_new")
    assert not record.bypassed
    assert record.reservation is not None
    assert record.reservation.state == "released"


@pytest.mark.parametrize("archive", ["knows nothing of it", "has it, undecided", "is away"])
async def test_a_payout_that_moved_before_anybody_looked_is_a_bypass_whatever_the_archive_says(
    redis_url: str, archive: str
) -> None:
    asked: list[str] = []

    async def archived(payout: str) -> PayoutRecord | None:
        asked.append(payout)
        if archive == "is away":
            raise TryAgain("Postgres is away", after_s=30.0)
        later = [observed(payout, status="processed"), observed(payout, status="reversed")]
        return fold(later) if "undecided" in archive else None

    async with Engine(redis_url, archived=archived) as engine:
        await engine.apply(POLICIES)
        await engine.deliver(observed("pout_moved", status="processed"))
        assert (await engine.record("pout_moved")).bypassed
        told = [
            event.status for event in await engine.story("pout_moved") if type(event) is GovernanceBypassed
        ]
    assert told == ["processed"], "as this log has it so far"
    assert asked == ["pout_moved"]


async def test_alarms_wait_for_a_slow_archive_for_so_long_and_no_longer(
    redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recall, "ALARMS_WAIT_S", 0.0)

    async def archived(payout: str) -> PayoutRecord | None:
        raise AssertionError("its time is over")

    async with Engine(redis_url, archived=archived) as engine:
        await engine.apply(POLICIES)
        await engine.deliver(observed("pout_moved", status="processed"))
        assert (await engine.record("pout_moved")).bypassed


async def test_while_the_archive_cannot_be_asked_an_old_payout_waits_and_the_others_do_not(
    redis_url: str,
) -> None:
    async def away(payout: str) -> PayoutRecord | None:
        raise TryAgain("Postgres is away", after_s=30.0)

    async with Engine(redis_url, archived=away) as engine:
        await engine.apply(POLICIES)
        await engine.deliver(old(), observed("pout_new"))
        assert (await engine.record("pout_new")).decision == "APPROVED"
        assert (await engine.record("pout_old")).decision is None
        assert await engine.client.zcard(engine.names.retries("governance")) == 1


async def test_while_the_archive_hangs_an_old_payout_waits_and_the_others_of_its_batch_do_not(
    redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Many old ones, each with its own limit, used up the time of the batch, and all of it was put off."""
    monkeypatch.setattr(batch, "BATCH_TIMEOUT_S", 5.0)
    monkeypatch.setattr(recall, "PASS_S", 0.1)

    async def hanging(payout: str) -> PayoutRecord | None:
        await asyncio.Event().wait()
        raise AssertionError(payout)

    async with Engine(redis_url, archived=hanging) as engine:
        await engine.apply(POLICIES)
        await engine.deliver(observed("pout_new"))
        await engine.deliver(old(), observed("pout_new", status="processed"))
        assert (await engine.record("pout_new")).bank_status == "processed"
        assert await engine.client.zcard(engine.names.retries("governance")) == 1
        settled = (await engine.record("pout_new")).reservation
        assert settled is not None
        assert settled.state == "committed"


@pytest.mark.parametrize("between", ["", "a look that settles nothing", "a look by an earlier version"])
async def test_a_reversal_of_what_redis_has_forgotten_gives_the_budget_back_as_the_log_says(
    redis_url: str, between: str
) -> None:
    """The log had it released, and the counters kept it: the month's budget stayed spent, and `reconcile` alarmed."""
    kept: dict[str, PayoutRecord] = {}

    async def archived(payout: str) -> PayoutRecord | None:
        return kept.get(payout)

    async def counted() -> set[tuple[bytes | None, ...]]:
        keys = [key async for key in engine.client.scan_iter(match=engine.names.budget("*", "*"))]
        return {tuple(await engine.client.hmget(key, "r", "c")) for key in keys}

    async with Engine(redis_url, archived=archived) as engine:
        await engine.apply("policies: {bot: {daily_limit: 1000000, monthly_limit: 1000000}}")
        await engine.deliver(old("pending"), old("processed"))
        await engine.until_state("pout_old", "processed")
        assert await counted() == {(b"0", b"250000")}
        kept["pout_old"] = await engine.record("pout_old")
        await engine.client.delete(engine.names.payout("pout_old"))  # its retention time is over
        if between:
            late = old("queued")
            await engine.deliver(replace(late, facts=replace(late.facts, fees=118)))
            assert await engine.client.hexists(engine.names.payout("pout_old"), "a")
        if "earlier" in between:  # it wrote the record alone
            await engine.client.hdel(engine.names.payout("pout_old"), "a", "q", "f")
        await engine.deliver(old("reversed"))
        record = await engine.record("pout_old")
        assert record.reservation is not None
        assert record.reservation.state == "released"
        assert await counted() == {(b"0", b"0")}


@pytest.mark.parametrize("expires", ["between all", "after the first", "never again"])
async def test_what_comes_in_parts_of_what_redis_has_forgotten_changes_the_budget_once_each(
    redis_url: str, expires: str
) -> None:
    """Fees months later, then the bank's two words for a payment that came back; Redis may forget it between."""
    kept: dict[str, PayoutRecord] = {}

    async def archived(payout: str) -> PayoutRecord | None:
        return kept.get(payout)

    async with Engine(redis_url, archived=archived) as engine:
        key = engine.names.payout("pout_old")

        async def tell(status: str, fees: int = 0, *, forgets: bool = False) -> tuple[set[int], str]:
            if forgets:
                kept["pout_old"] = await engine.record("pout_old")
                await engine.client.delete(key)
            event = old(status)
            await engine.append(event.account, replace(event, facts=replace(event.facts, fees=fees)))
            await engine.settled()
            budgets = await engine.client.keys(engine.names.budget("*", "*"))
            counted = {int(await engine.client.hget(budget, "c") or 0) for budget in budgets}
            assert {await engine.client.hget(budget, "r") for budget in budgets} == {
                b"0"
            } or status == "pending"
            record = await engine.record("pout_old")
            assert decode_record(await engine.client.hget(key, "s")) == record
            assert record.reservation is not None
            return counted, record.reservation.state

        limits = "daily_limit: 1000000, monthly_limit: 1000000, count_fees: true"
        await engine.apply(f"policies: {{bot: {{{limits}}}}}")
        assert await tell("pending") == ({0}, "reserved")
        assert await tell("processed") == ({250_000}, "committed")
        again = expires == "between all"
        for status, fees, then in [
            ("queued", 118, ({250_118}, "committed")),
            ("processed", 200, ({250_200}, "committed")),
            ("failed", 200, ({0}, "released")),
            ("reversed", 300, ({0}, "released")),
        ]:
            assert (
                await tell(status, fees, forgets=again or (status == "queued" and "first" in expires)) == then
            )
            assert await engine.client.ttl(key) > 0
