"""What a client may send before anybody knows it, and how long it may take: over real sockets, by bytes."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager

import pytest
import uvicorn
import uvloop

from streamproc.api import connection
from streamproc.api.connection import BEHIND_MAX, HEAD_BYTES_MAX
from streamproc.api.listening import server_of
from streamproc.ingress.problems import Receive, Scope, Send, send_body
from tests.deadline import DEADLINE_S

SHORT_S = 0.2
LONG_S = 600
READ = 256 * 1024
"""As much as the loop reads at once."""
LARGE = 8 * 1024 * 1024
"""More than the kernel holds between two sockets."""


@pytest.fixture
def event_loop_policy() -> asyncio.AbstractEventLoopPolicy:
    return uvloop.EventLoopPolicy()  # as roles run


class Site:
    """An application that answers with its path, and remembers what it was asked."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.headers: list[bytes] = []
        """Names of the last request's headers, when its body was whole."""
        self.may_answer = asyncio.Event()
        self.may_answer.set()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.asked.append(scope["path"])
        if scope["path"] == "/slow":
            await self.may_answer.wait()
        if scope["path"] == "/body":
            while (await receive()).get("more_body", False):
                pass
            self.headers = [name for name, _ in scope["headers"]]
        size = LARGE if scope["path"] == "/large" else 0
        await send_body(send, 200, scope["path"].encode() + b"x" * size, b"text/plain")


class Client:
    """A socket that sends what no client would."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer

    def send(self, data: bytes) -> None:
        self._writer.write(data)

    async def sent(self, data: bytes) -> bool:
        """Whether the server took it."""
        try:
            async with asyncio.timeout(DEADLINE_S):
                self._writer.write(data)
                await self._writer.drain()
        except (ConnectionError, RuntimeError):
            # The latter is uvloop's, once it has seen that the server closed.
            return False
        return True

    def sends_no_more(self) -> None:
        self._writer.write_eof()

    async def all_that_comes(self) -> bytes:
        """Until the server closes."""
        try:
            async with asyncio.timeout(DEADLINE_S):
                return await self._reader.read()
        except ConnectionError:
            return b""

    async def one_answer(self, ends: bytes) -> None:
        async with asyncio.timeout(DEADLINE_S):
            await self._reader.readuntil(ends)


@asynccontextmanager
async def served(
    site: Site,
) -> AsyncIterator[tuple[uvicorn.Server, Callable[[], AbstractAsyncContextManager[Client]]]]:
    """A running server, and how to connect to it."""
    server = server_of(site, host="127.0.0.1", port=0, drain_s=1)
    running = asyncio.create_task(server._serve())
    async with asyncio.timeout(DEADLINE_S):
        while not server.started:
            await asyncio.sleep(0.01)
    port = server.servers[0].sockets[0].getsockname()[1]

    @asynccontextmanager
    async def client() -> AsyncIterator[Client]:
        reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1024)
        try:
            yield Client(reader, writer)
        finally:
            writer.transport.abort()

    try:
        yield server, client
    finally:
        site.may_answer.set()
        server.should_exit = True
        await asyncio.wait_for(running, DEADLINE_S)


def get(path: str, *more: str) -> bytes:
    return "\r\n".join([f"GET {path} HTTP/1.1", "host: here", *more, "", ""]).encode()


def head_of(size: int) -> bytes:
    """A request whose URL and headers have this many bytes."""
    bare = len("/ok") + len("hosthere") + len("a")
    return get("/ok", "a: " + "b" * (size - bare))


async def is_closed(server: uvicorn.Server) -> None:
    """Waits until the server has no connection any more."""
    async with asyncio.timeout(DEADLINE_S):
        while server.server_state.connections:
            await asyncio.sleep(0.01)


# ---- a head's size ----


async def test_a_head_of_the_limit_is_answered_and_one_byte_more_is_431() -> None:
    async with served(Site()) as (_, client):
        async with client() as one:
            one.send(head_of(HEAD_BYTES_MAX) + get("/last", "connection: close"))
            assert (await one.all_that_comes()).count(b"HTTP/1.1 200 ") == 2
        async with client() as one:
            one.send(head_of(HEAD_BYTES_MAX + 1))
            answer = await one.all_that_comes()
    assert answer.startswith(b"HTTP/1.1 431 ")
    assert b"application/problem+json" in answer
    assert f"over {HEAD_BYTES_MAX} bytes".encode() in answer


@pytest.mark.parametrize("begin", [b"GET /", b"GET /ok HTTP/1.1\r\n", b"GET /ok HTTP/1.1\r\na: "])
async def test_a_head_without_an_end_is_refused_before_it_fills_memory(begin: bytes) -> None:
    filler = b"a" * READ if not begin.endswith(b"\r\n") else b"a: b\r\n" * (READ // 6)
    site = Site()
    async with served(site) as (_, client), client() as one:
        one.send(begin)
        for _ in range(64):  # 16 MB
            if not await one.sent(filler):
                break
        else:
            pytest.fail("all of it was read")
    assert not site.asked


async def test_a_long_head_after_a_good_request_does_not_take_its_answer() -> None:
    async with served(Site()) as (_, client), client() as one:
        one.send(get("/first") + head_of(HEAD_BYTES_MAX + 1))
        answer = await one.all_that_comes()
    assert answer.count(b"HTTP/1.1 ") == 1
    assert answer.endswith(b"/first")
    assert b"connection: close" in answer


async def test_what_is_no_request_after_a_good_one_does_not_take_its_answer() -> None:
    async with served(Site()) as (_, client), client() as one:
        one.send(get("/first") + b"nonsense\r\n\r\n")
        answer = await one.all_that_comes()
    assert answer.startswith(b"HTTP/1.1 200 ")
    assert answer.endswith(b"/first")


# ---- a body's trailers ----

CHUNKED = b"POST /body HTTP/1.1\r\nhost: here\r\ntransfer-encoding: chunked\r\n\r\n2\r\nab\r\n"


async def test_a_trailer_is_no_header_of_its_request() -> None:
    """Else whoever a proxy lets no such header send would send it after the body."""
    site = Site()
    async with served(site) as (_, client), client() as one:
        one.send(CHUNKED + b"0\r\nauthorization: Bearer x\r\n\r\n" + get("/next", "connection: close"))
        answer = await one.all_that_comes()
    assert site.headers == [b"host", b"transfer-encoding"]
    assert answer.endswith(b"/next")


@pytest.mark.parametrize(
    ("begin", "filler"),
    [(b"0\r\n", b"a: b\r\n"), (b"0\r\na: ", b"a"), (b"2;", b"a")],
    ids=["trailers", "one trailer", "what extends a chunk"],
)
async def test_trailers_without_an_end_are_refused_before_they_fill_memory(
    begin: bytes, filler: bytes
) -> None:
    async with served(Site()) as (_, client), client() as one:
        one.send(CHUNKED + begin)
        for _ in range(64):  # 16 MB
            if not await one.sent(filler * (READ // len(filler))):
                break
        else:
            pytest.fail("all of it was read")


async def test_a_body_may_be_larger_than_any_head() -> None:
    site = Site()
    async with served(site) as (_, client), client() as one:
        chunk = b"10000\r\n" + b"a" * 0x10000 + b"\r\n"
        one.send(CHUNKED + chunk * 8 + b"0\r\n\r\n" + get("/next", "connection: close"))
        assert (await one.all_that_comes()).endswith(b"/next")


# ---- requests behind another ----


async def test_no_more_than_the_limit_wait_behind_a_request_and_those_are_answered() -> None:
    site = Site()
    site.may_answer.clear()
    async with served(site) as (server, client), client() as one:
        one.send(get("/slow"))
        assert await one.sent(get("/behind") * (READ // len(get("/behind"))))
        async with asyncio.timeout(DEADLINE_S):
            while not all(getattr(each, "pipeline", None) for each in server.server_state.connections):
                await asyncio.sleep(0.01)
        (protocol,) = server.server_state.connections
        assert len(protocol.pipeline) == BEHIND_MAX  # type: ignore[union-attr]
        site.may_answer.set()
        answers = await one.all_that_comes()
    assert answers.count(b"HTTP/1.1 200 ") == 1 + BEHIND_MAX
    assert answers.count(b"connection: close") == 1
    assert len(site.asked) == 1 + BEHIND_MAX


async def test_another_protocol_is_not_spoken_and_the_connection_ends_with_the_answer() -> None:
    async with served(Site()) as (_, client), client() as one:
        one.send(get("/plain", "connection: upgrade", "upgrade: h2c") + get("/next"))
        answer = await one.all_that_comes()
    assert answer.count(b"HTTP/1.1 ") == 1
    assert answer.startswith(b"HTTP/1.1 200 ")
    assert b"connection: close" in answer


# ---- a client that closes its side and reads on ----


@pytest.fixture
def seen_closed(monkeypatch: pytest.MonkeyPatch) -> asyncio.Event:
    """Set once the server has seen that a client sends nothing more."""
    seen, plain = asyncio.Event(), connection.Protocol.eof_received

    def eof_received(protocol: connection.Protocol) -> bool | None:
        seen.set()
        return plain(protocol)

    monkeypatch.setattr(connection.Protocol, "eof_received", eof_received)
    return seen


async def test_a_request_is_answered_after_the_client_has_closed_its_side(seen_closed: asyncio.Event) -> None:
    """`nc -N` does that; without the answer it would not know whether its payout was requested."""
    site = Site()
    site.may_answer.clear()
    async with served(site) as (server, client), client() as one:
        one.send(get("/slow"))
        one.sends_no_more()
        async with asyncio.timeout(DEADLINE_S):
            await seen_closed.wait()
        site.may_answer.set()
        assert (await one.all_that_comes()).endswith(b"/slow")
        await is_closed(server)


@pytest.mark.parametrize("paths", [["/ok"], ["/large"], ["/one", "/large", "/last"]], ids=str)
async def test_everything_that_was_asked_before_is_answered_whole(paths: list[str]) -> None:
    async with served(Site()) as (server, client), client() as one:
        one.send(b"".join(map(get, paths)) + b"GET /cut-off HTT")
        one.sends_no_more()
        answers = (await one.all_that_comes()).split(b"HTTP/1.1 200 ")[1:]
        await is_closed(server)
    sizes = [len(answer.partition(b"\r\n\r\n")[2]) for answer in answers]
    assert sizes == [len(path) + (LARGE if path == "/large" else 0) for path in paths]


@pytest.mark.parametrize(
    "begun", [b"", b"GET /ok HT", b"POST /body HTTP/1.1\r\ncontent-length: 9\r\n\r\nabc"]
)
async def test_a_client_that_closes_its_side_within_its_request_is_closed(begun: bytes) -> None:
    site = Site()
    async with served(site) as (server, client), client() as one:
        one.send(begun)
        one.sends_no_more()
        assert await one.all_that_comes() == b""
        await is_closed(server)


# ---- a client that takes its time ----


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """Heads are not waited for; idle connections are."""
    monkeypatch.setattr(connection, "HEAD_READ_S_MAX", SHORT_S)
    monkeypatch.setattr(connection, "KEEP_ALIVE_S", LONG_S)


@pytest.mark.usefixtures("hasty")
async def test_a_client_that_says_nothing_is_closed() -> None:
    async with served(Site()) as (_, client), client() as one:
        assert await one.all_that_comes() == b""


@pytest.mark.usefixtures("hasty")
async def test_a_head_that_does_not_arrive_in_time_is_408() -> None:
    async with served(Site()) as (_, client), client() as one:
        one.send(b"GET /ok HTTP/1.1\r\nhost: h")
        answer = await one.all_that_comes()
    assert answer.startswith(b"HTTP/1.1 408 ")
    assert b"did not arrive within 0.2 s" in answer


@pytest.mark.usefixtures("hasty")
async def test_a_head_that_drips_has_no_longer() -> None:
    async with served(Site()) as (_, client), client() as one, asyncio.timeout(DEADLINE_S):
        one.send(b"GET /ok HTTP/1.1\r\na: ")
        while await one.sent(b"b"):
            await asyncio.sleep(SHORT_S / 10)  # the drip, not a wait


@pytest.mark.usefixtures("hasty")
@pytest.mark.parametrize("then", [b"G", b"\r\n"])
async def test_some_bytes_after_an_answer_do_not_keep_a_connection_for_ever(then: bytes) -> None:
    async with served(Site()) as (server, client), client() as one:
        one.send(get("/one"))
        await one.one_answer(b"/one")
        one.send(then)
        await is_closed(server)


@pytest.mark.usefixtures("hasty")
async def test_a_body_that_nobody_waits_for_does_not_keep_a_connection_for_ever() -> None:
    async with served(Site()) as (server, client), client() as one:
        one.send(get("/one", "content-length: 100000"))
        await one.one_answer(b"/one")
        one.send(b"some of it")
        await is_closed(server)


@pytest.mark.usefixtures("hasty")
async def test_a_request_in_hand_may_take_longer_than_a_head() -> None:
    site = Site()
    site.may_answer.clear()
    async with served(site) as (_, client), client() as one, client() as other:
        one.send(get("/slow", "connection: close"))
        # The other, of whom nothing is in hand, was closed meanwhile.
        assert await other.all_that_comes() == b""
        site.may_answer.set()
        assert (await one.all_that_comes()).endswith(b"/slow")


@pytest.mark.parametrize("more", ["", "connection: close"])
async def test_a_client_that_reads_nothing_is_closed(monkeypatch: pytest.MonkeyPatch, more: str) -> None:
    monkeypatch.setattr(connection, "SEND_S_MAX", SHORT_S)
    monkeypatch.setattr(connection, "KEEP_ALIVE_S", LONG_S)
    async with served(Site()) as (server, client), client() as one:
        one.send(get("/large", *filter(None, [more])))
        await is_closed(server)


async def test_a_client_that_reads_gets_all_of_a_large_answer() -> None:
    async with served(Site()) as (_, client), client() as one:
        one.send(get("/large", "connection: close"))
        assert len((await one.all_that_comes()).partition(b"\r\n\r\n")[2]) == LARGE + len("/large")


async def test_refusals_are_told_seldom(caplog: pytest.LogCaptureFixture) -> None:
    async with served(Site()) as (_, client):
        for _ in range(20):
            async with client() as one:
                one.send(b"nonsense\r\n\r\n")
                assert (await one.all_that_comes()).startswith(b"HTTP/1.1 400 ")
    assert len([record for record in caplog.records if record.levelname == "WARNING"]) == 1
