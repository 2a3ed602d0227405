"""Postgres freezes under load: decisions go on, no money passes the barrier, nothing is lost, the lag comes back to 0.

It is frozen (SIGSTOP), so that nobody is refused and everybody waits; tests/journeys/test_kill.py stops it instead.
STREAMPROC_TEST_OUTAGE_S makes it a minute, or as long as you like.
"""

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path

import pytest

from streamproc import embedded
from streamproc.domain.events import PayoutDecided
from tests.bank import free_port, until
from tests.journeys.system import System, running_system
from tests.journeys.test_gateway import ask, of_reference, token
from tests.journeys.test_kill import decided_in_log
from tests.journeys.truth import (
    assert_budgets_agree,
    assert_decided_once,
    assert_one_story,
    assert_told_once,
    overspent,
)
from tests.signals import frozen

OUTAGE_S = float(os.environ.get("STREAMPROC_TEST_OUTAGE_S", "5"))
EVERY_S = 0.12
"""Between two payouts: about as many as two workers may tell the bank about, so that the rest is worked off."""
REST_MAX_S = 120.0 + 3 * OUTAGE_S
POLICIES = """
defaults: {rate_limit: {count: 0, window: 60s}}
policies:
  free: {daily_limit: 1_000_000_000}
  small: {per_txn_limit: 100}
"""

pytestmark = pytest.mark.timeout(300 + 6 * OUTAGE_S)


@asynccontextmanager
async def paying(system: System, made: dict[str, set[str]]) -> AsyncIterator[None]:
    """Payouts of both agents keep being made at the bank, which tells us of each by a webhook."""
    stop = asyncio.Event()

    async def pay() -> None:
        n = 0
        while not stop.is_set():
            agent = ("free", "free", "small")[n % 3]
            paid = await system.bank.pay(10_000, notes={"agent_id": agent})
            made[agent].add(paid["id"])
            n += 1
            await asyncio.sleep(EVERY_S)

    task = asyncio.create_task(pay())
    try:
        yield
    finally:
        stop.set()
        await task


async def test_while_postgres_is_frozen_decisions_go_on_and_money_waits(
    redis_url: str, public_dir: Path
) -> None:
    home = public_dir / "frozen-postgres"
    home.mkdir()
    home.chmod(0o711)
    async with (
        embedded.postgres(home, port=free_port(), durable=False) as store,
        running_system(redis_url, store.url, workers=2, trim_interval="200ms") as system,
    ):
        await system.apply(POLICIES)
        made: dict[str, set[str]] = {"free": set(), "small": set()}
        async with paying(system, made):
            await until(lambda: _told(system, "payout.approve"), what="the system is at work")
            with frozen(store.process.pid):
                began = datetime.now(UTC)
                told_before = await _told(system, "payout.approve")
                rejected_before = await _told(system, "payout.reject")
                waiting = await _outage(system, made)
                told = await _told(system, "payout.approve") - told_before

                async def rejects() -> bool:
                    return await _told(system, "payout.reject") > rejected_before

                await until(rejects, what="payouts are rejected, which needs no archive")
                status, _, problem = await system.cli("log", "trim")
                assert (status, "nothing is trimmed" in problem) == (1, True), problem
            lasted_s = (datetime.now(UTC) - began).total_seconds()
            back = asyncio.get_running_loop().time()
        await system.settled(REST_MAX_S)
        caught_up_s = asyncio.get_running_loop().time() - back
        # For -s.
        print(f"away {lasted_s:.0f} s, {waiting} decided meanwhile, lag 0 after {caught_up_s:.0f} s")
        await assert_all_went_well(system, made)
        assert await _archived_later(system, told, began) == set()


async def test_while_postgres_hangs_agents_are_served_and_who_is_told_to_stop_ends_well(
    redis_url: str, public_dir: Path
) -> None:
    home = public_dir / "hanging-postgres"
    home.mkdir()
    home.chmod(0o711)
    async with (
        embedded.postgres(home, port=free_port(), durable=False) as store,
        running_system(redis_url, store.url) as system,
    ):
        await system.apply(POLICIES)
        paid = await system.bank.pay(10_000, notes={"agent_id": "free"})
        await system.reaches(paid["id"], "processed")
        secret = await token(system, "free")
        assert (await system.api.get("/readyz")).status_code == 200  # serve and worker have connections now
        with frozen(store.process.pid):
            answers = await asyncio.gather(*(system.api.get("/readyz") for _ in range(4)))
            assert [answer.status_code for answer in answers] == [200] * 4, answers[0].text
            asked = (await ask(system, secret, "inv-1"))["payout"]

            async def decided() -> bool:
                headers = {"authorization": f"Bearer {secret}"}
                shown = (await system.api.get(f"/v1/payouts/{asked}", headers=headers)).json()
                return bool(shown["decision"] == "APPROVED")

            await until(decided, what="what an agent asks for is decided")
            assert await of_reference(system, asked) == []
            assert await system.stop() == {"serve": 0, "worker-1": 0, "projector": 0}


async def _told(system: System, command: str) -> set[str]:
    return {line["payout"] for line in await system.bank.record(command=command, effect="true")}


async def _outage(system: System, made: dict[str, set[str]]) -> int:
    """Wait OUTAGE_S, and until what was made in that time is decided; how many decisions the archive does not have."""
    before = {event.payout for event in await system.events() if isinstance(event, PayoutDecided)}
    await asyncio.sleep(OUTAGE_S)

    async def enough() -> bool:
        return len((made["free"] | made["small"]) - before) > OUTAGE_S

    await until(enough, what="there is a load", deadline_s=REST_MAX_S)
    so_far = made["free"] | made["small"]

    async def decided() -> bool:
        return await decided_in_log(system, so_far)

    await until(decided, what="all are decided without Postgres", deadline_s=REST_MAX_S)
    return len(so_far - before)


async def assert_all_went_well(system: System, made: dict[str, set[str]]) -> None:
    """Each payout has one decision and one effect, and every store says the same."""
    payouts = made["free"] | made["small"]

    async def over() -> bool:
        system.check_alive()
        shown = await system.bank.show("payouts")
        return {p["id"] for p in shown if p["status"] in ("processed", "rejected")} >= payouts

    await until(over, what="every payout is over at the bank", deadline_s=REST_MAX_S)

    async def settled() -> bool:
        return {record.state for record in (await system.folds()).values()} == {"processed", "rejected"}

    await until(settled, what="every payout is over here", deadline_s=REST_MAX_S)
    await system.settled(REST_MAX_S)
    assert await system.dead() == 0
    await assert_decided_once(system, payouts)
    commands = dict.fromkeys(made["free"], "payout.approve") | dict.fromkeys(made["small"], "payout.reject")
    await assert_told_once(system, commands)
    await assert_one_story(system)
    await assert_budgets_agree(system)
    assert await overspent(system) == []


async def _archived_later(system: System, told: set[str], began: datetime) -> set[str]:
    """Of these payouts, those whose decision was not in the archive when Postgres froze."""
    rows = await system.pool.fetch(
        "SELECT payout, min(archived_at) AS at FROM events WHERE payout = ANY($1::text[])"
        " AND position('payout.decided'::bytea IN e) > 0 GROUP BY payout",
        sorted(told),
    )
    return {row["payout"] for row in rows if row["at"] > began} | (told - {row["payout"] for row in rows})
