"""`streamproc top`: what a script gets, what fits on a small terminal, and how a terminal is when it has ended."""

import asyncio
import fcntl
import json
import os
import pty
import re
import signal
import struct
import sys
import termios
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import urlsplit

import asyncpg
import pytest
from rich.cells import cell_len
from rich.console import Console

from streamproc.archive.gauges import BudgetUse, Decided, OpenHolds
from streamproc.cli.top_screen import screen
from streamproc.log.health import PartitionSize, Sizes
from streamproc.operate.top import Frame, Look
from tests.bank import until
from tests.deadline import DEADLINE_S
from tests.engine import Engine
from tests.faults.proxy import Proxy
from tests.operate.words import archive
from tests.signals import killed
from tests.words import NOON_ZONE, observed

POLICIES = f"""
defaults: {{timezone: {NOON_ZONE}}}
policies:
  bot: {{daily_limit: 1_000_000, per_txn_limit: 300_000, require_approval_above: 150_000}}
reviewers: {{asha: {{}}}}
"""
SCREEN_BACK, CURSOR_BACK = b"\x1b[?1049l", b"\x1b[?25h"


@asynccontextmanager
async def decided(redis_url: str, dsn: str) -> AsyncIterator[None]:
    """A system that has approved two payouts, rejected one and holds one."""
    async with Engine(redis_url) as engine:
        await engine.apply(POLICIES)
        at = engine.producer.now_us()
        amounts = (100_000, 100_000, 300_001, 200_000)
        await engine.deliver(*(observed(f"pout_{n}", amount, at=at + n) for n, amount in enumerate(amounts)))
        await archive(redis_url, dsn)
        yield


async def just_decided(dsn: str) -> None:
    """The decisions shown are those of the last minute; on a busy machine a command takes a good part of it."""
    db = await asyncpg.connect(dsn)
    try:
        await db.execute("UPDATE audit SET at = now()")
    finally:
        await db.close()


def environment(redis_url: str, dsn: str, directory: Path) -> dict[str, str]:
    clean = {name: value for name, value in os.environ.items() if not name.startswith("STREAMPROC_")}
    ours = {"REDIS_URL": redis_url, "POSTGRES_DSN": dsn, "DATA_DIR": str(directory), "TIMEZONE": NOON_ZONE}
    return {
        **clean,
        "TERM": "xterm-256color",
        **{f"STREAMPROC_{name}": value for name, value in ours.items()},
    }


async def command(env: dict[str, str], *arguments: str) -> tuple[int, str, str]:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "streamproc", "top", *arguments,
        env=env, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    async with asyncio.timeout(DEADLINE_S):
        out, err = await process.communicate()
    return process.returncode or 0, out.decode(), err.decode()


async def test_a_script_gets_one_document_with_what_was_decided_what_waits_and_what_is_full(
    redis_url: str, postgres: str, tmp_path: Path
) -> None:
    async with decided(redis_url, postgres):
        env = environment(redis_url, postgres, tmp_path)
        await just_decided(postgres)
        code, out, err = await command(env, "--once", "--json")

        assert (code, err) == (0, "")
        [line] = out.splitlines()
        found = json.loads(line)
        assert found["decisions"] == [
            {"decision": "APPROVED", "reason": "POLICY_OK", "count": 2, "amount": 200_000},
            {"decision": "HELD", "reason": "APPROVAL_REQUIRED", "count": 1, "amount": 200_000},
            {"decision": "REJECTED", "reason": "TXN_LIMIT_EXCEEDED", "count": 1, "amount": 300_001},
        ]
        assert (found["holds"]["open"], found["holds"]["amount"]) == (1, 200_000)
        assert found["budgets"] == [
            {"scope": "agent:bot", "window": "day", "used": 400_000, "limit": 1_000_000}
        ]
        assert {row["group"]: row.get("lag") for row in found["groups"]}["governance"] == 0
        assert (found["archive_oldest_ms"], found["views_behind"], found["problem"]) == (0, 0, "")

        await just_decided(postgres)
        code, out, err = await command(env)  # not a terminal: once, too
        assert (code, err) == (0, "")
        assert "APPROVED  POLICY_OK" in out
        assert "1 open, ₹2,000.00" in out
        assert max(map(cell_len, out.splitlines())) <= 80
        # The engine of this test has one of the three groups.
        assert re.search(r"^execution +gone +- ", out, re.M)
        assert "a group is gone: `streamproc doctor` says what to do" in out

        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "streamproc", "top", "--json", "--interval", "0.5",
            env=env, stdout=asyncio.subprocess.PIPE,
        )  # fmt: skip
        assert process.stdout is not None
        async with asyncio.timeout(DEADLINE_S):
            lines = [json.loads(await process.stdout.readline()) for _ in range(2)]
            process.send_signal(signal.SIGTERM)
            assert await process.wait() == 0
        assert lines[0]["at"] < lines[1]["at"]
        assert [line["holds"]["open"] for line in lines] == [1, 1]


async def test_budgets_are_shown_by_the_limits_in_force(
    redis_url: str, postgres: str, tmp_path: Path
) -> None:
    """The limit was that of the last charge: an agent whose limit was cut looked as if it had room, and one that had no
    limit then was not shown."""
    before = """
policies:
  cut: {daily_limit: 1_000_000, monthly_limit: 2_000_000}
  limited: {}
  freed: {daily_limit: 1_000_000}
"""
    now = """
policies:
  cut: {daily_limit: 400_000}
  limited: {weekly_limit: 3_000_000, daily_limit: 2_000_000}
  freed: {}
"""
    zone = f"defaults: {{timezone: {NOON_ZONE}}}"
    async with Engine(redis_url) as engine:
        await engine.apply(zone + before)
        at = engine.producer.now_us()
        agents = ("cut", "limited", "freed")
        await engine.deliver(*(observed(f"pout_{agent}", 300_000, at=at, agent=agent) for agent in agents))
        await engine.apply(zone + now)
        await archive(redis_url, postgres)
        code, out, _ = await command(environment(redis_url, postgres, tmp_path), "--once", "--json")
    assert code == 0
    assert json.loads(out)["budgets"] == [
        {"scope": "agent:cut", "window": "day", "used": 300_000, "limit": 400_000},
        {"scope": "agent:limited", "window": "day", "used": 300_000, "limit": 2_000_000},
    ]


async def test_a_terminal_that_cannot_redraw_is_shown_one_look(
    redis_url: str, postgres: str, tmp_path: Path
) -> None:
    async with decided(redis_url, postgres):
        env = {**environment(redis_url, postgres, tmp_path), "TERM": "dumb"}
        await just_decided(postgres)
        ours, its = pty.openpty()
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "streamproc", "top", env=env, stdout=its, stderr=its
        )
        os.close(its)
        try:
            async with asyncio.timeout(DEADLINE_S):
                shown = await asyncio.to_thread(all_of, ours)
                assert await process.wait() == 0
            assert "POLICY_OK" in shown
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
            os.close(ours)


def all_of(terminal: int) -> str:
    """What is written on a terminal until nobody holds it any more."""
    shown = b""
    with suppress(OSError):
        while piece := os.read(terminal, 4096):
            shown += piece
    return shown.decode()


async def test_what_a_store_that_is_away_would_have_said_is_not_made_up_and_the_exit_code_tells(
    redis_url: str, postgres: str, tmp_path: Path
) -> None:
    nobody = "postgresql://nobody@127.0.0.1:1/none"
    async with decided(redis_url, postgres):
        code, out, err = await command(environment(redis_url, nobody, tmp_path), "--once", "--json")
    found = json.loads(out)
    assert (found["decisions"], found["holds"], found["budgets"], found["archive_oldest_ms"]) == (None,) * 4
    assert found["log"][0]["entries"] > 0
    assert code == 1
    assert re.fullmatch(r"streamproc: not all of it is known: Postgres [^\n]*\n", err)
    code, out, err = await command(environment("redis://127.0.0.1:1/0", postgres, tmp_path), "--once")
    assert (code, out) == (1, "")
    assert re.fullmatch(r"streamproc: Redis [^\n]*\n", err)


# ---- a terminal ----


@dataclass
class Terminal:
    """A terminal of 24 lines and 80 columns, and the process on it."""

    process: asyncio.subprocess.Process
    master: int
    slave: int
    said: bytearray = field(default_factory=bytearray)

    async def shows(self, text: str, *, after: int = 0) -> int:
        """Wait until this was shown, after so many bytes; how many there are then."""

        async def shown() -> bool:
            return text.encode() in self.said[after:]

        await until(shown, what=f"{text!r} is shown; so far: {bytes(self.said[-2000:])!r}")
        return len(self.said)


@asynccontextmanager
async def on_a_terminal(env: dict[str, str], *arguments: str) -> AsyncIterator[Terminal]:
    master, slave = os.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "streamproc", "top", *arguments, env=env, stdin=slave, stdout=slave, stderr=slave
    )  # fmt: skip
    terminal, loop = Terminal(process, master, slave), asyncio.get_running_loop()
    loop.add_reader(master, lambda: terminal.said.extend(os.read(master, 65_536)))
    try:
        yield terminal
    finally:
        loop.remove_reader(master)
        await killed(process)
        os.close(master)
        os.close(slave)


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
async def test_a_store_that_is_away_is_one_line_and_asked_again_and_the_end_leaves_the_terminal_as_it_was(
    redis_url: str, postgres: str, tmp_path: Path, how: signal.Signals
) -> None:
    where = urlsplit(redis_url)
    proxy = Proxy(where.hostname or "", where.port or 0)
    async with decided(redis_url, postgres), proxy.listening():
        through = redis_url.replace(f":{where.port}", f":{proxy.port}")
        async with on_a_terminal(environment(through, postgres, tmp_path), "--interval", "0.5") as terminal:
            before = termios.tcgetattr(terminal.slave)
            seen = await terminal.shows("POLICY_OK")
            proxy.stall()
            seen = await terminal.shows("Redis is away", after=seen)
            seen = await terminal.shows("POLICY_OK", after=seen - 2_000)  # what was known stays
            proxy.flow()
            proxy.reset()

            async def well_again() -> bool:
                last = bytes(terminal.said[seen:]).rpartition(b"streamproc top")[2]
                return b"POLICY_OK" in last and b"away" not in last

            await until(well_again, what="it is well again")
            terminal.process.send_signal(how)
            async with asyncio.timeout(DEADLINE_S):
                code = await terminal.process.wait()
            await terminal.shows(SCREEN_BACK.decode())

            assert code == 0
            assert SCREEN_BACK in terminal.said
            assert CURSOR_BACK in terminal.said
            assert b"Traceback" not in terminal.said
            assert termios.tcgetattr(terminal.slave) == before


# ---- a screen ----


def shown(look: Look, problem: str = "") -> list[str]:
    console = Console(width=80, height=24, highlight=False, force_terminal=False)
    with console.capture() as captured:
        console.print(screen(Frame(look, problem), 2.0))
    return captured.get().splitlines()


def test_the_fullest_screen_has_24_lines_of_80_columns_and_no_line_of_a_stranger_moves_it() -> None:
    reasons = [f"REASON_{n}" for n in range(9)]
    look = Look(
        at=datetime(2026, 11, 26, 12, tzinfo=UTC),
        groups=[
            {
                "partition": 0, "group": group, "lag": 1_234_567, "pending": 12_345, "deferred": 1_234,
                "oldest_ms": 987_654_321, "consumers": 16,
            }
            for group in ("governance", "execution", "notification")
        ],
        sizes=Sizes({0: PartitionSize(12_345_678, 10**10, 1_234, 1_234)}, 10**10, 2 * 10**10),
        untold=1_234,
        breakers="razorpay open since 1234 s in a-host-with-a-long-name-4711-abcdef; slack open since 3 s in x",
        decided=[Decided("REJECTED", reason, 123_456, 10**13, 12_345) for reason in reasons],
        holds=OpenHolds(12_345, 10**12, 12_345_678.9),
        budgets=[BudgetUse(f"agent:\x1b[2J\n\u202e{'x' * 70}", "month", 10**12, 10**12) for _ in range(5)],
        archive_ms=123_456_789,
        views_behind=1_234_567,
        problem="",
    )  # fmt: skip
    lines = shown(
        look, "Postgres cannot say: a reason that is far longer than one line of a terminal is, and more"
    )
    assert len(lines) <= 24
    assert max(map(cell_len, lines)) <= 80
    text = "\n".join(lines)
    assert "\x1b" not in text
    assert "\u202e" not in text
    assert "5 reasons" in text  # those that have no line of their own
    assert "₹10,00,00,00,000.00 of" in text
