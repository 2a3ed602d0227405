"""Forty reviewers answer one hold at the same moment: one of them decides, the bank hears one command, all are told."""

import asyncio
from typing import Any

import httpx

from streamproc.domain import events as e
from streamproc.operate import tokens
from streamproc.operate.site import Site
from tests.journeys.system import ACCOUNT, STEP_MAX_S, System, running_system
from tests.words import attributed

SIDE = 20
"""Who approve, and who reject."""
NAMES = [f"reviewer{n:02}" for n in range(2 * SIDE)]
POLICIES = f"""
policies:
  careful: {{daily_limit: 100_000_000, require_approval_above: 500_000}}
reviewers: [{", ".join(NAMES)}]
"""


async def answered(system: System, payout: str, name: str, token: str, action: str) -> httpx.Response:
    """The answer to one reviewer's answer; 202 and 503 are asked again under the same key, as they say."""
    headers = {"authorization": f"Bearer {token}", "idempotency-key": name}
    async with asyncio.timeout(STEP_MAX_S):
        while True:
            said = await system.api.post(
                f"/v1/holds/{payout}/{action}",
                json={"reason": f"{name} says so"},
                headers=headers,
                timeout=STEP_MAX_S,
            )
            if said.status_code not in (202, 503):
                return said


async def test_of_twenty_approvals_and_twenty_rejections_one_decides_and_39_are_told_by_whom(
    redis_url: str, postgres: str
) -> None:
    async with running_system(redis_url, postgres, workers=2) as system:
        await system.apply(POLICIES)
        site = Site(redis_url, system.redis, 1)
        made = [
            await tokens.create(
                site, tokens.TokenSpec(name=name, scope="approver", expires_s=600), attributed("test")
            )
            for name in NAMES
        ]
        payout = (await system.bank.pay(800_000, notes={"agent_id": "careful"}))["id"]
        await system.reaches(payout, "held")

        actions = ["approve" if n % 2 else "reject" for n in range(2 * SIDE)]
        answers = await asyncio.gather(
            *(
                answered(system, payout, name, token.secret, action)
                for name, token, action in zip(NAMES, made, actions, strict=True)
            )
        )

        [won] = [answer.json() for answer in answers if answer.status_code == 200]
        lost: list[dict[str, Any]] = [answer.json() for answer in answers if answer.status_code == 409]
        assert len(lost) == 2 * SIDE - 1
        winner, decision = won["by"], won["decision"]
        assert decision == ("APPROVED" if actions[NAMES.index(winner)] == "approve" else "REJECTED")
        assert {(one["decision"], one["decided_by"]) for one in lost} == {(decision, winner)}
        assert all(f"already {decision} by {winner} at " in one["detail"] for one in lost)

        ends, command = {"APPROVED": ("processed", "approve"), "REJECTED": ("rejected", "reject")}[decision]
        await system.reaches(payout, ends)
        await system.bank.reaches(payout, ends)
        await system.settled()
        told = await system.bank.record(payout=payout)
        assert [line["command"] for line in told] == [f"payout.{command}"]
        story = await system.story(payout)
        assert sum(type(event) is e.ReviewSubmitted for event in story) == 2 * SIDE
        assert sum(type(event) is e.ReviewCounted for event in story) == 1
        assert sum(type(event) is e.ReviewRefused and event.kind == "over" for event in story) == 2 * SIDE - 1
        assert [event.decision for event in story if type(event) is e.PayoutDecided] == ["HELD", decision]
        assert ACCOUNT in {event.account for event in story if type(event) is e.PayoutDecided}
