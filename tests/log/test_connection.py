"""Connections do what their owners say: a command that is cancelled is cancelled, whenever that comes."""

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from streamproc.errors import LogUnavailable
from streamproc.log.connection import connect, connected, named_errors
from tests.deadline import DEADLINE_S

TURNS_MAX = 12
"""Turns of the loop in which a command is written and answered."""


async def test_a_task_that_is_cancelled_while_it_writes_a_command_ends(redis_url: str) -> None:
    failed = asyncio.Event()

    async def forever() -> None:
        async with connected(redis_url) as client:
            while not failed.is_set():
                await client.ping()

    for n in range(20 * TURNS_MAX):
        task = asyncio.create_task(forever())
        for _ in range(n):
            await asyncio.sleep(0)
        task.cancel()
        done, _ = await asyncio.wait({task}, timeout=DEADLINE_S)
        if not done:
            failed.set()
            await task
        assert done, f"cancelled after {n} turns of the loop, and it went on"
        assert task.cancelled()


@pytest.mark.parametrize(
    ("url", "scheme"), [("redis://h", "redis"), ("rediss://h", "rediss"), ("unix:///tmp/s", "unix")]
)
async def test_every_scheme_gets_a_connection_that_can_be_cancelled(url: str, scheme: str) -> None:
    client = connect(url)
    assert client.connection_pool.connection_class.__doc__ == f"{scheme}://"
    await client.aclose()


async def test_a_unix_socket_serves_as_well(redis_url: str, tmp_path: Path) -> None:
    parts, socket = urlsplit(redis_url), tmp_path / "s"

    async def pass_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, back = await asyncio.open_connection(parts.hostname, parts.port)
        await asyncio.gather(copy(reader, back), copy(there, writer))

    async def copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while some := await reader.read(1024):
            writer.write(some)
        writer.close()

    async with (
        await asyncio.start_unix_server(pass_on, socket),
        connected(f"unix://:{parts.password}@{socket}", name="over-a-socket") as client,
    ):
        assert await client.client_getname() in ("over-a-socket", b"over-a-socket")


SECRET = "no permissions to tell"
"""A value that must not get into an error, though it looks like its reason."""


@pytest.mark.parametrize(
    ("command", "reason"),
    [
        (lambda client: client.set("mine", SECRET), "no permissions to run the 'set' command"),
        (
            lambda client: client.pipeline().set("mine", SECRET).execute(),
            "no permissions to run the 'set' command",
        ),
        (
            lambda client: client.eval("return redis.call('SET', KEYS[1], ARGV[1])", 1, "mine", SECRET),
            "no permissions to run the 'set' command",
        ),
        (lambda client: client.get("another's"), "no permissions to access a key"),
        (lambda client: client.execute_command("SAT", SECRET), "unknown command 'sat'"),
    ],
    ids=["alone", "in a pipeline", "in a script", "a key", "unknown"],
)
async def test_a_command_that_the_server_refuses_us_is_named_without_its_values(
    redis_url: str, command: Callable[[Any], Awaitable[object]], reason: str
) -> None:
    async with connected(redis_url) as client:
        await client.execute_command("ACL", "SETUSER", "small", "on", "nopass", "~mine", "+@all", "-set")
    try:
        async with connected(redis_url.replace(f":{urlsplit(redis_url).password}@", "small:x@")) as client:
            with pytest.raises(LogUnavailable) as refused, named_errors():
                await command(client)
    finally:
        async with connected(redis_url) as client:
            await client.execute_command("ACL", "DELUSER", "small")
    assert reason in str(refused.value)
    assert SECRET not in str(refused.value)
