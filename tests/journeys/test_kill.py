"""Processes are killed in the middle of their work, the bank misbehaves, and every payout still has one story."""

import asyncio
import os
import signal
from typing import Any

import pytest

from tests.bank import until
from tests.journeys.system import System, running_system
from tests.journeys.truth import (
    assert_budgets_agree,
    assert_decided_once,
    assert_one_story,
    assert_records_agree,
    assert_told_once,
    overspent,
)

APPROVED, REJECTED, CROWDED = 100, 50, 50
"""Payouts of each agent in the batch."""
ROOM = 10
"""How many of the crowded agent's payouts fit into its day."""
AMOUNT = 10_000
POLICIES = f"""
defaults: {{rate_limit: {{count: 0, window: 60s}}}}
policies:
  free: {{daily_limit: {AMOUNT * APPROVED}}}
  small: {{per_txn_limit: {AMOUNT - 1}}}
  crowded: {{daily_limit: {AMOUNT * ROOM}}}
"""
REST_MAX_S = 180.0
"""For the whole batch: the bank is asked at most 8 times a second by each worker, and a lost answer costs 10 s."""
FAULTS: list[dict[str, Any]] = [
    {"kind": "timeout", "path": "/v1/payouts/*/approve", "count": 3, "rate": 0.2},
    {"kind": "timeout", "path": "/v1/payouts/*/reject", "count": 2, "rate": 0.2},
    {"kind": "429", "retry_after": 1, "path": "/v1/payouts/*", "count": 6, "rate": 0.1},
    {"kind": "500", "path": "/v1/payouts/*", "count": 6, "rate": 0.1},
    {"kind": "502", "path": "/v1/payouts/*", "count": 3, "rate": 0.1},
]

pytestmark = pytest.mark.timeout(300)


async def pay_batch(system: System) -> dict[str, set[str]]:
    """All payouts of all agents, made at the bank at once; each is told to us by a webhook."""
    asked = {"free": APPROVED, "small": REJECTED, "crowded": CROWDED}
    made = await asyncio.gather(
        *(
            system.bank.pay(
                AMOUNT, count=count, notes={"agent_id": agent, "vendor_url": f"https://{agent}.example.com/"}
            )
            for agent, count in asked.items()
        )
    )
    return {agent: {item["id"] for item in each["items"]} for agent, each in zip(asked, made, strict=True)}


async def kill_while_it_holds_entries(system: System, worker: str, group: str) -> None:
    """SIGKILL the worker at a moment when its consumer of the group has entries in hand."""
    pid = system.roles[worker].pid

    async def caught() -> bool:
        os.kill(pid, signal.SIGSTOP)  # so that what is seen is still so when it is killed
        rows = await system.redis.xinfo_consumers(system.names.log, group)
        if any(f"-{pid}-" in row["name"].decode() and row["pending"] for row in rows):
            return True
        os.kill(pid, signal.SIGCONT)
        return False

    await until(caught, what=f"{worker} has entries of {group} in hand", deadline_s=60.0)
    await system.kill(worker)


async def assert_all_is_well(system: System, batch: dict[str, set[str]]) -> None:
    """One decision, one effect and one trail for each payout; every store says the same."""
    await system.settled(REST_MAX_S)
    payouts = set().union(*batch.values())
    folds = await system.folds()
    approved = {payout for payout, record in folds.items() if record.decision == "APPROVED"}
    assert batch["free"] <= approved
    assert len(approved & batch["crowded"]) == ROOM
    assert not approved & batch["small"]
    assert {folds[payout].state for payout in approved} == {"processed"}
    assert await system.dead() == 0
    await assert_decided_once(system, payouts)
    commands = {p: "payout.approve" if p in approved else "payout.reject" for p in payouts}
    await assert_told_once(system, commands)
    await assert_one_story(system)
    await assert_records_agree(system)
    await assert_budgets_agree(system)
    assert await overspent(system) == []


async def all_decided(system: System, batch: dict[str, set[str]]) -> None:
    """Wait until every payout of the batch is over at the bank."""
    wanted = set().union(*batch.values())

    async def over() -> bool:
        system.check_alive()
        shown = await system.bank.show("payouts")
        return {p["id"] for p in shown if p["status"] in ("processed", "rejected")} >= wanted

    await until(over, what="every payout is over at the bank", deadline_s=REST_MAX_S)


async def test_a_killed_worker_loses_and_doubles_nothing(redis_url: str, postgres: str) -> None:
    async with running_system(redis_url, postgres, workers=2, claim_idle="2s") as system:
        await system.apply(POLICIES)
        await system.bank.control("safebrowsing", slow_ms=200)  # so that a batch takes a while
        await system.bank.faults(api=FAULTS)

        batch = await pay_batch(system)
        await kill_while_it_holds_entries(system, "worker-1", "governance")
        await system.start("worker-3")
        await kill_while_it_holds_entries(system, "worker-2", "execution")
        await system.start("worker-4")

        await all_decided(system, batch)
        await assert_all_is_well(system, batch)
