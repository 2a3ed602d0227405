"""How many connections a server takes, and which one it closes for a new one: over real sockets."""

import asyncio
import resource
from collections.abc import AsyncIterator

import pytest
import uvloop

from streamproc.api import connection, connection_limit
from streamproc.api.connection_limit import CONNECTIONS_MAX, connections_max
from streamproc.ingress.problems import Receive, Scope, Send
from tests.api.test_connection import LARGE, LONG_S, Client, Site, get, served
from tests.deadline import DEADLINE_S

PART_OF_A_BODY = get("/body", "content-length: 1000") + b"some of it"


@pytest.fixture
def event_loop_policy() -> asyncio.AbstractEventLoopPolicy:
    return uvloop.EventLoopPolicy()  # as roles run


@pytest.fixture(autouse=True)
def room_for_two(monkeypatch: pytest.MonkeyPatch) -> None:
    """And nobody is closed for being slow."""
    monkeypatch.setattr(connection_limit, "CONNECTIONS_MAX", 2)
    for limit in ("KEEP_ALIVE_S", "HEAD_READ_S_MAX", "SEND_S_MAX"):
        monkeypatch.setattr(connection, limit, LONG_S)


@pytest.fixture
async def site() -> AsyncIterator[Site]:
    site = Site()
    yield site
    site.may_answer.set()


async def answered(client: Client, path: str = "/ok") -> None:
    client.send(get(path))
    await client.one_answer(path.encode())


async def asked(site: Site, *paths: str) -> None:
    """Waits until the application has these requests."""
    async with asyncio.timeout(DEADLINE_S):
        while site.asked != list(paths):
            await asyncio.sleep(0.01)


@pytest.mark.parametrize("sent", [b"", b"GET /ok HTTP/1.1\r\nhost: h", PART_OF_A_BODY])
async def test_of_too_many_the_one_that_has_let_us_wait_longest_makes_room(site: Site, sent: bytes) -> None:
    async with served(site) as (server, client), client() as first, client() as second:
        await answered(second)  # so that both are known to be connected
        if sent:
            first.send(sent)
        async with client() as third:
            await answered(third)
            assert await first.all_that_comes() == b""
            await answered(second)
            assert len(server.server_state.connections) == 2


async def test_a_client_that_was_answered_goes_behind_those_that_have_not_asked(site: Site) -> None:
    async with served(site) as (_, client), client() as first, client() as silent:
        await answered(first, "/one")
        await answered(first, "/two")
        async with client() as third:
            await answered(third)
            assert await silent.all_that_comes() == b""
            await answered(first, "/three")


class InParts(Site):
    """Sends the rest of `/parts` when the client has read most of the first."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["path"] != "/parts":
            await super().__call__(scope, receive, send)
            return
        self.asked.append(scope["path"])
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"x" * LARGE, "more_body": True})
        await send({"type": "http.response.body", "body": b"x"})


async def test_a_client_that_does_not_read_its_answer_makes_room() -> None:
    site = InParts()
    async with served(site) as (_, client), client() as one, client() as other:
        await answered(other)
        one.send(get("/parts"))
        await asked(site, "/ok", "/parts")
        await answered(other)
        async with client() as third:
            await answered(third)
            await answered(other)


async def test_whoever_is_being_answered_is_not_closed_and_a_new_one_is(site: Site) -> None:
    site.may_answer.clear()
    async with served(site) as (_, client), client() as one, client() as other:
        for this in (one, other):
            this.send(get("/slow", "connection: close"))
        await asked(site, "/slow", "/slow")
        async with client() as third:
            assert await third.all_that_comes() == b""
        site.may_answer.set()
        for this in (one, other):
            assert (await this.all_that_comes()).endswith(b"/slow")


async def test_a_client_that_left_leaves_its_place(site: Site) -> None:
    async with served(site) as (server, client), client() as one:
        for _ in range(3):
            async with client() as other:
                await answered(other)
            async with asyncio.timeout(DEADLINE_S):
                while len(server.server_state.connections) > 1:
                    await asyncio.sleep(0.01)
        await answered(one)


async def test_many_that_were_closed_are_told_in_one_line(
    site: Site, caplog: pytest.LogCaptureFixture
) -> None:
    async with served(site) as (_, client), client(), client():
        for _ in range(10):
            async with client() as another:
                await answered(another)
    assert [record.getMessage() for record in caplog.records if record.levelname == "WARNING"] == [
        "connections closed to make room, since 2 were open: 1"
    ]


@pytest.mark.parametrize(
    ("descriptors", "most"),
    [(1_024, 512), (256, 128), (1_048_576, 512), (resource.RLIM_INFINITY, 512)],
)
def test_clients_never_take_more_than_half_of_the_descriptors(
    monkeypatch: pytest.MonkeyPatch, descriptors: int, most: int
) -> None:
    monkeypatch.setattr(connection_limit, "CONNECTIONS_MAX", CONNECTIONS_MAX)
    monkeypatch.setattr(connection_limit.resource, "getrlimit", lambda _: (descriptors, descriptors))
    assert connections_max() == most
