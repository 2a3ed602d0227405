"""Under load Postgres fails over to a standby that lacks what was archived last.

Decisions that had moved money are among it. Every role has both hosts in its DSN; nobody does anything but promote.
"""

from pathlib import Path

import pytest

from tests.bank import until
from tests.journeys.system import running_system
from tests.journeys.test_postgres_away import POLICIES, assert_all_went_well, paying
from tests.projections.histories import fetch
from tests.standby import pair

PAID_AFTER_THE_CUT = 5
DECIDED_WHILE_AWAY = 10

pytestmark = pytest.mark.timeout(400)


async def test_a_failover_that_loses_archived_decisions_pays_nothing_twice_and_ends_with_one_history(
    redis_url: str, public_dir: Path
) -> None:
    home, made = public_dir / "failover-journey", {"free": set[str](), "small": set[str]()}
    home.mkdir()
    home.chmod(0o711)
    async with pair(home) as both:
        assert both.dsn.endswith("?target_session_attrs=read-write")
        async with running_system(redis_url, both.dsn, workers=2, checkpoint_interval="1s") as system:
            await system.apply(POLICIES)

            async def told() -> int:
                return len(await system.bank.record(command="payout.approve", effect="true"))

            async def more_than(count: int) -> bool:
                system.check_alive()
                return await told() > count

            async def decided_meanwhile() -> bool:
                return await system.redis.xlen(system.names.log) > entries + DECIDED_WHILE_AWAY

            async with paying(system, made):
                await until(lambda: more_than(0), what="the system is at work")
                await both.in_step()
                await both.cut()
                before = await told()
                await until(
                    lambda: more_than(before + PAID_AFTER_THE_CUT), what="money moves on what will be lost"
                )
                ((had,),) = await fetch(both.primary_dsn, "SELECT seq FROM heads")
                await both.primary.kill()
                entries = await system.redis.xlen(system.names.log)
                await until(decided_meanwhile, what="decisions go on")
                ((has,),) = await fetch(both.standby_dsn, "SELECT seq FROM heads")
                assert has < had, "nothing was lost: this shows nothing"
                await both.take_over()
                before = await told()
                await until(lambda: more_than(before), what="money moves again", deadline_s=120.0)
            await assert_all_went_well(system, made)

            async def verified() -> bool:
                return (await system.cli("audit", "verify"))[0] == 0

            await until(verified, what="what was signed is what is archived", deadline_s=60.0)
            status, said, _ = await system.cli("replay", "--verify", within_s=120.0)
            assert status == 0, said
