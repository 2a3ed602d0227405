"""2,000 payouts through a bank and a network that do everything wrong, while roles are killed: one story each.

Seeded: the same payouts, the same faults drawn, the same order of kills. What the machine makes of it is not the same
twice, and must not matter.
"""

import asyncio
import random
from collections import Counter

import pytest

from streamproc.domain.states import RELEASING_STATUSES
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

SEED = 20261125
PAYOUTS = 2_000
SHARES = {"free": 0.6, "small": 0.15, "crowded": 0.15, "stranger": 0.1}
"""Whose payouts they are. The stranger has no policy."""
AMOUNT = 10_000
ROOM = 40
"""How many of the crowded agent's payouts fit into its day."""
POLICIES = f"""
defaults: {{rate_limit: {{count: 0, window: 60s}}}}
policies:
  free: {{daily_limit: {AMOUNT * PAYOUTS}}}
  small: {{per_txn_limit: {AMOUNT - 1}}}
  crowded: {{daily_limit: {AMOUNT * ROOM}}}
"""
WAVES = 10
CALLS_PER_S = 400
"""Instead of 8: at the bank's pace 2,000 commands take four minutes and prove no more."""
OUTCOMES = ("processed", "processed", "processed", "failed", "reversed")
WEBHOOK_FAULTS = [
    {"kind": "drop", "rate": 0.2},
    {"kind": "duplicate", "rate": 0.2, "copies": 2},
    {"kind": "delay", "rate": 0.2, "ms": 800},
    {"kind": "reorder", "rate": 0.3, "ms": 500},
    {"kind": "bad_signature", "rate": 0.1},
    {"kind": "stale_secret", "rate": 0.1},
]
API_FAULTS = [
    {"kind": "timeout", "path": "/v1/payouts/*/approve", "count": 6, "rate": 0.02},
    {"kind": "timeout", "path": "/v1/payouts/*/reject", "count": 3, "rate": 0.02},
    {"kind": "timeout", "path": "/v1/payouts", "count": 1, "rate": 0.05},
    {"kind": "429", "retry_after": 1, "count": 40, "rate": 0.02},
    {"kind": "500", "count": 40, "rate": 0.02},
    {"kind": "502", "count": 20, "rate": 0.02},
]
REST_MAX_S = 240.0
LOOK_S = 0.5
"""Between two looks at thousands of rows, which would else keep a core busy."""

pytestmark = pytest.mark.timeout(600)


async def test_two_thousand_payouts_through_chaos_have_one_story_each(redis_url: str, postgres: str) -> None:
    chance = random.Random(SEED)
    async with running_system(
        redis_url,
        postgres,
        workers=2,
        roles=("serve", "projector", "poller-1", "poller-2"),
        sandbox={"seed": SEED, "balance": 10 * AMOUNT * PAYOUTS},
        claim_idle="5s",
        poll_interval="3s",
        razorpay_calls_per_s=str(CALLS_PER_S),
    ) as system:
        await system.apply(POLICIES)
        await system.bank.faults(webhooks=WEBHOOK_FAULTS, api=API_FAULTS)
        await system.bank.bank(next_outcomes=[chance.choice(OUTCOMES) for _ in range(PAYOUTS)])

        breaking = asyncio.create_task(break_things(system, chance))
        made = await pay_in_waves(system, chance)
        await breaking
        await all_over(system, set().union(*made.values()))
        await until(lambda: nothing_under_way(system), what="no webhook is to come", deadline_s=REST_MAX_S)
        for name in [name for name in system.roles if name.startswith("poller")]:
            assert await system.drain(name) == 0  # nothing new comes while we look
        await system.settled(REST_MAX_S)

        await assert_all_is_well(system, made)


async def pay_in_waves(system: System, chance: random.Random) -> dict[str, set[str]]:
    """All payouts, made at the bank by outsiders, some while the others are decided."""
    agents = [agent for agent, share in SHARES.items() for _ in range(round(PAYOUTS * share))]
    chance.shuffle(agents)
    made: dict[str, set[str]] = {agent: set() for agent in SHARES}
    size = PAYOUTS // WAVES
    for start in range(0, PAYOUTS, size):
        for agent, count in sorted(Counter(agents[start : start + size]).items()):
            notes = {"agent_id": agent, "vendor_url": f"https://{agent}.example.com/"}
            answer = await system.bank.pay(AMOUNT, count=count, notes=notes)
            made[agent] |= {item["id"] for item in answer["items"]} if count > 1 else {answer["id"]}
        await log_holds(system, start)
    return made


async def log_holds(system: System, count: int) -> None:
    """Wait until the log has so many entries. The record of the bank would say more, and costs it a core to say."""

    async def enough() -> bool:
        system.check_alive()
        return int(await system.redis.xlen(system.names.log)) >= count

    await until(enough, what=f"the log has {count} entries", deadline_s=REST_MAX_S)


async def break_things(system: System, chance: random.Random) -> None:
    """SIGKILL every kind of role, the next one when some more payouts are through; each is started again."""
    victims = ["worker-1", "poller-1", "serve", "worker-2", "projector"]
    chance.shuffle(victims)
    for number, victim in enumerate(victims, 1):
        await log_holds(system, number * PAYOUTS // 2)
        await system.kill(victim)
        await system.start(f"{victim.partition('-')[0]}-{10 + number}")


async def all_over(system: System, wanted: set[str]) -> None:
    """Wait until every payout is over at the bank, and here."""

    async def over() -> bool:
        system.check_alive()
        ended = "SELECT count(*) FROM payouts WHERE bank_status IN ('processed', 'failed', 'reversed', 'rejected')"
        await asyncio.sleep(LOOK_S)
        if await system.pool.fetchval(ended) < len(wanted):
            return False
        shown = {p["id"]: p["status"] for p in await system.bank.show("payouts")}
        rows = await system.pool.fetch("SELECT payout, bank_status FROM payouts")
        return {row["payout"]: row["bank_status"] for row in rows} == shown

    await until(over, what="every payout is over, and known to be", deadline_s=REST_MAX_S)


async def nothing_under_way(system: System) -> bool:
    """The bank has delivered, dropped or given up every event."""
    system.check_alive()
    await asyncio.sleep(LOOK_S)
    return await system.bank.deliveries(state="waiting") == []


async def assert_all_is_well(system: System, made: dict[str, set[str]]) -> None:
    """One decision, one effect and one trail for each payout; the bank and every store say the same."""
    payouts = set().union(*made.values())
    assert len(payouts) == PAYOUTS
    folds = await system.folds()
    approved = {payout for payout, record in folds.items() if record.decision == "APPROVED"}
    assert made["free"] <= approved
    assert not approved & (made["small"] | made["stranger"])
    # What the bank failed or took back made room for others.
    crowded = [folds[payout] for payout in approved & made["crowded"]]
    kept = [record for record in crowded if record.bank_status not in RELEASING_STATUSES]
    assert len(kept) <= ROOM <= len(crowded)
    assert not any(record.bypassed for record in folds.values())
    assert await system.dead() == 0
    assert {p["id"]: p["status"] for p in await system.bank.show("payouts")} == {
        payout: record.bank_status for payout, record in folds.items()
    }
    await assert_told_once(
        system, {p: "payout.approve" if p in approved else "payout.reject" for p in payouts}
    )
    await assert_decided_once(system, payouts)
    await assert_one_story(system)
    await assert_records_agree(system)
    await assert_budgets_agree(system)
    assert await overspent(system) == []
