"""Redis's disk is lost under `up`: it refuses and says what to do, that is done, and payouts go on where they were."""

import asyncio
import json
import os
import shutil
import signal
import sys
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.bank import free_port, until
from tests.deadline import DEADLINE_S
from tests.signals import killed
from tests.words import NOON_ZONE

START_MAX_S = 180.0
STEP_MAX_S = 120.0
POLICIES = """
policies:
  bot: {daily_limit: 1_000_000}
  careful: {daily_limit: 10_000_000, require_approval_above: 100_000}
reviewers: [asha]
"""

pytestmark = pytest.mark.timeout(600)


class Up:
    """`streamproc up` on a directory of its own, and the commands of its operator."""

    def __init__(self, home: Path) -> None:
        self.home, self.output = home, home / "up.log"
        self.sandbox = f"http://127.0.0.1:{(bank := free_port())}"
        clean = {name: value for name, value in os.environ.items() if not name.startswith("STREAMPROC_")}
        self.env = clean | {
            "STREAMPROC_DATA_DIR": str(home / "data"),
            "STREAMPROC_PORT": str(free_port()),
            "STREAMPROC_SANDBOX_PORT": str(bank),
            "STREAMPROC_WORKERS": "1",
            "STREAMPROC_POLL_INTERVAL": "500ms",
            "STREAMPROC_TIMEZONE": NOON_ZONE,
        }
        self.process: asyncio.subprocess.Process

    async def launch(self) -> None:
        """Start it, without waiting for anything."""
        with self.output.open("wb") as output:
            self.process = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "streamproc", "up", env=self.env, stdout=output, stderr=output
            )

    async def start(self) -> None:
        """Start it; returns when it is up."""
        await self.launch()

        async def is_up() -> bool:
            assert self.process.returncode is None, self.output.read_text()
            return "streamproc is up" in self.output.read_text()

        await until(is_up, what="streamproc is up", deadline_s=START_MAX_S)

    async def end(self, how: signal.Signals) -> int:
        """A signal, and the exit status."""
        self.process.send_signal(how)
        return await asyncio.wait_for(self.process.wait(), STEP_MAX_S)

    async def run(self, *arguments: str) -> tuple[int, str]:
        """A command: exit status, and all that it says."""
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "streamproc", *arguments,
            env=self.env, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
        )  # fmt: skip
        out, _ = await asyncio.wait_for(process.communicate(), START_MAX_S)
        return process.returncode or 0, out.decode()

    async def pays(self, amount: int, agent: str) -> str:
        """A payout is made at the bank."""
        async with httpx.AsyncClient(trust_env=False, timeout=DEADLINE_S) as http:
            asked = {"amount": amount, "notes": {"agent_id": agent}}
            answer = await http.post(f"{self.sandbox}/_control/payouts", json=asked)
        return str(answer.json()["id"])

    async def comes_to(self, payout: str, state: str) -> dict[str, Any]:
        """Wait until the payout's story says so."""
        seen: list[str] = [""]

        async def there() -> dict[str, Any] | None:
            status, seen[0] = await self.run("explain", payout, "--json")
            story: dict[str, Any] = json.loads(seen[0]) if status == 0 else {"state": ""}
            return story if story["state"] == state else None

        story = await until(there, what=f"{payout} is {state}; {seen[0]}", deadline_s=STEP_MAX_S)
        assert story is not None
        return story


async def test_a_lost_disk_is_noticed_and_recovered_and_budgets_are_still_charged(public_dir: Path) -> None:
    home = public_dir / "disk-lost"
    home.mkdir()
    home.chmod(0o711)
    up = Up(home)
    (home / "policies.yaml").write_text(POLICIES)
    await up.start()
    try:
        assert (await up.run("policy", "apply", str(home / "policies.yaml"), "--by", "a", "--why", "b"))[
            0
        ] == 0
        paid = await up.pays(600_000, "bot")
        held = await up.pays(200_000, "careful")
        await up.comes_to(paid, "processed")
        await up.comes_to(held, "held")
        await up.end(signal.SIGKILL)  # roles die with it; the stores stop by themselves

        await _servers_are_gone(home / "data")
        shutil.rmtree(home / "data" / "valkey")
        await up.launch()
        assert await asyncio.wait_for(up.process.wait(), START_MAX_S) == 1
        assert "this Redis" not in up.output.read_text().splitlines()[0]
        assert "streamproc recover" in up.output.read_text().splitlines()[-1]

        status, said = await up.run("recover", "--yes")
        assert (status, "workers may be started" in said) == (0, True), said
        await up.start()
        over = await up.pays(400_001, "bot")
        fits = await up.pays(400_000, "bot")
        assert (await up.comes_to(over, "rejected"))["reason"] == "LIMIT_EXCEEDED"
        await up.comes_to(fits, "processed")
        status, said = await up.run("hold", "approve", held, "--by", "asha", "--reason", "seen")
        assert status == 0, said
        await up.comes_to(held, "processed")
        assert await up.end(signal.SIGTERM) == 0
    finally:
        await killed(up.process)
        await _servers_are_gone(home / "data")


async def _servers_are_gone(data: Path) -> None:
    """A server holds its lock as long as it lives."""
    import fcntl

    async def gone() -> bool:
        for name in ("valkey.lock", "postgres.lock", "up.lock"):
            with (data / name).open("rb") as lock:
                try:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    return False
        return True

    await until(gone, what="the servers are gone", deadline_s=STEP_MAX_S)
