"""The server as our roles run it: over real sockets, by bytes."""

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import suppress

import pytest
import uvloop

from streamproc.api import connection
from streamproc.api.gathering import HELD_BYTES_MAX, Gathering
from streamproc.api.listening import server_of
from streamproc.ingress.problems import Receive, Scope, Send, send_body
from tests.deadline import DEADLINE_S


@pytest.fixture
def event_loop_policy() -> asyncio.AbstractEventLoopPolicy:
    return uvloop.EventLoopPolicy()  # as roles run


class Wire(asyncio.Transport):
    """What a transport was given, piece by piece."""

    def __init__(self) -> None:
        super().__init__()
        self.pieces: list[bytes] = []
        self.is_closed = False

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.pieces.append(bytes(data))

    def is_closing(self) -> bool:
        return self.is_closed

    def close(self) -> None:
        self.is_closed = True

    def get_extra_info(self, name: str, default: object = None) -> object:
        return name


async def test_what_is_written_in_one_step_goes_out_in_one_piece() -> None:
    wire = Wire()
    gathering = Gathering(wire, asyncio.get_running_loop())
    gathering.write(b"head")
    gathering.write(b"body")
    assert wire.pieces == []
    await asyncio.sleep(0)
    assert wire.pieces == [b"headbody"]
    gathering.write(b"next")
    await asyncio.sleep(0)
    assert wire.pieces == [b"headbody", b"next"]


async def test_more_than_the_limit_is_not_held_back() -> None:
    wire = Wire()
    gathering = Gathering(wire, asyncio.get_running_loop())
    gathering.write(b"x" * HELD_BYTES_MAX)
    gathering.write(b"y")
    assert [len(piece) for piece in wire.pieces] == [HELD_BYTES_MAX + 1]
    await asyncio.sleep(0)
    assert len(wire.pieces) == 1


async def test_to_close_sends_what_is_held_back() -> None:
    wire = Wire()
    gathering = Gathering(wire, asyncio.get_running_loop())
    gathering.write(b"last words")
    gathering.close()
    assert (wire.pieces, gathering.is_closing()) == ([b"last words"], True)


async def test_a_client_that_went_away_meanwhile_is_not_written_to() -> None:
    wire = Wire()
    gathering = Gathering(wire, asyncio.get_running_loop())
    gathering.write(b"for nobody")
    wire.close()
    await asyncio.sleep(0)
    assert wire.pieces == []


async def test_all_else_is_the_transports() -> None:
    assert Gathering(Wire(), asyncio.get_running_loop()).get_extra_info("peername") == "peername"


async def application(scope: Scope, receive: Receive, send: Send) -> None:
    if scope["path"] == "/fails":
        raise ValueError("a defect")
    if scope["path"] == "/stream":
        await send({"type": "http.response.start", "status": 200, "headers": []})
        for number in range(3):
            await send({"type": "http.response.body", "body": b"%d" % number * 100_000, "more_body": True})
        await send({"type": "http.response.body", "body": b""})
        return
    await send_body(send, 200, scope["path"].encode(), b"text/plain")


@pytest.fixture
async def port(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[int]:
    monkeypatch.setattr(connection, "KEEP_ALIVE_S", 1)
    server = server_of(application, host="127.0.0.1", port=0, drain_s=1)
    running = asyncio.create_task(server._serve())
    async with asyncio.timeout(DEADLINE_S):
        while not server.started:
            await asyncio.sleep(0.01)
    yield server.servers[0].sockets[0].getsockname()[1]
    server.should_exit = True
    await asyncio.wait_for(running, DEADLINE_S)


async def said(port: int, *requests: bytes) -> bytes:
    """All that is answered until the server closes."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        async with asyncio.timeout(DEADLINE_S):
            for request in requests:
                writer.write(request)
                await writer.drain()
            return await reader.read()
    finally:
        writer.close()
        with suppress(OSError):
            await writer.wait_closed()


def get(path: str, *more: str) -> bytes:
    return "\r\n".join([f"GET {path} HTTP/1.1", "host: here", *more, "", ""]).encode()


async def test_requests_that_come_at_once_are_answered_in_their_order_and_an_idle_connection_is_closed(
    port: int,
) -> None:
    answers = await said(port, get("/one") + get("/two") + get("/three"))
    bodies = [part.split(b"HTTP/1.1")[0] for part in answers.split(b"\r\n\r\n")[1:]]
    assert bodies == [b"/one", b"/two", b"/three"]


async def test_an_answer_larger_than_what_is_held_back_arrives_whole(port: int) -> None:
    answer = await said(port, get("/stream", "connection: close"))
    body = answer.split(b"\r\n\r\n", 1)[1]
    assert [body.count(b"%d" % number * 1000) for number in range(3)] == [100, 100, 100]


async def test_an_answer_that_ends_its_connection_arrives_whole(port: int) -> None:
    assert (await said(port, get("/last", "connection: close"))).endswith(b"\r\n\r\n/last")


async def test_a_defect_is_500_and_no_request_is_400(port: int) -> None:
    assert (await said(port, get("/fails"))).startswith(b"HTTP/1.1 500 ")
    assert (await said(port, b"no request\r\n\r\n")).startswith(b"HTTP/1.1 400 ")


async def test_a_websocket_is_not_spoken(port: int) -> None:
    upgrade = get("/plain", "connection: upgrade, close", "upgrade: websocket", "sec-websocket-version: 13")
    assert not (await said(port, upgrade)).startswith(b"HTTP/1.1 101")


async def test_what_is_in_hand_when_the_server_ends_is_answered_and_nothing_new_is_taken() -> None:
    taken, may_go_on = asyncio.Event(), asyncio.Event()

    async def slow(scope: Scope, receive: Receive, send: Send) -> None:
        taken.set()
        await may_go_on.wait()
        await send_body(send, 200, b"in hand", b"text/plain")

    server = server_of(slow, host="127.0.0.1", port=0, drain_s=int(DEADLINE_S))
    running = asyncio.create_task(server._serve())
    async with asyncio.timeout(DEADLINE_S):
        while not server.started:
            await asyncio.sleep(0.01)
        address = server.servers[0].sockets[0].getsockname()
        answer = asyncio.create_task(said(address[1], get("/")))
        await taken.wait()
        server.should_exit = True
        while server.servers[0].is_serving():
            await asyncio.sleep(0.01)
        with pytest.raises(OSError, match=r"."):
            await asyncio.open_connection(*address)
        may_go_on.set()
        assert (await answer).endswith(b"\r\n\r\nin hand")
        await running


async def test_what_the_drain_cuts_off_is_counted_in_one_line_and_is_no_defect(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Its logger's own settings: a server of another test in this process may have had them changed for ever.
    logger = logging.getLogger("uvicorn.error")
    monkeypatch.setattr(logger, "handlers", [caplog.handler])
    monkeypatch.setattr(logger, "propagate", False)
    caplog.set_level(logging.ERROR, logger.name)
    taken = asyncio.Semaphore(0)

    async def endless(scope: Scope, receive: Receive, send: Send) -> None:
        taken.release()
        await asyncio.Event().wait()

    server = server_of(endless, host="127.0.0.1", port=0, drain_s=0)
    running = asyncio.create_task(server._serve())
    async with asyncio.timeout(DEADLINE_S):
        while not server.started:
            await asyncio.sleep(0.01)
        port = server.servers[0].sockets[0].getsockname()[1]
        answers = [asyncio.create_task(said(port, get("/"))) for _ in range(2)]
        for _ in answers:
            await taken.acquire()
        server.should_exit = True
        await running
        await asyncio.gather(*answers)
    errors = [record.getMessage() for record in caplog.records if record.levelname == "ERROR"]
    assert errors == ["Cancel 2 running task(s), timeout graceful shutdown exceeded"]
