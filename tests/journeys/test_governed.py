"""From the bank's webhook to the bank's record: what each decision does to the payout and its budget."""

import pytest

from streamproc.domain import events as e
from tests.journeys.system import System, kinds

pytestmark = pytest.mark.asyncio(loop_scope="module")


async def test_an_approved_payout_is_approved_at_the_bank_and_its_budget_is_committed(system: System) -> None:
    made = await system.bank.pay(250_000, notes={"agent_id": "bot"})

    record = await system.reaches(made["id"], "processed")

    assert (record.decision, record.reason) == ("APPROVED", "POLICY_OK")
    assert record.reservation is not None
    (told,) = await system.bank.record(payout=made["id"])
    assert (told["command"], told["auth"], told["effect"]) == ("payout.approve", "bearer", True)
    assert "POLICY_OK" in told["remarks"]
    await system.settled()
    view = await system.view(made["id"])
    assert view is not None
    assert view.reservation is not None
    assert view.reservation.state == "committed"


async def test_a_rejected_payout_is_rejected_at_the_bank_and_charged_to_no_budget(system: System) -> None:
    made = await system.bank.pay(500_001, notes={"agent_id": "small"})

    record = await system.reaches(made["id"], "rejected")
    await system.bank.reaches(made["id"], "rejected")

    assert (record.decision, record.reason) == ("REJECTED", "TXN_LIMIT_EXCEEDED")
    assert record.reservation is None
    assert await system.effects(made["id"]) == ["payout.reject"]


async def test_a_queued_payout_that_is_rejected_is_cancelled(system: System) -> None:
    made = await system.bank.pay(500_001, status="queued", notes={"agent_id": "small"})

    await system.bank.reaches(made["id"], "cancelled")
    record = await system.reaches(made["id"], "rejected")

    assert record.reason == "TXN_LIMIT_EXCEEDED"
    assert await system.effects(made["id"]) == ["payout.cancel"]


async def test_a_queued_payout_that_is_approved_is_left_alone(system: System) -> None:
    made = await system.bank.pay(250_000, status="queued", notes={"agent_id": "bot"})

    record = await system.reaches(made["id"], "approved")
    await system.settled()

    assert record.bank_status == "queued"
    assert await system.bank.record(payout=made["id"]) == []


async def test_a_queued_payout_that_is_held_is_cancelled_since_it_would_pay_itself(system: System) -> None:
    made = await system.bank.pay(800_000, status="queued", notes={"agent_id": "careful"})

    await system.bank.reaches(made["id"], "cancelled")
    record = await system.reaches(made["id"], "cancelled")
    await system.settled()

    assert (record.decision, record.reason) == ("HELD", "APPROVAL_REQUIRED")
    assert await system.effects(made["id"]) == ["payout.cancel"]
    view = await system.view(made["id"])
    assert view is not None
    assert view.reservation is not None
    assert view.reservation.state == "released"


async def test_a_queued_payout_that_is_held_stays_where_the_policy_allows_it(system: System) -> None:
    made = await system.bank.pay(800_000, status="queued", notes={"agent_id": "waits"})

    await system.reaches(made["id"], "held")
    await system.settled()

    assert (await system.bank.payout(made["id"]))["status"] == "queued"
    assert await system.bank.record(payout=made["id"]) == []


async def test_a_held_payout_waits_until_a_reviewer_approves_and_is_then_processed(system: System) -> None:
    made = await system.bank.pay(800_000, notes={"agent_id": "careful"})
    held = await system.reaches(made["id"], "held")
    await system.settled()
    assert await system.bank.record(payout=made["id"]) == []
    assert held.reservation is not None
    assert held.reservation.state == "reserved"

    await system.review(made["id"], by="asha")

    record = await system.reaches(made["id"], "processed")
    assert (record.decision, record.reason) == ("APPROVED", "REVIEW_APPROVED")
    assert [review.by for review in record.reviews] == ["asha"]
    assert await system.effects(made["id"]) == ["payout.approve"]


async def test_a_reviewers_rejection_rejects_at_the_bank_and_gives_the_budget_back(system: System) -> None:
    made = await system.bank.pay(800_000, notes={"agent_id": "careful"})
    await system.reaches(made["id"], "held")

    await system.review(made["id"], by="asha", action="reject")

    await system.bank.reaches(made["id"], "rejected")
    await system.settled()
    record = await system.reaches(made["id"], "rejected")
    assert record.reservation is not None
    assert record.reservation.state == "released"
    assert await system.effects(made["id"]) == ["payout.reject"]


async def test_a_payout_that_the_bank_moves_without_us_is_recorded_as_a_bypass(system: System) -> None:
    made = await system.bank.pay(250_000, status="processing", notes={"agent_id": "bot"})

    await system.reaches(made["id"], "bypassed")
    await system.settled()

    assert kinds(await system.story(made["id"]))["governance.bypassed"] == 1
    assert await system.bank.record(payout=made["id"]) == []


async def test_a_payout_that_the_bank_fails_gives_its_budget_back(system: System) -> None:
    made = await system.bank.pay(250_000, outcome="failed", notes={"agent_id": "bot"})

    await system.reaches(made["id"], "failed")
    await system.settled()

    settled = [event for event in await system.story(made["id"]) if isinstance(event, e.PayoutSettled)]
    assert [event.settlement for event in settled] == ["released"]


async def test_a_late_reversal_gives_back_what_was_committed(system: System) -> None:
    made = await system.bank.pay(250_000, notes={"agent_id": "bot"})
    await system.reaches(made["id"], "processed")

    await system.bank.advance(made["id"], "reversed")

    await system.reaches(made["id"], "reversed")
    await system.settled()
    settled = [event for event in await system.story(made["id"]) if isinstance(event, e.PayoutSettled)]
    assert [event.settlement for event in settled] == ["committed", "released"]


async def test_while_safe_browsing_is_down_a_payout_is_held_and_never_approved(system: System) -> None:
    await system.bank.control("safebrowsing", down="500")
    try:
        made = await system.bank.pay(
            250_000, notes={"agent_id": "web", "vendor_url": "https://outage.example.com/"}
        )
        record = await system.reaches(made["id"], "held")
    finally:
        await system.bank.control("safebrowsing", down="ok")

    assert record.reason == "REPUTATION_UNAVAILABLE"
    assert await system.bank.record(payout=made["id"]) == []


async def test_a_vendor_that_safe_browsing_names_is_rejected_before_any_budget_is_taken(
    system: System,
) -> None:
    made = await system.bank.pay(
        250_000, notes={"agent_id": "web", "vendor_url": "https://pay.malware.example.net/x"}
    )

    await system.bank.reaches(made["id"], "rejected")
    record = await system.reaches(made["id"], "rejected")

    assert record.reason == "RISK_HIGH"
    assert record.reservation is None
