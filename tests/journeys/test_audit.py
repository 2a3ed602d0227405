"""From the bank's webhook to an auditor's desk, with a projector that is killed on the way."""

import asyncio
import json
import subprocess
import sys
import zipfile
from pathlib import Path

from tests.bank import until
from tests.journeys.system import running_system

POLICIES = """
policies:
  bot: {daily_limit: 10_000_000, per_txn_limit: 1_000_000}
"""


async def test_a_killed_projector_leaves_an_archive_that_verifies_and_evidence_that_convinces(
    redis_url: str, postgres: str, tmp_path: Path
):
    async with running_system(
        redis_url, postgres, checkpoint_entries="5", checkpoint_interval="100ms"
    ) as system:
        await system.apply(POLICIES)
        paid = []
        for n in range(3):
            paid += [
                await system.bank.pay(
                    1_000 + n, notes={"agent_id": "bot", "vendor_url": "https://v.example.com/"}
                )
                for _ in range(3)
            ]
            made = await checkpoints(system.pool)
            await until(lambda made=made: more_than(system.pool, made), what="another checkpoint")  # type: ignore[misc]
            await system.kill("projector")
            await system.start("projector")
        for payout in paid:
            await system.reaches(payout["id"], "processed")
        await system.settled()
        await until(lambda: covered(system.pool), what="everything is signed")
        code, out, err = await system.cli("audit", "verify", "--json")
        assert (code, err) == (0, "")
        [part] = json.loads(out)["partitions"]
        assert (part["unsigned"], part["not_outside"]) == (0, 0)
        assert part["checkpoints"] == part["outside"] == await checkpoints(system.pool)
        bundle = tmp_path / "evidence.zip"
        code, out, err = await system.cli("audit", "export", str(bundle), "--payout", paid[0]["id"])
        assert (code, err) == (0, ""), err
        _, vkey, _ = await system.cli("audit", "key")
    said = await asyncio.to_thread(audited, bundle, vkey.strip(), tmp_path / "desk")
    assert "PROVEN" in said
    assert f"{paid[0]['id']}\tAPPROVED\tPOLICY_OK\t1000\tbot\t1" in said


def audited(bundle: Path, vkey: str, desk: Path) -> str:
    """What an auditor's own Python says of it, far from our code."""
    with zipfile.ZipFile(bundle) as file:
        file.extractall(desk)
    command = [sys.executable, "-I", "-S", str(desk / "verify.py"), vkey, "--decisions"]
    return subprocess.run(command, capture_output=True, text=True, env={}, cwd=desk, check=True).stdout


async def checkpoints(pool) -> int:  # type: ignore[no-untyped-def]
    return int(await pool.fetchval("SELECT count(*) FROM checkpoints"))


async def more_than(pool, count: int) -> bool:  # type: ignore[no-untyped-def]
    return await checkpoints(pool) > count


async def covered(pool) -> bool:  # type: ignore[no-untyped-def]
    return bool(
        await pool.fetchval(
            "SELECT h.seq = c.size AND c.size = p.size FROM heads h, checkpoints_published p,"
            " (SELECT max(size) AS size FROM checkpoints) c"
        )
    )
