"""MCP from an agent's client to the bank: the SDK's own client, over stdio and over HTTP, at a system of real roles."""

import asyncio
import json
import os
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.bank import free_port, until
from tests.deadline import DEADLINE_S
from tests.journeys.system import START_MAX_S, System
from tests.journeys.test_gateway import PAYEE, of_reference, token
from tests.signals import killed, terminate

pytest.importorskip("mcp", reason="the extra `mcp` is not installed")

import httpx2
from mcp.client.client import Client
from mcp.client.stdio import StdioServerParameters
from mcp.client.streamable_http import streamable_http_client
from mcp.shared.exceptions import MCPError

pytestmark = pytest.mark.asyncio(loop_scope="module")

END_MAX_S = 60.0
ORDER = {"mode": "IMPS", "purpose": "vendor bill", "fund_account": PAYEE, "wait_s": 30}
TRACE = "0af7651916cd43dd8448eb211c80319c"
HELLO: list[dict[str, Any]] = [
    {
        **{"jsonrpc": "2.0", "id": 1, "method": "initialize"},
        "params": {
            **{"protocolVersion": "2025-11-25", "capabilities": {}},
            "clientInfo": {"name": "test", "version": "1"},
        },
    },
    {"jsonrpc": "2.0", "method": "notifications/initialized"},
]


async def second_token(system: System, agent: str) -> str:
    code, out, err = await system.cli("token", "create", f"{agent}-2", "--scope", "agent", "--agent", agent)
    assert code == 0, err
    return out.strip()


def told(result: Any) -> str:
    return "\n".join(block.text for block in result.content)


def stdio_of(system: System, secret: str) -> StdioServerParameters:
    ours = {name: value for name, value in system.env.items() if name.startswith("STREAMPROC_DATA_DIR")}
    ours |= {"STREAMPROC_PORT": system.env["STREAMPROC_PORT"], "STREAMPROC_TOKEN": secret}
    ours |= {"STREAMPROC_PUBLIC_URL": "https://pay.example.com", "PYTHONPATH": os.pathsep.join(sys.path)}
    return StdioServerParameters(command=sys.executable, args=["-m", "streamproc", "mcp"], env=ours)


@asynccontextmanager
async def child(system: System, secret: str) -> AsyncIterator[asyncio.subprocess.Process]:
    """The role over stdio, as a client that is no SDK sees it."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "streamproc", "mcp",
        env=system.env | {"STREAMPROC_TOKEN": secret},
        stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    try:
        yield process
    finally:
        await killed(process)


def say(process: asyncio.subprocess.Process, *messages: Any) -> None:
    assert process.stdin is not None
    for one in messages:
        process.stdin.write((one if isinstance(one, str) else json.dumps(one)).encode() + b"\n")


async def heard(process: asyncio.subprocess.Process, *, within_s: float = END_MAX_S) -> Any:
    assert process.stdout is not None
    async with asyncio.timeout(within_s):
        return json.loads(await process.stdout.readline())


def call(number: int, name: str, **given: Any) -> dict[str, Any]:
    params = {"name": name, "arguments": given}
    return {"jsonrpc": "2.0", "id": number, "method": "tools/call", "params": params}


async def test_over_stdio_an_agent_asks_is_refused_waits_for_a_person_and_sees_nobody_elses(
    system: System,
) -> None:
    other = await token(system, "bot")
    async with Client(stdio_of(system, other)) as theirs:
        paid = await theirs.call_tool(
            "request_payout", {"idempotency_key": "inv-1", "amount": 250_000, **ORDER}
        )
        assert not paid.is_error
        of_others = paid.structured_content["payout"]
        await system.reaches(of_others, "processed")
        again = await theirs.call_tool(
            "request_payout", {"idempotency_key": "inv-1", "amount": 250_000, **ORDER}
        )
        assert (again.structured_content["payout"], again.structured_content["state"]) == (
            of_others,
            "processed",
        )
        assert len(await of_reference(system, of_others)) == 1
        changed = await theirs.call_tool(
            "request_payout", {"idempotency_key": "inv-1", "amount": 1_000, **ORDER}
        )
        assert changed.is_error
        assert told(changed).startswith(
            "HTTP 409 Idempotency-Key used for another body: this Idempotency-Key"
        )
        story = await theirs.call_tool("list_payout_events", {"payout": of_others})
        assert story.structured_content["items"][0]["type"] == "payout.requested"

    async with Client(stdio_of(system, await token(system, "careful")), mode="legacy") as ours:
        held = await ours.call_tool(
            "request_payout", {"idempotency_key": "inv-2", "amount": 800_000, **ORDER}
        )
        waits = held.structured_content
        assert (waits["decision"], waits["link"]) == (
            "HELD", f"https://pay.example.com/console/#{waits['payout']}",
        )  # fmt: skip
        assert "waits for a person" in told(held)
        assert await of_reference(system, waits["payout"]) == []
        await system.reaches(waits["payout"], "held")  # holds are listed from the views
        listed = await ours.call_tool("list_holds", {})
        assert [one["payout"] for one in listed.structured_content["items"]] == [waits["payout"]]

        await system.review(waits["payout"], by="asha", action="reject")
        await system.reaches(waits["payout"], "rejected")
        rejected = await ours.call_tool("get_payout", {"payout": waits["payout"]})
        assert not rejected.is_error
        assert "REJECTED" in told(rejected)

        foreign = await ours.call_tool("get_payout", {"payout": of_others})
        assert (foreign.is_error, told(foreign)) == (True, "HTTP 404 Not Found: there is no such payout")
        budget = await ours.call_tool("get_budget", {"agent": "careful"})
        assert {one["limit"] for one in budget.structured_content["windows"]} == {100_000_000}
        audit = await ours.call_tool("list_audit", {})
        assert told(audit) == "HTTP 403 Forbidden: a token of scope agent may not do this"
        wrong = await ours.call_tool("request_payout", {"idempotency_key": "inv-3", "amount": 1, **ORDER})
        assert "\n- amount: must be 100" in told(wrong)
        with pytest.raises(MCPError, match="there is no such tool"):
            await ours.call_tool("approve_hold", {"payout": waits["payout"]})


async def test_on_stdout_is_nothing_but_the_protocol_and_what_was_asked_is_answered_before_the_end(
    system: System,
) -> None:
    secret = await token(system, "small")
    async with child(system, secret) as process:
        twice = json.dumps(call(3, "get_budget", agent="bot")).replace("{", '{"id": 4, ', 1)
        say(process, "hello", twice, *HELLO, call(2, "get_budget", agent="small"))
        assert process.stdin is not None
        process.stdin.close()
        async with asyncio.timeout(END_MAX_S):
            out, err = await process.communicate()
    garbage, ambiguous, hello, budget = (json.loads(line) for line in out.splitlines())
    assert (garbage["error"]["code"], garbage["id"]) == (-32700, None)
    assert (ambiguous["error"]["message"], ambiguous["id"]) == ("a message names a field twice", None)
    assert hello["result"]["serverInfo"]["name"] == "streamproc"
    assert budget["result"]["structuredContent"]["agent"] == "small"
    assert process.returncode == 0
    assert b"the line is no JSON" in err
    assert b"hello" not in err
    assert secret.encode() not in err


async def test_sigterm_ends_the_wait_for_a_decision_answers_and_leaves(system: System) -> None:
    secret = await token(system, "waits")
    async with nobody_decides(system), child(system, secret) as process:
        say(process, *HELLO, call(2, "request_payout", idempotency_key="inv-9", amount=1_000, **ORDER))
        await heard(process, within_s=START_MAX_S)
        await until(lambda: taken(system, "waits"), what="the payout is taken")
        await terminate(process)
        answer = await heard(process)
        assert answer["result"]["structuredContent"]["decision"] is None
        assert "Do not ask again under another key" in answer["result"]["content"][0]["text"]
        assert await asyncio.wait_for(process.wait(), END_MAX_S) == 0
    await system.settled()


@asynccontextmanager
async def nobody_decides(system: System) -> AsyncIterator[None]:
    """The worker is away; it is back for the tests that come after, also where this one fails."""
    await system.drain("worker-1")
    try:
        yield
    finally:
        await system.start("worker-1")


async def taken(system: System, agent: str) -> bool:
    return any(getattr(event, "agent", "") == agent for event in await system.events())


async def test_an_unknown_token_is_refused_by_the_api_and_one_that_is_none_at_once(
    system: System, tmp_path: Path
) -> None:
    async with Client(stdio_of(system, "spt_" + 43 * "x")) as nobody:
        refused = await nobody.call_tool("get_budget", {"agent": "bot"})
        assert refused.is_error
        assert told(refused).startswith("HTTP 401 Unauthorized: a bearer token is needed")
    (tmp_path / "token").write_text("hunter2")
    for arguments in (["mcp"], ["mcp", "--token", str(tmp_path / "token")]):
        code, out, err = await system.cli(*arguments)
        assert (code, out) == (2, "")
        assert "token" in err
        assert "hunter2" not in err


# ---- over HTTP ----


@asynccontextmanager
async def over_http(system: System) -> AsyncIterator[str]:
    port = free_port()
    env, system.env = system.env, system.env | {"STREAMPROC_MCP_PORT": str(port)}
    await system.start("mcp", "mcp", "--http")
    system.env = env
    url = f"http://127.0.0.1:{port}"

    async def alive() -> bool:
        system.check_alive()
        try:
            async with httpx.AsyncClient(trust_env=False, timeout=DEADLINE_S) as http:
                return (await http.get(f"{url}/healthz")).status_code == 200
        except httpx.TransportError:
            return False

    await until(alive, what="MCP is served over HTTP", deadline_s=START_MAX_S)
    yield url
    assert await system.drain("mcp") == 0


@asynccontextmanager
async def client_of(url: str, secret: str, mode: Any = "auto") -> AsyncIterator[Client]:
    headers = {"authorization": f"Bearer {secret}"}
    async with (
        httpx2.AsyncClient(headers=headers, trust_env=False, timeout=END_MAX_S) as http,
        Client(streamable_http_client(f"{url}/mcp", http_client=http), mode=mode) as client,
    ):
        yield client


async def test_over_http_each_request_asks_with_its_own_token_and_the_api_decides(system: System) -> None:
    bot, careful = await token(system, "web"), await second_token(system, "careful")
    async with over_http(system) as url:
        await refusals(url, bot)
        async with client_of(url, bot) as one, client_of(url, careful, "legacy") as two:
            tools = [tool.name for tool in (await one.list_tools()).tools]
            assert tools == [tool.name for tool in (await two.list_tools()).tools]
            order = {
                "idempotency_key": "inv-1",
                "amount": 250_000,
                **ORDER,
                "vendor_url": "https://a.example",
            }
            paid = await one.call_tool(
                "request_payout", order, meta={"traceparent": f"00-{TRACE}-b7ad6b7169203331-01"}
            )
            assert (paid.is_error, paid.structured_content["decision"]) == (False, "APPROVED")
            payout = paid.structured_content["payout"]
            await system.reaches(payout, "processed")
            foreign = await two.call_tool("get_payout", {"payout": payout})
            assert told(foreign) == "HTTP 404 Not Found: there is no such payout"

            await system.kill("serve")
            away = await one.call_tool("request_payout", {**order, "idempotency_key": "inv-2"})
            assert away.is_error
            assert "the API " in told(away)
            await system.start("serve")
            await until(lambda: ready(system), what="the API is ready", deadline_s=START_MAX_S)
            later = await one.call_tool("request_payout", {**order, "idempotency_key": "inv-2"})
            assert later.structured_content["decision"] == "APPROVED"


async def ready(system: System) -> bool:
    try:
        return (await system.api.get("/readyz")).status_code == 200
    except httpx.TransportError:
        return False


async def refusals(url: str, secret: str) -> None:
    """What never comes to a tool."""
    asked = call(1, "get_budget", agent="web")
    accepts = {"accept": "application/json, text/event-stream", "mcp-protocol-version": "2025-11-25"}
    good = {**accepts, "authorization": f"Bearer {secret}"}
    async with httpx.AsyncClient(base_url=url, trust_env=False, timeout=END_MAX_S) as http:
        for headers in (
            accepts,
            {**accepts, "authorization": "Bearer hunter2"},
            {**accepts, "authorization": f"Bearer spt_{43 * 'x'}"},  # which only the API can tell
        ):
            answer = await http.post("/mcp", json=asked, headers=headers)
            assert (answer.status_code, answer.headers["www-authenticate"]) == (401, "Bearer"), answer.text
            assert answer.headers["content-type"] == "application/problem+json"
        modern = {
            **{"mcp-protocol-version": "2026-07-28", "mcp-method": "tools/call", "mcp-name": "get_budget"},
            **{"accept": "application/json", "authorization": f"Bearer spt_{43 * 'x'}"},
        }
        meta = {
            "io.modelcontextprotocol/protocolVersion": "2026-07-28",
            "io.modelcontextprotocol/clientCapabilities": {},
        }
        enveloped = {**asked, "params": {**asked["params"], "_meta": meta}}
        assert (await http.post("/mcp", json=enveloped, headers=modern)).status_code == 401
        modern["authorization"] = f"Bearer {secret}"
        assert (await http.post("/mcp", json=enveloped, headers=modern)).status_code == 200

        assert (await http.post("/mcp", json=asked, headers=good)).status_code == 200
        for change, status in (
            ({"host": "evil.example:80"}, 421),
            ({"origin": "https://evil.example"}, 403),
        ):
            assert (await http.post("/mcp", json=asked, headers={**good, **change})).status_code == status
        assert (await http.post("/mcp", content=b"x" * 300_000, headers=good)).status_code == 413
        twice = json.dumps(asked).replace('"agent": "web"', '"agent": "bot", "agent": "web"')
        ambiguous = await http.post(
            "/mcp", content=twice, headers={**good, "content-type": "application/json"}
        )
        assert (ambiguous.status_code, ambiguous.json()["detail"]) == (400, "the message names a field twice")
        assert (await http.get("/mcp", headers=good)).status_code == 405
        assert (await http.post("/", json=asked, headers=good)).status_code == 404
