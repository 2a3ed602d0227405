"""The core on the servers that Debian 12 ships: redis-server 7.0 and PostgreSQL 15."""

import json
from contextlib import AsyncExitStack
from pathlib import Path

import pytest
from redis.asyncio import Redis

from tests import servers
from tests.journeys.conftest import CORE_POLICIES
from tests.journeys.system import running_system
from tests.journeys.truth import (
    assert_budgets_agree,
    assert_one_story,
    assert_records_agree,
)

pytestmark = pytest.mark.timeout(180)


async def test_payouts_are_decided_paid_archived_and_rebuilt(public_dir: Path) -> None:
    redis_server, programs = servers.debian_redis(), servers.debian_postgres()
    if redis_server is None or programs is None:
        pytest.skip("not installed here: redis-server 7.0 and postgresql-15")
    home = public_dir / "other-servers"
    home.mkdir()
    home.chmod(0o711)
    async with AsyncExitStack() as stack:
        redis_url = (await stack.enter_async_context(servers.redis(home, redis_server))).url
        dsn = (await stack.enter_async_context(servers.postgres(home, programs, durable=True))).url
        async with Redis.from_url(redis_url) as client:
            assert (await client.info("server"))["redis_version"].startswith("7.0.")
        system = await stack.enter_async_context(running_system(redis_url, dsn))
        assert (await system.pool.fetchval("SHOW server_version")).startswith("15.")
        await system.apply(CORE_POLICIES)

        paid = (await system.bank.pay(400_000, notes={"agent_id": "bot"}))["id"]
        await system.reaches(paid, "processed")
        over = (await system.bank.pay(400_000, notes={"agent_id": "bot"}))["id"]
        held = (await system.bank.pay(200_000, notes={"agent_id": "careful"}))["id"]
        assert (await system.reaches(over, "rejected")).reason == "LIMIT_EXCEEDED"
        await system.reaches(held, "held")
        await system.kill("worker-1")
        await system.review(held, by="asha")
        await system.start("worker-2")
        await system.reaches(held, "processed")
        await system.settled()

        await assert_one_story(system)
        await assert_records_agree(system)
        await assert_budgets_agree(system)
        code, out, err = await system.cli("replay", "--verify", "--json")
        assert (code, [view["equal"] for view in json.loads(out)["views"]].count(False)) == (0, 0), err
        assert await system.effects(paid) == ["payout.approve"]
        assert await system.effects(over) == ["payout.reject"]
