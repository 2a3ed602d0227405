"""A payment waits for the archive, and its worker is killed meanwhile: that nothing was sent is still known."""

from tests.bank import until
from tests.journeys.system import System, running_system
from tests.journeys.test_gateway import POLICIES, ask, of_reference, token

POOR = {"balance": 100, "workflow": "off"}
"""Paise at the bank: too few for any payout here."""


async def put_off(system: System) -> str:
    """An approved intent that waits for an archive that nobody writes; its worker is killed."""
    await system.apply(POLICIES)
    payout = str((await ask(system, await token(system, "bot"), "inv-1"))["payout"])

    async def waits() -> bool:
        system.check_alive()
        return await system.redis.zcard(system.names.retries("execution")) == 1

    await until(waits, what="it is put off")
    await system.kill("worker-1")
    return payout


async def test_what_a_killed_worker_had_put_off_is_told_to_be_refused_as_soon_as_the_bank_says_so(
    redis_url: str, postgres: str
) -> None:
    async with running_system(redis_url, postgres, roles=("serve",), workers=1, sandbox=POOR) as system:
        payout = await put_off(system)
        await system.start("worker-2")
        await system.start("projector")
        await system.reaches(payout, "failed")
        await system.settled()
        record = (await system.folds())[payout]
        assert "balance" in record.failure
        assert record.reservation is not None
        assert record.reservation.state == "released"
        assert await of_reference(system, payout) == []
        assert len(await system.bank.record(command="payout.create")) == 1
