"""Rule 15 through the real command line: an agent pays, is measured, and what is unlike waits for a person."""

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from tests.journeys.system import System

pytestmark = pytest.mark.asyncio(loop_scope="module")

PAID_BEFORE = 60
USUAL = 100_000
POLICY = "policies: {steady: {daily_limit: 100_000_000, anomaly: true}}"


async def told_by(system: System, *arguments: str) -> Any:
    """What a command prints as JSON; it must exit 0."""
    code, out, err = await system.cli(*arguments, "--json")
    assert code == 0, err
    return json.loads(out)


async def paid(system: System, amount: int) -> str:
    made = await system.bank.pay(amount, notes={"agent_id": "steady"})
    return str(made["id"])


async def test_what_is_unlike_an_agents_usual_payouts_is_held_until_a_person_approves_it(
    system: System, tmp_path: Path
) -> None:
    await system.apply(POLICY)
    amounts = [USUAL + 100 * n for n in range(PAID_BEFORE)]
    before = [await paid(system, amount) for amount in amounts]
    await asyncio.gather(*(system.reaches(payout, "processed") for payout in before))
    await system.settled()

    calibrated = await told_by(
        system, "policy", "calibrate", "steady", "--by", "asha", "--why", "the first month"
    )
    assert calibrated["changed"] is True
    assert calibrated["profile"]["payouts"] == PAID_BEFORE
    assert calibrated["profile"]["amounts"][0] == USUAL

    usual, unlike = await paid(system, USUAL + 2_000), await paid(system, 20 * USUAL)
    assert (await system.reaches(usual, "processed")).reason == "POLICY_OK"
    held = await system.reaches(unlike, "held")
    assert (held.reason, held.policy_version) == ("ANOMALY_DETECTED", 2)
    await system.settled()
    assert await system.effects(unlike) == []

    story = await told_by(system, "explain", unlike)
    [finding] = story["findings"]
    evidence = finding["evidence"]
    assert (finding["stage"], evidence["threshold"]) == ("anomaly", calibrated["profile"]["threshold"])
    assert evidence["score"] > evidence["threshold"]

    code, _, err = await system.cli("hold", "approve", unlike, "--by", "asha", "--reason", "a year's rent")
    assert code == 0, err
    record = await system.reaches(unlike, "processed")
    assert record.reasons == ["REVIEW_APPROVED", "ANOMALY_DETECTED"]
    await system.settled()

    code, out, err = await system.cli("replay", "--verify")
    assert code == 0, out + err
    same = await told_by(system, "policy", "whatif", "--in-force")
    assert (same["judged"]["payouts"], same["changed"]["payouts"]) == (PAID_BEFORE + 2, 0)
    off = tmp_path / "off.yaml"
    off.write_text(POLICY.replace("true", "false"))
    [moved] = (await told_by(system, "policy", "whatif", str(off)))["payouts"]
    assert (moved["payout"], moved["new"]["decision"]) == (unlike, "APPROVED")
    measured = tmp_path / "measured.yaml"
    fields = {"anomaly": True, "anomaly_profile": calibrated["profile"] | {"threshold": 0}}
    measured.write_text(json.dumps({"policies": {"steady": fields}}))
    strict = await told_by(system, "policy", "whatif", str(measured))
    assert strict["rules"]["APPROVED"]["HELD"]["payouts"] > PAID_BEFORE / 2
