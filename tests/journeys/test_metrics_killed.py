"""What a worker has counted ends with it: its successor has its name on the page of metrics, and counts from nought."""

from tests.bank import until
from tests.journeys.system import System
from tests.journeys.test_metrics import measured_system, scraped
from tests.journeys.truth import at_rest
from tests.telemetry.pages import total


async def test_a_worker_that_was_killed_goes_on_under_its_name_and_from_nought(
    redis_url: str, postgres: str
) -> None:
    async with measured_system(redis_url, postgres) as system:
        await pays(system)
        await pays(system)
        await until(lambda: has_decided_both(system), what="the worker has counted both")
        await system.kill("worker-1")
        assert ("streamproc_up", (("process", "worker-1"),)) not in await scraped(system)
        await system.start("worker-7")
        await until(lambda: counts(system), what="the new worker is seen")
        await pays(system)
        await assert_the_new_one_counts_from_nought(system)


async def pays(system: System) -> None:
    paid = await system.bank.pay(250_000, notes={"agent_id": "bot"})
    await system.reaches(paid["id"], "processed")


async def counts(system: System) -> bool:
    return total(await scraped(system), "streamproc_up", process="worker-1") == 1


async def has_decided_both(system: System) -> bool:
    return total(await scraped(system), "streamproc_decisions_total", process="worker-1") == 2


@at_rest
async def assert_the_new_one_counts_from_nought(system: System) -> None:
    found = await scraped(system)
    assert total(found, "streamproc_decisions_total") == 1
    assert {dict(labels)["process"] for name, labels in found if name == "streamproc_up"} == {
        "serve-1", "worker-1", "projector-1",
    }  # fmt: skip
