"""A call is a request of the caller's own: what is sent, what is refused before, and what the API's words become."""

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

import httpx
import msgspec
import pytest

from streamproc.api.connection import KEEP_ALIVE_S
from streamproc.clients import own_api
from streamproc.clients.own_api import ANSWER_BYTES_MAX, OwnApi
from streamproc.mcp.calls import CALLS_MAX, CALLS_OF_ONE_MAX, Caller, Calls, ToolAnswer
from streamproc.mcp.tools import all_tools
from tests.clients.loopback import Asked as Heard
from tests.clients.loopback import Loopback, Script, always, hang, in_turn, loopback, response

TOOLS = {one.name: one for one in all_tools()}
TOKEN = "spt_" + 43 * "a"
TRACE = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
ORDER = {"amount": 250_000, "mode": "IMPS", "purpose": "payout", "fund_account_id": "fa_00000000000001"}
KEYED = {"idempotency_key": "inv-7", **ORDER}


def payout(decision: str | None = None, **more: Any) -> dict[str, Any]:
    """As the API shows one."""
    return {
        **{"payout": "spi_1", "account": "acc_1", "agent": "bot", "identity": "verified", "amount": 250_000},
        **{"currency": "INR", "vendor_url": "", "received_at": "2026-11-27T08:00:00.000000Z"},
        **{"decision": decision, "reason": "", "reasons": [], "findings": [], "policy_version": 1},
        **{"state": "received", "bank_status": "", "bank_payout": None, "failure": None},
        **{"reservation": None, "reviews": [], **more},
    }


def problem(status: int, detail: str, retry_after: str = "", **more: Any) -> bytes:
    body = msgspec.json.encode(
        {"type": "about:blank", "title": "Words", "status": status, "detail": detail, **more}
    )
    headers = {"retry_after": retry_after} if retry_after else {}
    return response(status, body, content_type="application/problem+json", **headers)


class Desk:
    def __init__(self, calls: Calls, api: Loopback, stopping: asyncio.Event) -> None:
        self.calls, self.api, self.stopping = calls, api, stopping

    async def call(self, name: str, given: Mapping[str, Any], traceparent: str = "") -> ToolAnswer:
        return await self.calls.call(TOOLS[name], given, Caller(TOKEN, traceparent))

    @property
    def heard(self) -> Heard:
        [one] = self.api.asked
        return one


@asynccontextmanager
async def desk(script: Script, *, public_url: str = "") -> AsyncIterator[Desk]:
    stopping = asyncio.Event()
    async with loopback(script) as api:
        own = OwnApi(api.url)
        try:
            yield Desk(Calls(own, public_url=public_url, stopping=stopping), api, stopping)
        finally:
            await own.aclose()


# ---- what is sent ----


async def test_a_request_goes_with_the_callers_token_key_and_trace_and_nothing_else_of_his() -> None:
    async with desk(always(202, payout("APPROVED"))) as it:
        await it.call("request_payout", {**KEYED, "wait_s": 3, "narration": None}, TRACE)
        heard = it.heard
    assert (heard.method, heard.path, heard.headers["authorization"]) == (
        "POST", "/v1/payouts", f"Bearer {TOKEN}",
    )  # fmt: skip
    assert (heard.headers["idempotency-key"], heard.headers["traceparent"]) == ("inv-7", TRACE)
    assert heard.headers["user-agent"] == "streamproc mcp", "a proxy's access log tells it from other clients"
    assert msgspec.json.decode(heard.body) == {**ORDER, "currency": "INR"}


async def test_the_same_request_is_the_same_body_whether_the_currency_is_said_or_not() -> None:
    async with desk(always(202, payout("APPROVED"))) as it:
        await it.call("request_payout", KEYED)
        await it.call("request_payout", {**KEYED, "currency": "INR"})
        first, second = (msgspec.json.decode(one.body) for one in it.api.asked)
    assert first == second


async def test_what_is_in_a_path_stays_in_its_place_and_a_page_has_its_length() -> None:
    async with desk(always(200, {"agent": "a", "windows": []})) as it:
        await it.call("get_budget", {"agent": "team/bot", "account": "acc_1"})
        assert it.heard.target == "/v1/agents/team%2Fbot/budget?account=acc_1"
        it.api.asked.clear()
        await it.call("list_holds", {"after": "x"})
        assert it.heard.query == {"limit": "20", "after": "x"}
        assert "traceparent" not in it.heard.headers


@pytest.mark.parametrize(
    ("name", "given", "wrong"),
    [
        ("get_payout", {}, "payout: is missing"),
        ("get_payout", {"payout": "../holds"}, "payout: must be"),
        ("get_payout", {"payout": 7}, "payout: must be"),
        ("get_payout", {"payout": "spi_1", "colour": "red"}, "colour: is no argument of get_payout"),
        ("get_payout", {"payout": "spi_1", "wait_s": 1}, "wait_s: is no argument of get_payout"),
        ("list_holds", {"limit": 101}, "limit: must be a whole number from 1 to 100"),
        ("list_holds", {"limit": True}, "limit: must be a whole number from 1 to 100"),
        ("list_holds", {"limit": "5"}, "limit: must be a whole number from 1 to 100"),
        ("request_payout", ORDER, "idempotency_key: is missing"),
        ("request_payout", {**KEYED, "idempotency_key": "a b"}, "idempotency_key: must be"),
        ("request_payout", {**KEYED, "wait_s": 31}, "wait_s: must be a whole number of seconds from 0 to 30"),
        ("request_payout", {**KEYED, "wait_s": True}, "wait_s: must be"),
        ("request_payout", {**KEYED, "approve": True}, "approve: is no argument of request_payout"),
    ],
)
async def test_wrong_arguments_are_named_and_nothing_is_asked(
    name: str, given: dict[str, Any], wrong: str
) -> None:
    async with desk(always(500)) as it:
        answer = await it.call(name, given)
        assert it.api.asked == []
    assert answer.shown is None
    assert f"- {wrong}" in answer.text
    assert "nothing was asked for" in answer.text


@pytest.mark.parametrize("value", [float("nan"), float("-inf"), "\ud800", "nested"])
async def test_what_no_json_can_hold_is_refused_here_and_nothing_is_asked(value: Any) -> None:
    if value == "nested":
        value = []
        for _ in range(100_000):  # Python 3.13 writes 5,000 of them
            value = [value]
    async with desk(always(500)) as it:
        answer = await it.call("request_payout", {**KEYED, "notes": {"a": value}})
        assert it.api.asked == []
    assert answer.shown is None
    assert answer.text.startswith("the arguments cannot be sent as JSON")
    assert "nothing was asked for" in answer.text


async def test_no_caller_brings_the_cookies_that_another_was_given() -> None:
    page = response(200, b'{"agent": "a", "windows": []}', set_cookie="session=hunter2; Path=/")
    async with desk(in_turn(page)) as it:
        for _ in range(2):
            await it.call("get_budget", {"agent": "a"})
        assert [one.headers.get("cookie") for one in it.api.asked] == [None, None]


async def test_while_a_decision_is_waited_for_an_api_that_dies_as_it_is_connected_to_ends_no_call() -> None:
    """Below httpx that is an AttributeError; the payout has been accepted before."""

    class Dies(httpx.AsyncBaseTransport):
        async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
            if request.method == "GET":
                raise AttributeError("'NoneType' object has no attribute 'getpeername'")
            return httpx.Response(202, stream=httpx.ByteStream(msgspec.json.encode(payout())))

    async with desk(hang) as it:
        it.calls._api._http = httpx.AsyncClient(base_url=it.api.url, transport=Dies())
        answer = await it.call("request_payout", {**KEYED, "wait_s": 1})
        lost = await it.call("get_payout", {"payout": "spi_1"})
    assert answer.text.startswith("spi_1 is taken and not decided yet")
    assert lost.text == "the API gave no answer: AttributeError"


def test_a_connection_is_given_up_before_the_api_closes_it() -> None:
    assert own_api.KEEP_ALIVE_S < KEEP_ALIVE_S


# ---- what became of a payout ----


async def test_the_answer_comes_with_the_decision_that_is_waited_for() -> None:
    received, seen = (
        response(status, msgspec.json.encode(payout(decision, state="approved")))
        for status, decision in ((202, None), (200, "APPROVED"))
    )
    async with desk(in_turn(received, problem(503, "away"), None, seen)) as it:
        answer = await it.call("request_payout", {**KEYED, "wait_s": 30})
        assert {one.target for one in it.api.asked[1:]} == {"/v1/payouts/spi_1"}
    assert answer.shown is not None
    assert (answer.shown["decision"], answer.shown["idempotency_key"]) == ("APPROVED", "inv-7")
    assert answer.text == answer.shown["message"]
    assert "is APPROVED" in answer.text


@pytest.mark.parametrize("wait_s", [0, 1])
async def test_what_is_not_decided_in_time_is_taken_and_says_not_to_ask_under_another_key(
    wait_s: int,
) -> None:
    async with desk(in_turn(response(202, msgspec.json.encode(payout())), problem(404, "no"))) as it:
        answer = await it.call("request_payout", {**KEYED, "wait_s": wait_s})
        assert (len(it.api.asked) == 1) == (wait_s == 0)
    assert answer.shown is not None
    assert answer.shown["decision"] is None
    assert "Do not ask again under another key" in answer.text


async def test_stopping_ends_the_wait_and_the_payout_is_told_as_it_is() -> None:
    async with desk(always(202, payout())) as it:
        it.stopping.set()
        answer = await it.call("request_payout", {**KEYED, "wait_s": 30})
        assert len(it.api.asked) == 1
    assert answer.shown is not None


async def test_a_held_payout_says_that_a_person_decides_and_where() -> None:
    held = payout("HELD", reasons=["APPROVAL_REQUIRED"], state="held")
    async with desk(always(202, held), public_url="https://pay.example.com") as it:
        answer = await it.call("request_payout", KEYED)
    assert answer.shown is not None
    assert answer.shown["link"] == "https://pay.example.com/console/#spi_1"
    for words in ("APPROVAL_REQUIRED", "waits for a person", "https://pay.example.com", "under another key"):
        assert words in answer.text


async def test_a_rejection_is_an_answer_with_its_reasons_and_no_error() -> None:
    async with desk(always(200, payout("REJECTED", reasons=["OVER_LIMIT"]))) as it:
        answer = await it.call("get_payout", {"payout": "spi_1"})
    assert answer.shown is not None
    assert "REJECTED (OVER_LIMIT): it is not paid" in answer.text
    assert answer.shown["link"] is None


@pytest.mark.parametrize(
    ("shown", "told"),
    [
        (payout("APPROVED", state="confirmed"), "is APPROVED. Its state is confirmed; get_payout shows how"),
        (payout("APPROVED", state="processed"), "spi_1 is paid"),
        (payout("APPROVED", state="failed", failure="B:\u202e\nno"), "is not paid: its state is failed (B: no)"),
        (payout("APPROVED", state="reversed"), "is not paid: its state is reversed"),
        (payout("HELD", state="cancelled"), "is not paid: its state is cancelled"),
        (payout(None, state="declined"), "is not paid: its state is declined"),
        (payout(None, state="bypassed"), "the bank moved it without an approval here"),
        (payout("REJECTED", state="bypassed"), "the bank moved it without an approval here"),
        (payout("REJECTED", state="rejected"), "is REJECTED (): it is not paid"),
        (payout("HELD", state="held"), "it waits for a person"),
        (payout(None, state="received"), "is taken and not decided yet"),
    ],
    ids=lambda one: one if isinstance(one, str) else "",
)  # fmt: skip
async def test_how_a_payout_ended_counts_for_more_than_what_was_decided(
    shown: dict[str, Any], told: str
) -> None:
    async with desk(always(200, shown)) as it:
        answer = await it.call("get_payout", {"payout": "spi_1"})
    assert told in answer.text


# ---- what is refused ----


async def test_a_problem_is_told_with_its_status_title_detail_and_every_field() -> None:
    errors = [{"field": "amount", "problem": "must be more"}, {"field": "mode", "problem": "must be one"}]
    async with desk(in_turn(problem(422, "2 problems with the request", errors=errors))) as it:
        answer = await it.call("request_payout", KEYED)
    assert answer.shown is None
    assert answer.text.splitlines() == [
        "HTTP 422 Words: 2 problems with the request", "- amount: must be more", "- mode: must be one",
    ]  # fmt: skip


@pytest.mark.parametrize("status", [429, 500, 503])
async def test_what_was_not_taken_for_now_is_asked_again_with_the_same_key(status: int) -> None:
    async with desk(in_turn(problem(status, "not now"))) as it:
        answer = await it.call("request_payout", KEYED)
        shown = await it.call("get_payout", {"payout": "spi_1"})
    assert "with the same idempotency_key and the same arguments" in answer.text
    assert "idempotency_key" not in shown.text


@pytest.mark.parametrize("status", [429, 503])
async def test_how_long_to_wait_is_told_where_the_api_says_so(status: int) -> None:
    async with desk(in_turn(problem(status, "not now", retry_after="7"))) as it:
        for name, given in (("request_payout", KEYED), ("get_budget", {"agent": "a"})):
            assert "\nAsk again in 7 s." in (await it.call(name, given)).text


async def test_a_key_of_another_payout_is_no_reason_to_pay_under_a_third_one() -> None:
    async with desk(in_turn(problem(409, "used with another body, for payout spi_1; use another key"))) as it:
        answer = await it.call("request_payout", KEYED)
    assert "If it is what you were to pay, another key would pay it twice." in answer.text


@pytest.mark.parametrize("errors", [{"amount": "x"}, ["amount"], None, 7])
async def test_a_problem_of_somebody_elses_shape_is_told_by_its_status(errors: Any) -> None:
    async with desk(in_turn(problem(503, "not now", errors=errors))) as it:
        answer = await it.call("request_payout", KEYED)
    assert answer.text.startswith("HTTP 503 Service Unavailable: no detail")
    assert "the same idempotency_key" in answer.text


@pytest.mark.parametrize(
    "script",
    [
        *(in_turn(None), always(202, b"<html>"), always(202, b"[]"), always(202, b'"' + ANSWER_BYTES_MAX * b"a")),
        *(always(202, {"ok": True}), always(202, payout("MAYBE")), always(202, payout("APPROVED", reasons=None))),
        *(always(202, b'{"payout": "\xff"}'), always(302, {"a": 1}, location="http://127.0.0.1:1/")),
    ],
    ids=[
        *("hangs up", "no JSON", "no object", "over the limit", "no payout", "a decision that nobody knows"),
        *("null for a list", "no UTF-8", "a redirect"),
    ],
)  # fmt: skip
async def test_a_lost_answer_leaves_open_whether_the_payout_was_taken(script: Script) -> None:
    async with desk(script) as it:
        answer = await it.call("request_payout", KEYED)
    assert answer.shown is None
    assert "whether it was taken is not known" in answer.text
    assert "the same idempotency_key" in answer.text


async def test_an_api_that_hangs_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(own_api, "CALL_S_MAX", 0.05)
    async with desk(hang) as it:
        answer = await it.call("request_payout", KEYED)
    assert "gave no answer within 0.05 s; whether it was taken is not known" in answer.text


async def test_an_api_that_is_away_was_asked_for_nothing() -> None:
    async with desk(always(200)) as it:
        pass
    own = OwnApi(it.api.url)
    answer = await Calls(own, public_url="", stopping=asyncio.Event()).call(
        TOOLS["request_payout"], KEYED, Caller(TOKEN)
    )
    await own.aclose()
    assert "cannot be reached: ConnectError; nothing was asked for" in answer.text
    assert TOKEN not in answer.text


async def test_calls_beyond_the_limit_are_refused_and_one_token_leaves_room_for_others() -> None:
    begun = asyncio.Semaphore(0)

    async def slow(heard: Heard) -> bytes | None:
        begun.release()
        return await hang(heard)

    async with desk(slow) as it:
        tokens = [f"spt_{number}" for number in range(CALLS_MAX // CALLS_OF_ONE_MAX)]
        show = TOOLS["get_payout"], {"payout": "spi_1"}
        waiting: list[asyncio.Task[ToolAnswer]] = []
        for token in tokens:
            waiting += [
                asyncio.create_task(it.calls.call(*show, Caller(token))) for _ in range(CALLS_OF_ONE_MAX)
            ]
            for _ in range(CALLS_OF_ONE_MAX):
                await begun.acquire()
            one_more = await it.calls.call(*show, Caller(token))
            assert one_more.text.startswith(f"{CALLS_OF_ONE_MAX} calls with this token are in hand")
        anybody = await it.calls.call(*show, Caller("spt_other"))
        assert anybody.text.startswith(f"{CALLS_MAX} calls are in hand")
        for one in waiting:
            one.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)
        it.api.script = always(404, {"detail": "no"})
        assert (await it.calls.call(*show, Caller(tokens[0]))).status == 404
