"""Processes are killed in the middle of their work, the bank misbehaves, and every payout still has one story."""

import asyncio
import functools
import os
import signal
from pathlib import Path
from typing import Any

import pytest

from streamproc import embedded
from streamproc.domain.events import PayoutDecided
from tests.bank import free_port, until
from tests.journeys.system import System, running_system
from tests.journeys.truth import (
    assert_budgets_agree,
    assert_decided_once,
    assert_one_story,
    assert_records_agree,
    assert_told_once,
    overspent,
)
from tests.restartable import restartable

BATCH = {"free": 150, "small": 100, "crowded": 50}
"""Payouts of each agent where a worker is killed."""
SMALL_BATCH = {"free": 30, "small": 15, "crowded": 15}
ROOM = 10
"""How many of the crowded agent's payouts fit into its day."""
AMOUNT = 10_000
POLICIES = f"""
defaults: {{rate_limit: {{count: 0, window: 60s}}}}
policies:
  free: {{daily_limit: {AMOUNT * BATCH["free"]}}}
  small: {{per_txn_limit: {AMOUNT - 1}}}
  crowded: {{daily_limit: {AMOUNT * ROOM}}}
"""
BRISK = "25"
"""Calls a second to the bank instead of 8, where what counts is over before most of a batch is told: at the bank's pace
300 payouts take most of a minute and prove no more. Where a batch must be half told, it is told at the bank's pace."""
REST_MAX_S = 180.0
"""For the whole batch: each lost answer costs 10 s."""
FAULTS: list[dict[str, Any]] = [
    {"kind": "timeout", "path": "/v1/payouts/*/approve", "count": 3, "rate": 0.2},
    {"kind": "timeout", "path": "/v1/payouts/*/reject", "count": 2, "rate": 0.2},
    {"kind": "429", "retry_after": 1, "path": "/v1/payouts/*", "count": 6, "rate": 0.1},
    {"kind": "500", "path": "/v1/payouts/*", "count": 6, "rate": 0.1},
    {"kind": "502", "path": "/v1/payouts/*", "count": 3, "rate": 0.1},
]

pytestmark = pytest.mark.timeout(300)


async def pay_batch(system: System, asked: dict[str, int] = SMALL_BATCH) -> dict[str, set[str]]:
    """All payouts of all agents, made at the bank at once; each is told to us by a webhook."""
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
    await all_settled(system, batch)
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
    async with running_system(
        redis_url, postgres, workers=2, claim_idle="2s", razorpay_calls_per_s=BRISK
    ) as system:
        await system.apply(POLICIES)
        await system.bank.control("safebrowsing", slow_ms=200)  # so that a batch takes a while
        await system.bank.faults(api=FAULTS)

        batch = await pay_batch(system, BATCH)
        await kill_while_it_holds_entries(system, "worker-1", "governance")
        await system.start("worker-3")
        await kill_while_it_holds_entries(system, "worker-2", "execution")
        await system.start("worker-4")

        await all_decided(system, batch)
        await assert_all_is_well(system, batch)


async def test_what_a_killed_worker_had_in_hand_does_not_wait_for_the_claim_time(
    redis_url: str, postgres: str
) -> None:
    async with running_system(
        redis_url, postgres, workers=2, claim_idle="1h", razorpay_calls_per_s=BRISK
    ) as system:
        await system.apply(POLICIES)
        await system.bank.control("safebrowsing", slow_ms=200)

        batch = await pay_batch(system)
        await kill_while_it_holds_entries(system, "worker-1", "governance")

        await all_decided(system, batch)
        await assert_all_is_well(system, batch)


async def test_a_killed_projector_archives_each_entry_once(redis_url: str, postgres: str) -> None:
    async with running_system(redis_url, postgres, workers=2, claim_idle="2s") as system:
        await system.apply(POLICIES)
        batch = await pay_batch(system)
        for number in range(1, 4):
            more = await pay_batch(system, {"free": 5})  # so that there is something to archive
            batch["free"] |= more["free"]
            await archived_more(system)
            await system.kill("projector" if number == 1 else f"projector-{number}")
            await system.start(f"projector-{number + 1}")

        await all_decided(system, batch)
        await assert_all_is_well(system, batch)


async def archived_more(system: System) -> None:
    """Wait until the archive has grown, and has not reached the log's end."""

    async def count() -> int:
        return int(await system.pool.fetchval("SELECT count(*) FROM events"))

    before = await count()

    async def grown() -> bool:
        return await count() > before

    await until(grown, what="the archive grows", deadline_s=60.0)


async def test_money_waits_while_postgres_is_away_and_goes_on_when_it_is_back(
    redis_url: str, public_dir: Path
) -> None:
    home, port = public_dir / "journey-postgres", free_port()
    home.mkdir()
    home.chmod(0o711)
    async with restartable(lambda: embedded.postgres(home, port=port, durable=False)) as store:
        dsn = await store.up()
        async with running_system(
            redis_url, dsn, workers=2, claim_idle="2s", razorpay_calls_per_s=BRISK
        ) as system:
            await system.apply(POLICIES)
            await store.down()

            batch = await pay_batch(system)

            payouts = set().union(*batch.values())
            decided = functools.partial(decided_in_log, system, payouts)
            await until(decided, what="all are decided without Postgres", deadline_s=90.0)
            assert await system.bank.record(command="payout.approve") == []

            await store.up()
            await all_decided(system, batch)
            await assert_all_is_well(system, batch)


async def decided_in_log(system: System, payouts: set[str]) -> bool:
    """Every payout has its decision in the log."""
    system.check_alive()
    return {event.payout for event in await system.events() if isinstance(event, PayoutDecided)} >= payouts


async def test_a_drain_leaves_no_entry_in_anybodys_hands(redis_url: str, postgres: str) -> None:
    async with running_system(redis_url, postgres, workers=2) as system:
        await system.apply(POLICIES)
        batch = await pay_batch(system)
        await until(lambda: decided_some(system, batch), what="the batch is under way", deadline_s=60.0)

        assert {await system.drain("worker-1"), await system.drain("worker-2")} == {0}

        assert await system.pending() == {"governance": 0, "execution": 0, "notification": 0}
        for group in ("governance", "execution", "notification"):
            assert await system.redis.xinfo_consumers(system.names.log, group) == []

        await system.start("worker-3")
        await all_decided(system, batch)
        await assert_all_is_well(system, batch)


async def decided_some(system: System, batch: dict[str, set[str]]) -> bool:
    """The bank was told of one payout, and not yet of all."""
    return 0 < len(await system.bank.record(effect="true")) < sum(map(len, batch.values()))


async def test_while_redis_is_away_a_webhook_is_503_and_asks_to_come_again(
    public_dir: Path, postgres: str
) -> None:
    home, port = public_dir / "journey-valkey", free_port()
    home.mkdir()
    body = (Path(__file__).with_name("samples") / "pending.json").read_bytes()
    async with restartable(lambda: embedded.valkey(home, port=port)) as store:
        url = await store.up()
        async with running_system(url, postgres) as system:
            await store.down()

            refused = await system.post(body, event_id="RedisAway00001")

            assert refused.status_code == 503
            assert int(refused.headers["retry-after"]) > 0
            assert (await system.api.get("/readyz")).status_code == 503
            assert (await system.api.get("/healthz")).status_code == 200

            await store.up()

            async def taken() -> bool:
                system.check_alive()
                return (await system.post(body, event_id="RedisAway00001")).status_code == 200

            await until(taken, what="the same webhook is taken", deadline_s=60.0)
            await system.reaches("pout_JrnyPending0001", "rejected", deadline_s=60.0)


async def test_a_killed_redis_comes_back_with_everything_that_was_answered(
    public_dir: Path, postgres: str
) -> None:
    home, port = public_dir / "journey-valkey-killed", free_port()
    home.mkdir()
    async with restartable(lambda: embedded.valkey(home, port=port)) as store:
        url = await store.up()
        async with running_system(url, postgres, workers=2, claim_idle="2s") as system:
            await system.apply(POLICIES)
            batch = await pay_batch(system)
            for fewest in (1, 20):
                told = functools.partial(told_at_least, system, fewest)
                await until(told, what="the batch is under way", deadline_s=REST_MAX_S)
                await store.kill()
                await store.up()
                await system.redis.connection_pool.disconnect()  # the test's own; it does not retry

            await all_decided(system, batch)
            await assert_all_is_well(system, batch)


async def told_at_least(system: System, count: int) -> bool:
    """The bank was told of so many payouts."""
    return len(await system.bank.record(effect="true")) >= count


async def test_lost_doubled_and_disordered_webhooks_change_nothing_where_the_poller_looks(
    redis_url: str, postgres: str
) -> None:
    async with running_system(
        redis_url, postgres, roles=("serve", "projector", "poller"), razorpay_calls_per_s=BRISK
    ) as system:
        await system.apply(POLICIES)
        await system.bank.faults(
            webhooks=[
                {"kind": "drop", "rate": 0.3},
                {"kind": "duplicate", "rate": 0.3, "copies": 2},
                {"kind": "reorder", "rate": 0.3, "ms": 500},
                {"kind": "bad_signature", "rate": 0.2},
            ]
        )

        batch = await pay_batch(system)

        await all_decided(system, batch)
        await assert_all_is_well(system, batch)


async def all_settled(system: System, batch: dict[str, set[str]]) -> None:
    """Wait until every payout is over in the view too: what the webhooks lost, the poller brings later."""
    payouts = sorted(set().union(*batch.values()))

    async def over() -> bool:
        system.check_alive()
        rows = await system.pool.fetch(
            "SELECT state FROM payouts WHERE payout = ANY($1::text[]) AND bank_status IN ('processed', 'rejected')",
            payouts,
        )
        return len(rows) == len(payouts)

    await until(over, what="every payout is over in the view", deadline_s=REST_MAX_S)
