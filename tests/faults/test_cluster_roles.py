"""Every role, and the operator's commands, over a Redis Cluster whose partitions are on three nodes."""

import json
from pathlib import Path

import pytest

from streamproc.log.names import Names, partition_of
from tests.journeys.conftest import CORE_POLICIES
from tests.journeys.system import ACCOUNT, running_system
from tests.valkey_cluster import valkey_cluster

PARTITIONS = 5

pytestmark = [pytest.mark.soak, pytest.mark.timeout(300)]


async def test_payouts_are_decided_paid_shown_and_recovered_over_a_cluster(
    public_dir: Path, postgres: str
) -> None:
    policies = public_dir / "cluster-policies.yaml"
    policies.write_text(CORE_POLICIES)
    assert partition_of(ACCOUNT, PARTITIONS) == 0  # where `System` looks
    async with (
        valkey_cluster(public_dir / "cluster-roles") as cluster,
        running_system(
            cluster.url, postgres, partitions=str(PARTITIONS), roles=("serve", "projector", "poller")
        ) as system,
    ):

        async def run(*arguments: str) -> str:
            code, out, err = await system.cli(*arguments, within_s=60.0)
            assert code == 0, f"{arguments}: {code} {err} {out}"
            return out

        await run("policy", "apply", str(policies), "--by", "asha", "--why", "test")
        paid = (await system.bank.pay(400_000, notes={"agent_id": "bot"}))["id"]
        await system.reaches(paid, "processed")
        over = (await system.bank.pay(400_000, notes={"agent_id": "bot"}))["id"]
        held = (await system.bank.pay(200_000, notes={"agent_id": "careful"}))["id"]
        assert (await system.reaches(over, "rejected")).reason == "LIMIT_EXCEEDED"
        await system.reaches(held, "held")
        assert held in await run("hold", "list", "--json")
        await run("hold", "approve", held, "--by", "asha", "--reason", "seen")
        await system.reaches(held, "processed")
        await system.settled()
        assert await system.effects(paid) == ["payout.approve"]
        assert await system.effects(over) == ["payout.reject"]

        assert json.loads(await run("explain", paid, "--json"))["decision"] == "APPROVED"
        groups = json.loads(await run("groups", "--json"))
        assert {row["partition"] for row in groups} == set(range(PARTITIONS))
        await run("log", "stats")
        await run("replay", "--verify", "--json")

        # A node loses its partition: it is rebuilt from the archive, over the cluster.
        for name in ("worker-1", "poller", "projector"):
            assert await system.drain(name) == 0
        await system.redis.delete(Names(0).log)
        said = json.loads(await run("recover", "--yes", "--json"))
        assert [one["partition"] for one in said["partitions"]] == [0]
        for name in ("projector", "worker-2"):
            await system.start(name)
        more = (await system.bank.pay(400_000, notes={"agent_id": "bot"}))["id"]
        assert (await system.reaches(more, "rejected")).reason == "LIMIT_EXCEEDED", "budgets came back"
