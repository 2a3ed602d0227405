"""What an operator sees and does: `hold`, `explain`, `groups`, `dead`, over the running system."""

import json
from typing import Any

import pytest

from tests.journeys.system import System

pytestmark = pytest.mark.asyncio(loop_scope="module")


async def told_by(system: System, *arguments: str) -> Any:
    """What a command prints as JSON; it must exit 0."""
    code, out, err = await system.cli(*arguments, "--json")
    assert code == 0, err
    return json.loads(out)


async def held(system: System) -> str:
    """A payout that waits for a reviewer."""
    made = await system.bank.pay(
        800_000, notes={"agent_id": "careful", "vendor_url": "https://paper.example.com/"}
    )
    await system.reaches(made["id"], "held")
    return str(made["id"])


async def test_explain_tells_a_held_and_approved_payout_from_the_request_to_the_banks_answer(
    system: System,
) -> None:
    payout = await held(system)
    assert payout in [item["payout"] for item in (await told_by(system, "hold", "list"))["items"]]

    code, _, err = await system.cli("hold", "approve", payout, "--by", "asha", "--reason", "ordered by us")
    assert code == 0, err
    await system.reaches(payout, "processed")
    await system.settled()

    story = await told_by(system, "explain", payout)
    assert (story["agent"], story["amount"], story["currency"]) == ("careful", 800_000, "INR")
    assert (story["decision"], story["reason"]) == ("APPROVED", "REVIEW_APPROVED")
    assert story["reasons"] == ["REVIEW_APPROVED", "APPROVAL_REQUIRED"]
    assert story["policy_version"] >= 1
    assert (story["state"], story["bank_status"]) == ("processed", "processed")
    assert story["vendor_url"] == "https://paper.example.com/"
    assert ["approval", "APPROVAL_REQUIRED"] in [[f["stage"], f["code"]] for f in story["findings"]]
    assert story["reservation"]["state"] == "committed"
    assert [(review["by"], review["action"], review["why"]) for review in story["reviews"]] == [
        ("asha", "approve", "ordered by us")
    ]
    events = {event["type"]: event["data"] for event in story["events"]}
    (window,) = events["payout.budget_reserved"]["windows"]
    assert {"limit", "reserved", "committed"} <= window.keys()
    assert events["bank.command_answered"]["command"] == "approve"
    assert events["payout.settled"]["settlement"] == "committed"
    order = [event["type"] for event in story["events"]]
    assert order.index("payout.observed") < order.index("payout.screened") < order.index("payout.decided")
    # The bank's webhook may be handled before the worker that asked it has recorded the answer.
    assert order.index("review.counted") < min(
        order.index("bank.command_answered"), order.index("payout.settled")
    )
    assert order[0] == "payout.observed"


async def test_the_story_for_people_names_the_rules_the_reviewer_and_the_money(system: System) -> None:
    payout = await held(system)
    await system.cli("hold", "approve", payout, "--by", "vikram", "--reason", "checked")
    await system.reaches(payout, "processed")

    code, text, err = await system.cli("explain", payout)

    assert code == 0, err
    for said in (
        payout,
        "₹8,000",
        "APPROVAL_REQUIRED",
        "vikram",
        "checked",
        "policy version",
        "agent:careful",
    ):
        assert said in text


async def test_a_hold_is_decided_once_and_the_second_reviewer_is_told_by_whom(system: System) -> None:
    payout = await held(system)
    first = await system.cli("hold", "reject", payout, "--by", "asha", "--reason", "not ours")
    await system.bank.reaches(payout, "rejected")

    code, out, err = await system.cli("hold", "approve", payout, "--by", "vikram", "--reason", "it is ours")

    assert first[0] == 0
    assert code == 1
    assert "asha" in out + err
    assert await system.effects(payout) == ["payout.reject"]


async def test_a_stranger_cannot_approve(system: System) -> None:
    payout = await held(system)

    code, out, err = await system.cli("hold", "approve", payout, "--by", "mallory", "--reason", "please")

    assert code in (1, 2)
    assert "mallory" in out + err
    await system.settled()
    assert await system.bank.record(payout=payout) == []


async def test_explain_of_a_payout_that_nobody_saw_is_one_clear_line(system: System) -> None:
    code, out, err = await system.cli("explain", "pout_Nobody00000001")

    assert code == 1
    assert out == ""
    assert len(err.strip().splitlines()) == 1
    assert "pout_Nobody00000001" in err


async def test_explain_answers_from_the_log_while_a_payout_is_not_archived(system: System) -> None:
    await system.drain("projector")
    made = await system.bank.pay(500_001, notes={"agent_id": "small"})
    await system.bank.reaches(made["id"], "rejected")

    story = await told_by(system, "explain", made["id"])

    assert (story["decision"], story["reason"]) == ("REJECTED", "TXN_LIMIT_EXCEEDED")
    await system.start("projector")
    await system.reaches(made["id"], "rejected")


async def test_a_resting_system_has_no_lag_and_nothing_pending(system: System) -> None:
    await system.settled()

    groups = await told_by(system, "groups")

    assert {group["group"] for group in groups} == {"governance", "execution", "notification"}
    assert all(group["lag"] == 0 and group["pending"] == 0 for group in groups)
