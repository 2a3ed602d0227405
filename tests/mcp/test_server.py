"""What a client is told by the SDK's server, and what of its transports is ours: lines, hosts, a missing extra."""

import asyncio
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest

pytest.importorskip("mcp", reason="the extra `mcp` is not installed")

from mcp.client.client import Client

from streamproc.clients.own_api import OwnApi
from streamproc.mcp.calls import Calls
from streamproc.mcp.http import REQUESTS_MAX, Front, allowed, serve_http, token_of
from streamproc.mcp.server import server_of
from streamproc.mcp.stdio import LINE_BYTES_MAX, InHand, _lines, _ready
from streamproc.mcp.words import SAME_AGAIN
from tests.clients.loopback import Loopback, Script, always, loopback
from tests.deadline import DEADLINE_S
from tests.ports import free_port

TOKEN = "spt_" + 43 * "a"
SAMPLED = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


@asynccontextmanager
async def client_at(script: Script, mode: Any = "auto") -> AsyncIterator[tuple[Client, Loopback]]:
    async with loopback(script) as api:
        own = OwnApi(api.url)
        server = server_of(
            Calls(own, public_url="", stopping=asyncio.Event()), token_of=lambda _context: TOKEN
        )
        async with Client(server, mode=mode) as client:
            yield client, api
        await own.aclose()


async def test_every_tool_says_all_four_hints_and_only_the_request_is_destructive() -> None:
    async with client_at(always(200)) as (client, _):
        tools = (await client.list_tools()).tools
    hints = {tool.name: tool.annotations for tool in tools}
    for name, one in hints.items():
        asks = name == "request_payout"
        assert one is not None
        assert (one.read_only_hint, one.destructive_hint, one.idempotent_hint, one.open_world_hint) == (
            not asks, asks, True, asks,
        )  # fmt: skip
    assert all(tool.title and tool.description and tool.output_schema for tool in tools)


@pytest.mark.parametrize(
    ("given", "sent"),
    [
        (SAMPLED, SAMPLED),
        (SAMPLED[:-1] + "0", SAMPLED[:-1] + "0"),
        ("hunter2\r\nx: y", None),
        (7, None),
        (None, None),
    ],
)
@pytest.mark.parametrize("mode", ["auto", "legacy"])
async def test_the_callers_trace_goes_on_to_the_api_if_it_is_one(
    given: Any, sent: str | None, mode: str
) -> None:
    async with client_at(always(200, {"agent": "a", "windows": []}), mode) as (client, api):
        meta: Any = {} if given is None else {"traceparent": given}
        await client.call_tool("get_budget", {"agent": "a"}, meta=meta)
        assert api.asked[-1].headers.get("traceparent") == sent
        assert api.asked[-1].headers["authorization"] == f"Bearer {TOKEN}"


@pytest.mark.parametrize("mode", ["auto", "legacy"])
async def test_a_defect_is_told_to_our_log_and_not_to_the_model_who_may_ask_for_the_same_payout_again(
    mode: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fails(*_: object, **__: object) -> None:
        raise AttributeError("hunter2")

    monkeypatch.setattr(OwnApi, "call", fails)
    order = {"idempotency_key": "inv-1", "amount": 1, "mode": "IMPS", "purpose": "payout"}
    async with client_at(always(200), mode) as (client, _):
        shown = await client.call_tool("get_payout", {"payout": "spi_1"})
        asked = await client.call_tool("request_payout", order)
    assert (shown.is_error, asked.is_error) == (True, True)
    texts = [getattr(one.content[0], "text", "") for one in (shown, asked)]
    assert texts[0] == "the call failed here; the reason is in the log of `streamproc mcp`"
    assert texts[1] == f"{texts[0]}; whether it was taken is not known. {SAME_AGAIN}"
    assert caplog.text.count("AttributeError: hunter2") == 2


# ---- stdio ----


async def lines_of(written: bytes) -> list[bytes | None]:
    source, sink = os.pipe()
    try:
        os.set_blocking(sink, False)

        async def write() -> None:
            left = written
            while left:
                await _ready(sink, to_write=True)
                left = left[os.write(sink, left[:4096]) :]
            os.close(sink)

        writing = asyncio.create_task(write())
        found = [line async for line in _lines(source)]
        await writing
        return found
    finally:
        os.close(source)


@pytest.mark.parametrize(
    ("written", "found"),
    [
        (b"", []),
        (b"\n \r\na\nb", [b"a", b"b"]),
        (LINE_BYTES_MAX * b"a" + b"\nb\n", [LINE_BYTES_MAX * b"a", b"b"]),
        ((LINE_BYTES_MAX + 1) * b"a" + b"\nb\n", [None, b"b"]),
        (3 * LINE_BYTES_MAX * b"a" + b"\n" + b"b\n", [None, b"b"]),
    ],
    ids=["nothing", "blank ones", "of the limit", "over it", "far over it"],
)
async def test_a_line_over_the_limit_is_known_as_one_and_the_next_is_read(
    written: bytes, found: list[bytes | None]
) -> None:
    assert await lines_of(written) == found


async def test_a_request_is_in_hand_until_it_is_answered_or_given_up() -> None:
    from mcp_types import JSONRPCNotification, JSONRPCRequest, JSONRPCResponse

    in_hand = InHand()
    for number in (1, 2):
        in_hand.received(JSONRPCRequest(jsonrpc="2.0", id=number, method="tools/list"))
    none_left = asyncio.create_task(in_hand.at_most(0))
    in_hand.sent(JSONRPCResponse(jsonrpc="2.0", id=1, result={}))
    await in_hand.at_most(1)
    assert not none_left.done()
    in_hand.received(
        JSONRPCNotification(jsonrpc="2.0", method="notifications/cancelled", params={"requestId": 2})
    )
    await none_left


@pytest.mark.parametrize(("asked", "given_up"), [(7, "7"), ("7", 7), ("a", "a")])
async def test_a_request_is_given_up_by_its_id_as_the_sdk_reads_it_and_one_of_two_is_left(
    asked: int | str, given_up: int | str
) -> None:
    from mcp_types import JSONRPCNotification, JSONRPCRequest

    in_hand = InHand()
    for _ in range(2):
        in_hand.received(JSONRPCRequest(jsonrpc="2.0", id=asked, method="tools/list"))
    left: list[int] = []
    for name in (True, None, given_up, given_up, given_up):
        params = {"requestId": name}
        in_hand.received(JSONRPCNotification(jsonrpc="2.0", method="notifications/cancelled", params=params))
        left.append(in_hand.number)
    assert left == [2, 2, 1, 0, 0]
    await in_hand.at_most(0)


# ---- HTTP ----


def test_a_request_may_name_loopback_our_own_hosts_and_those_of_the_settings_and_no_other() -> None:
    # Clients send them in small letters.
    guard = allowed("10.0.0.7", "https://Pay.example.com", ("MCP.example.com",))
    for host in ("localhost", "10.0.0.7", "pay.example.com", "mcp.example.com"):
        assert {host, f"{host}:*"} <= set(guard.allowed_hosts)
    assert "https://pay.example.com" in guard.allowed_origins
    open_to_all = allowed("0.0.0.0", "", ())
    assert set(open_to_all.allowed_hosts) == {
        name for one in ("127.0.0.1", "localhost", "[::1]") for name in (one, f"{one}:*")
    }
    assert guard.enable_dns_rebinding_protection
    assert open_to_all.enable_dns_rebinding_protection


async def test_foreign_hosts_are_refused_and_told_to_our_log_once(caplog: pytest.LogCaptureFixture) -> None:
    stopping, port = asyncio.Event(), free_port()
    async with loopback(always(200)) as api, httpx.AsyncClient(trust_env=False, timeout=DEADLINE_S) as http:
        own = OwnApi(api.url)
        serving = asyncio.create_task(
            serve_http(
                server_of(Calls(own, public_url="", stopping=stopping), token_of),
                stopping,
                host="127.0.0.1",
                port=port,
                guard=allowed("127.0.0.1", "", ()),
                body_bytes_max=1000,
                drain_s=1,
            )
        )
        async with asyncio.timeout(DEADLINE_S):
            while not serving.done():
                try:
                    await http.get(f"http://127.0.0.1:{port}/healthz")
                    break
                except httpx.ConnectError:
                    await asyncio.sleep(0.01)
        foreign = {"authorization": f"Bearer {TOKEN}", "host": "evil.example", "accept": "application/json"}
        asked = {"jsonrpc": "2.0", "id": 1, "method": "tools/list"}
        for _ in range(10):
            answer = await http.post(f"http://127.0.0.1:{port}/mcp", json=asked, headers=foreign)
            assert answer.status_code == 421
        stopping.set()
        await serving
        await own.aclose()
    assert [one.name for one in caplog.records if one.levelname == "WARNING"] == ["streamproc.mcp.http"]


async def statuses_of(front: Front, body: Callable[[], Awaitable[dict[str, Any]]]) -> list[int]:
    """What one POST is told."""
    found: list[int] = []

    async def send(message: Any) -> None:
        found.append(message.get("status", 0))

    headers = [(b"authorization", f"Bearer {TOKEN}".encode())]
    await front({"path": "/mcp", "method": "POST", "headers": headers}, body, send)
    return [status for status in found if status]


async def test_a_slow_sender_holds_nobodys_place_and_beyond_the_limit_the_next_is_told_to_wait() -> None:
    begun, going_on = asyncio.Semaphore(0), asyncio.Event()

    async def mcp(_scope: Any, _receive: Any, send: Any) -> None:
        begun.release()
        await going_on.wait()
        await send({"type": "http.response.start", "status": 200, "headers": []})

    async def never() -> dict[str, Any]:
        begun.release()
        await asyncio.get_running_loop().create_future()
        raise AssertionError

    async def at_once() -> dict[str, Any]:
        return {"type": "http.request", "body": b"{}", "more_body": False}

    front = Front(mcp, body_bytes_max=1000)
    slow, quick = (
        [asyncio.create_task(statuses_of(front, body)) for _ in range(REQUESTS_MAX)]
        for body in (never, at_once)
    )
    for _ in (*slow, *quick):
        await begun.acquire()
    assert await statuses_of(front, at_once) == [503]
    going_on.set()
    assert await asyncio.gather(*quick) == REQUESTS_MAX * [[200]]
    for one in slow:
        one.cancel()
    await asyncio.gather(*slow, return_exceptions=True)


def test_without_the_extra_the_command_says_so_in_one_line() -> None:
    program = "import sys; sys.modules['mcp'] = None; from streamproc.cli import main; main(['mcp'])"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL
    )
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr == (
        "streamproc: `streamproc mcp` needs the extra `mcp`: in a checkout, pip install '.[mcp]'\n"
    )
