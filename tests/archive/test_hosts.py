"""A DSN of several hosts: one that is gone, hangs or can only be read does not keep the next from being asked."""

import asyncio
import gc
from collections.abc import AsyncIterator
from urllib.parse import urlsplit

import asyncpg
import pytest
from asyncpg.connect_utils import TLSUpgradeProto

from streamproc.archive import pool as pools
from streamproc.archive.hosts import connect, single_hosts
from streamproc.archive.migrate import current
from streamproc.archive.pool import acquired, opened_pool
from streamproc.archive.store import connection
from tests.deadline import DEADLINE_S
from tests.hurry import pass_at_once
from tests.patience import PATIENT_S

SHARE_S = PATIENT_S / 2
"""What one of two hosts has of the longest limit for connecting."""
STEPS = 60
"""Turns of the event loop, more than the driver takes until it waits for an answer to its first message."""


@pytest.fixture
async def mute() -> AsyncIterator[str]:
    """A host that takes connections and says nothing, as one whose machine is gone but for its backlog. A host's share
    of each limit has passed then, which leaves most of a limit to the next one."""
    taken = list[asyncio.StreamWriter]()

    def say_nothing(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        taken.append(writer)
        pass_at_once(SHARE_S)

    async with await asyncio.start_server(say_nothing, "127.0.0.1", 0) as server:
        host, port = server.sockets[0].getsockname()
        yield f"{host}:{port}"
        for writer in taken:
            writer.close()


@pytest.fixture
def behind_it(postgres: str, mute: str) -> str:
    """The DSN of that host, then of a real one."""
    parts = urlsplit(postgres)
    user, _, host = parts.netloc.rpartition("@")
    query = "target_session_attrs=read-write"
    return parts._replace(netloc=f"{user}@{mute},{host}", query=query).geturl()


class Cancelled(asyncio.Future[bool]):
    """Cancelled by a signal right after the driver has seen that it is not done."""

    def done(self) -> bool:
        return False


async def test_a_server_that_answers_whoever_is_cancelled_meanwhile_is_no_line_of_the_log(
    caplog: pytest.LogCaptureFixture,
) -> None:
    loop, closed = asyncio.get_running_loop(), asyncio.Event()

    async def answer(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"S")
        writer.close()

    asking = TLSUpgradeProto(loop, "here", 1, None, False)
    asking.on_data = Cancelled(loop=loop)
    asking.on_data.cancel()
    asking.connection_lost = lambda _problem: closed.set()
    async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
        await loop.create_connection(lambda: asking, *server.sockets[0].getsockname())
        await asyncio.wait_for(closed.wait(), DEADLINE_S)
    assert [record.getMessage() for record in caplog.records] == []


async def test_connecting_may_be_cancelled_at_any_step_without_a_line_of_the_log(
    caplog: pytest.LogCaptureFixture,
) -> None:
    def refuse_tls(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"N")
        writer.close()

    async with await asyncio.start_server(refuse_tls, "127.0.0.1", 0) as server:
        host, port = server.sockets[0].getsockname()
        for steps in range(STEPS):
            connecting = asyncio.create_task(
                connect(f"postgresql://user:word@{host}:{port}/name", timeout=DEADLINE_S)
            )
            for _ in range(steps):
                await asyncio.sleep(0)
            connecting.cancel()
            await asyncio.gather(connecting, return_exceptions=True)
            await asyncio.sleep(0)  # in which the transport tells the protocol of its end
            gc.collect()  # by which a future that nobody asked complains
    assert [record.getMessage() for record in caplog.records] == []


async def test_every_kind_of_connection_gets_past_a_first_host_that_hangs(
    behind_it: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pools, "QUERY_TIMEOUT_S", 3 * SHARE_S)  # in which it connects
    async with connection(behind_it, name="test") as db:
        assert await db.fetchval("SELECT 1") == 1
    async with opened_pool(behind_it) as pool, acquired(pool) as db:
        assert await db.fetchval("SELECT 1") == 1
    assert await current(behind_it) is None


async def test_a_first_host_that_refuses_the_password_is_not_passed_over(postgres: str) -> None:
    parts = urlsplit(postgres)
    wrong = parts._replace(netloc=f"streamproc:wrong@127.0.0.1:{parts.port},127.0.0.1:{parts.port}").geturl()
    with pytest.raises(asyncpg.InvalidPasswordError):
        async with connection(wrong, name="test"):
            pass


async def test_where_no_host_answers_the_wait_is_the_limit_for_all_together(mute: str) -> None:
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(DEADLINE_S), connection(f"postgresql://u:p@{mute},{mute}/x", name="test"):
            pass


@pytest.mark.parametrize(
    ("dsn", "each"),
    [
        ("postgresql://u:p%40@a:1,b/x?k=v", ["postgresql://u:p%40@a:1/x?k=v", "postgresql://u:p%40@b/x?k=v"]),
        ("postgresql://u@[::1]:5,b/x", ["postgresql://u@[::1]:5/x", "postgresql://u@b/x"]),
        ("postgresql://u@/x?host=a,b&port=1,2", ["postgresql://u@/x?host=a&port=1", "postgresql://u@/x?host=b&port=2"]),
        ("postgresql://u@/x?host=a,b&k=v", ["postgresql://u@/x?host=a&k=v", "postgresql://u@/x?host=b&k=v"]),
        ("postgresql://u@/x?host=a,b,c&port=1,2", ["postgresql://u@/x?host=a,b,c&port=1,2"]),  # the driver refuses it
        ("postgresql://u@/x?host=/run/pg", ["postgresql://u@/x?host=/run/pg"]),
        ("postgresql:///x", ["postgresql:///x"]),
        ("postgresql://a,b/x?target_session_attrs=prefer-standby", ["postgresql://a,b/x?target_session_attrs=prefer-standby"]),
    ],
)  # fmt: skip
def test_a_dsn_is_taken_apart_by_its_hosts(dsn: str, each: list[str]) -> None:
    assert single_hosts(dsn) == each
