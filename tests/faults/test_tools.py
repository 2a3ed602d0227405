"""A plan is drawn from its seed alone, and the tools that carry it out do what they say."""

import asyncio
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from tests.faults.plan import KINDS, LINKS, POINTS, SLOTS, plan_of, sweep_of
from tests.faults.proxy import Proxy
from tests.faults.role import places_of, skew

SECONDS_MAX = 60.0


def test_the_same_seed_gives_the_same_plan_and_another_seed_another() -> None:
    assert plan_of(7, 60) == plan_of(7, 60)
    assert plan_of(7, 60) != plan_of(8, 60)


def test_every_kind_of_fault_comes_before_any_comes_again() -> None:
    kinds = [fault.kind for fault in plan_of(1, 600).faults]
    assert set(kinds[: len(KINDS)]) == set(KINDS)
    assert set(kinds[len(KINDS) : 2 * len(KINDS)]) == set(KINDS)


def test_a_sweep_has_every_crash_point_before_and_after() -> None:
    points = [fault.detail.rpartition(":")[0] for fault in sweep_of(1).faults]
    wanted = [
        f"{point}:{when}" for points in POINTS.values() for point in points for when in ("before", "after")
    ]
    assert sorted(points) == sorted(wanted)


def test_every_role_has_wires_and_points() -> None:
    assert LINKS.keys() == POINTS.keys() == {slot.partition("-")[0] for slot in SLOTS}


CRASHING = """
import asyncio
from streamproc.log import scripts
from tests.faults.role import crash

async def append_once():
    print("appended", flush=True)

scripts.append_once = append_once
crash("append", "WHEN", 2)
for _ in range(3):
    asyncio.run(scripts.append_once())
"""


@pytest.mark.parametrize(("when", "appended"), [("before", 1), ("after", 2)])
def test_a_crash_point_kills_before_or_after_the_nth_time(when: str, appended: int) -> None:
    ran = subprocess.run(
        [sys.executable, "-c", CRASHING.replace("WHEN", when)], capture_output=True, check=False, timeout=60
    )
    assert (ran.returncode, ran.stdout.split()) == (-signal.SIGKILL, appended * [b"appended"]), ran.stderr


@pytest.mark.parametrize("point", sorted({point for points in POINTS.values() for point in points}))
def test_every_crash_point_is_in_the_code(point: str) -> None:
    places = places_of(point)
    assert places
    assert all(asyncio.iscoroutinefunction(getattr(holder, name)) for holder, name in places)


def test_a_skewed_clock_is_wrong_and_the_monotonic_one_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("time", "time_ns"):
        monkeypatch.setattr(time, name, getattr(time, name))  # put back at the end
    before, ticks = time.time(), time.monotonic()
    skew(3600)
    assert 3600 <= time.time() - before < 3660
    assert 3600 <= time.time_ns() / 1e9 - before < 3660
    assert time.monotonic() - ticks < 60


@asynccontextmanager
async def echoing() -> AsyncIterator[Proxy]:
    """A proxy in front of a server that echoes in capitals."""

    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(100):
            heard.append(data)
            writer.write(data.upper())
            await writer.drain()
        writer.close()

    heard: list[bytes] = []
    server = await asyncio.start_server(echo, "127.0.0.1", 0)
    async with server, Proxy("127.0.0.1", server.sockets[0].getsockname()[1]).listening() as proxy:
        proxy.heard = heard  # type: ignore[attr-defined]
        yield proxy


async def dial(proxy: Proxy) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    return await asyncio.open_connection("127.0.0.1", proxy.port)


async def test_a_well_wire_passes_everything_both_ways() -> None:
    async with echoing() as proxy:
        reader, writer = await dial(proxy)
        writer.write(b"payout")
        assert await reader.read(6) == b"PAYOUT"
        writer.write_eof()
        assert await reader.read(1) == b""


async def test_a_reset_wire_ends_its_connections_with_an_error() -> None:
    async with echoing() as proxy:
        reader, writer = await dial(proxy)
        writer.write(b"x")
        assert await reader.read(1) == b"X"
        proxy.reset()
        with pytest.raises(ConnectionResetError):
            await reader.read(1)


async def test_a_stalled_wire_takes_connections_and_passes_nothing_until_it_flows() -> None:
    async with echoing() as proxy:
        proxy.stall()
        reader, writer = await dial(proxy)
        writer.write(b"x")
        await writer.drain()
        answer = asyncio.create_task(reader.read(1))
        for _ in range(50):
            await asyncio.sleep(0)
        assert not answer.done()
        proxy.flow()
        async with asyncio.timeout(SECONDS_MAX):
            assert await answer == b"X"


async def test_a_mute_wire_delivers_what_is_sent_and_loses_the_answer() -> None:
    async with echoing() as proxy:
        reader, writer = await dial(proxy)
        writer.write(b"x")
        assert await reader.read(1) == b"X"
        proxy.mute = True
        writer.write(b"y")
        async with asyncio.timeout(SECONDS_MAX):
            while proxy.heard[-1:] != [b"y"]:  # type: ignore[attr-defined]
                await asyncio.sleep(0.01)
        proxy.flow()
        with pytest.raises(ConnectionResetError):
            await reader.read(1)
