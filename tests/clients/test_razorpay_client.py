import base64
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from msgspec.json import decode, encode

from streamproc.clients.breaker import Breaker
from streamproc.clients.http import OutboundClient, OutcomeUnknown
from streamproc.clients.limiter import Limiter
from streamproc.clients.razorpay import CommandAnswer, Razorpay, open_razorpay
from streamproc.clients.razorpay_entities import MalformedPayout
from streamproc.domain.events import BankPayout
from streamproc.errors import TryAgain, Unprocessable
from tests.clients.loopback import Asked, Loopback, Script, always, in_turn, loopback, response, silent_for

PAYOUT = "pout_Lq3vD0pZ8m2XkA"
BASIC = "Basic " + base64.b64encode(b"rzp_test_key:hush").decode()
BEARER = "Bearer tok_hush"


def entity(status: str = "processing", **changes: object) -> dict[str, object]:
    plain = {
        "id": PAYOUT,
        "entity": "payout",
        "amount": 250_000,
        "currency": "INR",
        "status": status,
        "notes": [],
    }
    return plain | changes


def refusal(
    description: str | None = "Payout is not in pending state", **changes: object
) -> dict[str, object]:
    error = {"code": "BAD_REQUEST_ERROR", "description": description, "reason": "payout_approval_not_allowed"}
    return {"error": error | changes}


@asynccontextmanager
async def bank(script: Script, oauth_token: str = "tok_hush") -> AsyncIterator[tuple[Razorpay, Loopback]]:
    async with loopback(script) as server:
        client = open_razorpay(
            server.url + "/v1/", key_id="rzp_test_key", key_secret="hush", oauth_token=oauth_token
        )
        try:
            yield client, server
        finally:
            await client.aclose()


async def answer_to(script: Script) -> CommandAnswer:
    async with bank(script) as (client, _):
        return await client.reject(PAYOUT, "over the limit")


async def test_approve_posts_the_remarks_with_the_oauth_token() -> None:
    async with bank(always(200, entity())) as (client, server):
        answer = await client.approve(PAYOUT, "POLICY_OK")
    asked = server.asked[0]
    assert (asked.method, asked.target) == ("POST", f"/v1/payouts/{PAYOUT}/approve")
    assert (asked.headers["authorization"], decode(asked.body)) == (BEARER, {"remarks": "POLICY_OK"})
    assert (answer.outcome, answer.http_status, answer.problem) == ("done", 200, "")
    assert answer.payout is not None
    assert answer.payout.status == "processing"


async def test_without_a_token_approve_and_reject_use_the_key() -> None:
    async with bank(always(200, entity()), oauth_token="") as (client, server):
        await client.approve(PAYOUT, "x")
        await client.reject(PAYOUT, "x")
    assert {asked.headers["authorization"] for asked in server.asked} == {BASIC}


@pytest.mark.parametrize("command", ["approve", "reject", "cancel"])
async def test_where_the_bank_refuses_who_asks_the_payout_waits_a_minute_for_somebody_to_renew_the_token(
    command: str,
) -> None:
    async with bank(always(401, refusal("The token has expired"))) as (client, _):
        with pytest.raises(TryAgain, match=r"refuses our .* with 401, The token has expired; ") as caught:
            await (client.cancel(PAYOUT) if command == "cancel" else getattr(client, command)(PAYOUT, "x"))
    assert (type(caught.value), caught.value.after_s) == (TryAgain, 60)
    assert not {"hush", BEARER.split()[1]} & set(str(caught.value).split())


async def test_without_a_token_a_person_must_approve_at_the_bank_so_401_is_a_refusal() -> None:
    async with bank(always(401, refusal("Authentication failed")), oauth_token="") as (client, _):
        answer = await client.approve(PAYOUT, "x")
    assert (answer.outcome, answer.http_status) == ("refused", 401)


async def test_with_a_token_reject_uses_it() -> None:
    async with bank(always(200, entity("rejected"))) as (client, server):
        await client.reject(PAYOUT, "x")
    assert (server.asked[0].path, server.asked[0].headers["authorization"]) == (
        f"/v1/payouts/{PAYOUT}/reject",
        BEARER,
    )


async def test_cancel_is_a_post_with_the_key_and_without_a_body() -> None:
    async with bank(always(200, entity("cancelled"))) as (client, server):
        await client.cancel(PAYOUT)
    asked = server.asked[0]
    assert (asked.method, asked.path, asked.body) == ("POST", f"/v1/payouts/{PAYOUT}/cancel", b"")
    assert asked.headers["authorization"] == BASIC


@pytest.mark.parametrize(
    ("remarks", "sent"),
    [
        ("", "decided by streamproc"),
        ("  \n ", "decided by streamproc"),
        ("₹500 is over\nthe limit", "Rs 500 is over the limit"),
        ("naïve \x00\ud800", "na?ve ??"),
        ("x" * 1_000, "x" * 255),
        ("₹" * 255, ("Rs " * 255)[:255]),
    ],
)
async def test_remarks_are_short_printable_ascii_and_never_empty(remarks: str, sent: str) -> None:
    async with bank(always(200, entity())) as (client, server):
        await client.approve(PAYOUT, remarks)
    assert decode(server.asked[0].body) == {"remarks": sent}


async def test_a_4xx_is_a_refusal_with_the_banks_reason() -> None:
    answer = await answer_to(always(400, refusal()))
    assert answer == CommandAnswer(
        http_status=400,
        outcome="refused",
        code="payout_approval_not_allowed",
        problem="Payout is not in pending state",
    )


@pytest.mark.parametrize("no_reason", [None, "null", "NA", "", 7])
async def test_without_a_reason_the_code_is_the_errors(no_reason: object) -> None:
    assert (await answer_to(always(400, refusal(reason=no_reason)))).code == "BAD_REQUEST_ERROR"


@pytest.mark.parametrize(
    "body",
    [
        refusal(None),
        refusal(7),  # type: ignore[arg-type]
        refusal(code=None, reason=None),
        {"error": {}},
    ],
)
@pytest.mark.parametrize("status", [400, 403])
async def test_a_4xx_in_the_banks_envelope_is_a_refusal_whatever_is_in_it(status: int, body: object) -> None:
    answer = await answer_to(always(status, body))
    assert (answer.outcome, answer.http_status, answer.payout) == ("refused", status, None)
    assert answer.problem


@pytest.mark.parametrize(
    "body", [b"", b"<html>Request blocked</html>", [], {}, {"error": None}, {"error": "x"}]
)
async def test_a_403_that_is_not_the_banks_own_leaves_a_command_to_be_tried_again(body: object) -> None:
    """It is a proxy's page. As a refusal it would end the command, and a queued payout is paid by itself."""
    async with bank(always(403, body)) as (client, _):
        for command in (client.approve(PAYOUT, "x"), client.reject(PAYOUT, "x"), client.cancel(PAYOUT)):
            with pytest.raises(OutcomeUnknown, match="403 in a form that is not the bank's"):
                await command
        # Nothing was done: it is created later.
        with pytest.raises(TryAgain, match="refuses our keys with 403"):
            await client.create(b"{}", "sp-key")


@pytest.mark.parametrize(
    "body", [b"", b"<html>OK</html>", {}, [], entity(amount=None), entity(id="pout_another")]
)
async def test_a_2xx_that_cannot_be_read_is_done_without_a_payout(body: object) -> None:
    answer = await answer_to(always(200, body))
    assert (answer.outcome, answer.payout) == ("done", None)
    assert answer.problem


@pytest.mark.parametrize(
    "script", [always(500, refusal()), always(502, b"<html>Bad Gateway</html>"), in_turn(None)]
)
async def test_after_a_5xx_or_a_lost_answer_the_outcome_is_unknown(script: Script) -> None:
    with pytest.raises(OutcomeUnknown):
        await answer_to(script)


async def test_a_command_that_is_not_answered_in_time_has_an_unknown_outcome() -> None:
    async with loopback(silent_for(20)) as server:
        http = OutboundClient("razorpay", server.url, timeout_s=20, limiter=Limiter(8, 8), breaker=Breaker())
        async with http:
            with pytest.raises(OutcomeUnknown):
                await Razorpay(http, key_id="k", key_secret="s").cancel(PAYOUT)


async def test_429_is_tried_again_because_nothing_was_done() -> None:
    with pytest.raises(TryAgain) as caught:
        await answer_to(always(429, refusal(), retry_after="3"))
    assert (type(caught.value), caught.value.after_s) == (TryAgain, 3)


@pytest.mark.parametrize("bad_id", ["", "../contacts", "pout_1/approve", "a" * 65, "pout 1", "pout_1?x=1"])
async def test_an_id_that_would_change_the_path_is_never_sent(bad_id: str) -> None:
    async with bank(always(200, entity())) as (client, server):
        with pytest.raises(Unprocessable):
            await client.approve(bad_id, "x")
        with pytest.raises(Unprocessable):
            await client.fetch(bad_id)
    assert server.asked == []


async def test_fetch_gives_the_payout_as_it_is_now() -> None:
    async with bank(always(200, entity("processed", utr="523223155921"))) as (client, server):
        payout = await client.fetch(PAYOUT)
    assert (payout.status, payout.utr) == ("processed", "523223155921")
    assert (server.asked[0].method, server.asked[0].headers["authorization"]) == ("GET", BASIC)


@pytest.mark.parametrize(
    ("script", "error"),
    [
        (always(400, refusal("The id provided does not exist")), Unprocessable),
        (always(200, entity(amount="x")), Unprocessable),
        (always(200, entity(id="pout_another")), Unprocessable),
        (always(401, refusal("Authentication failed")), TryAgain),
        (always(200, b"<html>Captive portal</html>"), TryAgain),
        (always(404, b"<html>Not Found</html>"), TryAgain),
        (always(400, {"message": "blocked"}), TryAgain),
        (always(408, refusal("Timeout")), TryAgain),
        (always(500), TryAgain),
    ],
)
async def test_fetch_says_whether_asking_again_can_help(script: Script, error: type[Exception]) -> None:
    async with bank(script) as (client, _):
        with pytest.raises(error) as caught:
            await client.fetch(PAYOUT)
    assert "hush" not in str(caught.value)


async def test_a_page_keeps_bad_items_in_their_place_and_counts_what_was_sent() -> None:
    items: list[Any] = [entity(), entity(amount=1.5), None, entity("queued", id="pout_2")]
    async with bank(always(200, {"entity": "collection", "count": 4, "items": items})) as (client, server):
        page = await client.list_page("7878780080316316", from_s=10, to_s=20, skip=100)
    assert [type(item) for item in page.items] == [BankPayout, MalformedPayout, MalformedPayout, BankPayout]
    assert page.raw_count == 4
    assert page.at_s is None
    assert server.asked[0].query == {
        "account_number": "7878780080316316", "from": "10", "to": "20", "count": "100", "skip": "100",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("date", "at_s"), [("Mon, 21 Sep 2026 14:13:20 GMT", 1_790_000_000), ("yesterday", None), ("", None)]
)
async def test_a_page_tells_when_the_bank_made_it_if_the_bank_does(date: str, at_s: int | None) -> None:
    async def dated(_asked: Asked) -> bytes:
        body = b'{"items": []}'
        return b"HTTP/1.1 200 OK\r\ndate: %b\r\ncontent-length: %d\r\n\r\n%b" % (
            date.encode(),
            len(body),
            body,
        )

    async with bank(dated) as (client, _):
        page = await client.list_page("7878780080316316", from_s=10, to_s=20, skip=0)
    assert page.at_s == at_s


@pytest.mark.parametrize("body", [b"<html>", {}, {"items": None}, {"items": {}}, []])
async def test_a_list_without_items_is_no_end_of_the_list(body: object) -> None:
    async with bank(always(200, body)) as (client, _):
        with pytest.raises(TryAgain):
            await client.list_page("7878780080316316", from_s=0, to_s=1, skip=0)


async def test_the_account_number_is_in_no_message() -> None:
    async with bank(always(400, refusal("The count may not be greater than 100"))) as (client, _):
        with pytest.raises(Unprocessable, match="greater than 100") as caught:
            await client.list_page("7878780080316316", from_s=0, to_s=1, skip=0)
    assert "7878780080316316" not in str(caught.value)


async def test_five_failures_open_the_bank_s_breaker_and_refusals_do_not() -> None:
    async with bank(in_turn(*[response(400, encode(refusal()))] * 6, response(500))) as (client, server):
        for _ in range(6):
            await client.reject(PAYOUT, "x")
        assert client.breaker.state == "closed"
        for _ in range(5):
            with pytest.raises(OutcomeUnknown):
                await client.reject(PAYOUT, "x")
        assert client.breaker.state == "open"
        with pytest.raises(TryAgain):
            await client.reject(PAYOUT, "x")
        assert len(server.asked) == 11


@pytest.mark.parametrize(
    ("status", "body"),
    [(408, refusal()), (425, refusal()), (404, b"<html>no route</html>"), (400, {}), (400, b"")],
)
async def test_a_refusal_that_is_not_the_banks_own_leaves_the_outcome_open(status: int, body: object) -> None:
    """A proxy says such things, also after the bank has acted."""
    async with bank(always(status, body)) as (client, _):
        with pytest.raises(OutcomeUnknown, match=f"{status} in a form that is not the bank's"):
            await client.create(b"{}", "sp-key")
        with pytest.raises(OutcomeUnknown, match=f"{status} in a form that is not the bank's"):
            await client.approve(PAYOUT, "yes")


ORDER, KEY, REFERENCE = b'{"amount": 250000}', "sp-key", "spi_" + "0" * 26


async def created(script: Script) -> CommandAnswer:
    async with bank(script) as (client, _):
        return await client.create(ORDER, KEY)


async def test_create_sends_these_bytes_under_this_key_since_the_bank_compares_both() -> None:
    async with bank(always(200, entity(reference_id=REFERENCE))) as (client, server):
        answer = await client.create(ORDER, KEY)
    (asked,) = server.asked
    assert (asked.method, asked.target, asked.body) == ("POST", "/v1/payouts", ORDER)
    assert (asked.headers["x-payout-idempotency"], asked.headers["authorization"]) == (KEY, BASIC)
    assert answer.payout is not None
    assert (answer.outcome, answer.payout.id, answer.problem) == ("done", PAYOUT, "")


async def test_a_creation_that_the_bank_refuses_is_refused_for_good() -> None:
    answer = await created(always(400, refusal("No money", reason="low_balance")))
    assert answer == CommandAnswer(http_status=400, outcome="refused", code="low_balance", problem="No money")


@pytest.mark.parametrize("status", [401, 403])
async def test_refused_keys_fail_no_payout_it_waits_a_minute_for_somebody_to_mend_them(status: int) -> None:
    with pytest.raises(TryAgain, match=f"refuses our keys with {status}") as caught:
        await created(always(status, refusal("Authentication failed")))
    assert (type(caught.value), caught.value.after_s) == (TryAgain, 60)
    assert "hush" not in str(caught.value)


async def test_a_creation_whose_key_is_in_use_at_the_bank_may_have_been_carried_out() -> None:
    with pytest.raises(OutcomeUnknown):
        await created(always(409, refusal("A request with this key is in progress")))


async def test_of_what_the_bank_lists_under_a_reference_only_what_bears_it_is_found() -> None:
    items = [entity(reference_id=REFERENCE), entity(id="pout_2", reference_id="other"), entity(id="pout_3")]
    async with bank(always(200, {"items": items})) as (client, server):
        found = await client.find("7878780080316316", REFERENCE)
    assert [payout.id for payout in found.payouts] == [PAYOUT]
    (asked,) = server.asked
    assert (asked.method, asked.path, asked.headers["authorization"]) == ("GET", "/v1/payouts", BASIC)
    assert asked.query == {"account_number": "7878780080316316", "reference_id": REFERENCE, "count": "100"}


@pytest.mark.parametrize(
    ("script", "error"),
    [
        (always(200, {"items": [entity(reference_id=REFERENCE), entity(amount=None)]}), Unprocessable),
        (always(400, refusal("The reference is too long")), Unprocessable),
        (always(401, refusal("Authentication failed")), TryAgain),
        (always(200, {"count": 0}), TryAgain),
        (always(500), TryAgain),
    ],
)
async def test_a_search_that_shows_not_all_there_is_never_says_that_nothing_is_there(
    script: Script, error: type[Exception]
) -> None:
    async with bank(script) as (client, _):
        with pytest.raises(error):
            await client.find("7878780080316316", REFERENCE)
