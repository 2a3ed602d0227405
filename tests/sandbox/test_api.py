"""The bank's API over HTTP: authentication, refusals, idempotency, lists, contacts, and its faults."""

import asyncio
from typing import Any

import httpx
import pytest

from tests.bank import SHORT_READ, Sandbox

pytestmark = pytest.mark.asyncio(loop_scope="module")

ACCOUNT = "7878780080316316"
CONTACT = {"name": "Asha Paper", "type": "vendor"}
BANK_ACCOUNT = {"name": "Asha Paper", "ifsc": "HDFC0000053", "account_number": "50100012345678"}


def order(**fields: Any) -> dict[str, Any]:
    wanted = {
        "account_number": ACCOUNT,
        "fund_account": {"account_type": "bank_account", "bank_account": BANK_ACCOUNT, "contact": CONTACT},
        "amount": 250_000,
        "currency": "INR",
        "mode": "IMPS",
        "purpose": "vendor bill",
        **fields,
    }
    return {name: value for name, value in wanted.items() if value is not None}


async def create(bank: Sandbox, key: str = "key-0001", **fields: Any) -> httpx.Response:
    return await bank.call("POST", "/v1/payouts", order(**fields), key=key)


def refusal(answer: httpx.Response) -> tuple[int, str | None, str]:
    error = answer.json()["error"]
    return answer.status_code, error.get("field"), error["description"]


async def test_a_composite_order_becomes_a_payout_with_its_fund_account_and_contact(bank: Sandbox) -> None:
    made = (await create(bank, notes={"agent_id": "buyer"})).json()
    assert made["fund_account"]["contact"]["name"] == "Asha Paper"
    assert (made["status"], made["amount"], made["notes"]) == ("processing", 250_000, {"agent_id": "buyer"})
    assert len(made["id"]) == len("pout_") + 14
    await bank.reaches(made["id"], "processed")


async def test_identical_details_give_the_same_contact_and_fund_account(bank: Sandbox) -> None:
    first, second = (await create(bank, "key-0001")).json(), (await create(bank, "key-0002")).json()
    assert first["id"] != second["id"]
    assert first["fund_account_id"] == second["fund_account_id"]
    contacts = (await bank.call("GET", "/v1/contacts")).json()
    assert contacts["count"] == 1


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"account_number": None}, "account_number"),
        ({"account_number": "1"}, "account_number"),
        ({"amount": None}, "amount"),
        ({"amount": 99}, "amount"),
        ({"amount": 250_000.5}, "amount"),
        ({"amount": True}, "amount"),
        ({"amount": 50_000_001}, "amount"),
        ({"mode": "RTGS", "amount": 19_999_999}, "amount"),
        ({"mode": "imps"}, "mode"),
        ({"mode": "UPI"}, "mode"),
        ({"currency": "USD"}, "currency"),
        ({"purpose": ""}, "purpose"),
        ({"narration": "with punctuation!"}, "narration"),
        ({"narration": "x" * 31}, "narration"),
        ({"reference_id": "x" * 41}, "reference_id"),
        ({"notes": {str(n): "x" for n in range(16)}}, "notes"),
        ({"notes": {"long": "x" * 257}}, "notes"),
        ({"queue_if_low_balance": "yes"}, "queue_if_low_balance"),
        ({"fund_account": None}, "fund_account_id"),
    ],
)
async def test_a_wrong_order_is_refused_by_field_and_makes_nothing(
    bank: Sandbox, fields: dict[str, Any], field: str
) -> None:
    answer = await create(bank, **fields)
    assert refusal(answer)[:2] == (400, field)
    assert await bank.show("payouts") == []


async def test_the_limits_themselves_are_accepted(bank: Sandbox) -> None:
    fitting: list[dict[str, Any]] = [
        {"amount": 100},
        {"amount": 50_000_000},
        {"mode": "RTGS", "amount": 20_000_000},
        {"narration": "x" * 30, "reference_id": "x" * 40, "notes": {str(n): "x" * 256 for n in range(15)}},
        {"notes": []},
    ]
    for number, fields in enumerate(fitting):
        answer = await create(bank, f"key-{number:04d}", **fields)
        assert answer.status_code == 200, answer.text


async def test_the_same_key_and_body_give_the_payout_as_it_is_now(bank: Sandbox) -> None:
    made = (await create(bank)).json()
    await bank.reaches(made["id"], "processed")
    again = await create(bank)
    assert (again.json()["id"], again.json()["status"]) == (made["id"], "processed")
    effects = [(line["effect"], line["replay"]) for line in await bank.record(payout=made["id"])]
    assert effects == [(True, False), (False, True)]


async def test_the_same_key_with_another_body_is_refused(bank: Sandbox) -> None:
    await create(bank)
    answer = await create(bank, amount=250_001)
    words = "Different request body sent for the same Idempotency Header"
    assert refusal(answer) == (400, "X-Payout-Idempotency", words)
    assert len(await bank.show("payouts")) == 1


@pytest.mark.parametrize("key", ["", "abc", "x" * 37, "with/slash"])
async def test_a_missing_or_malformed_key_is_refused(bank: Sandbox, key: str) -> None:
    answer = await create(bank, key)
    assert refusal(answer)[:2] == (400, "X-Payout-Idempotency")


async def test_a_refused_order_leaves_its_key_unused(bank: Sandbox) -> None:
    assert (await create(bank, amount=99)).status_code == 400
    assert (await create(bank, amount=100)).status_code == 200


async def test_wrong_credentials_are_401_in_the_banks_envelope(bank: Sandbox) -> None:
    for headers in ({}, {"Authorization": "basic eDp5"}, {"Authorization": "Basic eDp5"}):
        answer = await bank.call("GET", "/v1/payouts", auth="none", headers=headers)
        assert refusal(answer) == (401, None, "Authentication failed")


@pytest.mark.parametrize(
    ("method", "path"),
    [("GET", "/v1/payoutz"), ("PATCH", "/v1/payouts/pout_1/cancel"), ("GET", "/v2/payouts"), ("GET", "/x")],
)
async def test_an_unknown_url_is_400_not_404(bank: Sandbox, method: str, path: str) -> None:
    words = "The requested URL was not found on the server."
    assert refusal(await bank.call(method, path)) == (400, None, words)


async def test_an_unknown_payout_is_400(bank: Sandbox) -> None:
    answer = await bank.call("GET", "/v1/payouts/pout_00000000000000")
    assert refusal(answer) == (400, None, "The id provided does not exist")


async def test_approving_needs_the_partners_token_and_its_scope(bank: Sandbox) -> None:
    payout = await bank.pay(250_000)
    approve = f"/v1/payouts/{payout['id']}/approve"
    by_key = await bank.call("POST", approve, {"remarks": "ok"})
    assert by_key.json()["error"]["code"] == "BAD_REQUEST_AUTHENTICATION_ERROR"
    await bank.bank(oauth_scope="rx_read_only")
    narrow = await bank.call("POST", approve, {"remarks": "ok"}, auth="bearer")
    assert (narrow.status_code, by_key.status_code) == (401, 401)
    assert (await bank.payout(payout["id"]))["status"] == "pending"
    await bank.bank(oauth_scope="rx_partner_read_write")
    done = await bank.call("POST", approve, {"remarks": "ok"}, auth="bearer")
    assert (done.status_code, done.json()["status"]) == (200, "processing")
    line = (await bank.record(payout=payout["id"], effect="true"))[0]
    assert (line["command"], line["auth"], line["remarks"]) == ("payout.approve", "bearer", "ok")


@pytest.mark.parametrize("auth", ["basic", "bearer"])
async def test_rejecting_takes_key_or_token(bank: Sandbox, auth: str) -> None:
    payout = await bank.pay(250_000)
    answer = await bank.call("POST", f"/v1/payouts/{payout['id']}/reject", {"remarks": "no"}, auth=auth)
    assert answer.json()["status_details"]["reason"] == "payout_rejected"


@pytest.mark.parametrize("command", ["approve", "reject"])
@pytest.mark.parametrize("body", [{}, {"remarks": ""}, {"remarks": "  "}, {"remarks": 1}])
async def test_remarks_are_mandatory(bank: Sandbox, command: str, body: dict[str, Any]) -> None:
    payout = await bank.pay(250_000)
    answer = await bank.call("POST", f"/v1/payouts/{payout['id']}/{command}", body, auth="bearer")
    assert refusal(answer)[:2] == (400, "remarks")


async def test_a_payout_is_approved_once(bank: Sandbox) -> None:
    payout = await bank.pay(250_000)
    path = f"/v1/payouts/{payout['id']}/approve"
    answers = [await bank.call("POST", path, {"remarks": "ok"}, auth="bearer") for _ in range(2)]
    assert [answer.status_code for answer in answers] == [200, 400]
    assert answers[1].json()["error"]["reason"] == "payout_approval_not_allowed"
    assert [line["effect"] for line in await bank.record(payout=payout["id"])] == [True, False]


async def test_only_a_queued_payout_is_cancelled(bank: Sandbox) -> None:
    queued, pending = await bank.pay(250_000, status="queued"), await bank.pay(250_000)
    done = await bank.call("POST", f"/v1/payouts/{queued['id']}/cancel")
    assert (done.status_code, done.json()["status"]) == (200, "cancelled")
    assert (await bank.call("POST", f"/v1/payouts/{pending['id']}/cancel")).status_code == 400
    assert (await bank.payout(pending["id"]))["status"] == "pending"


async def test_a_list_has_ten_unless_asked_and_never_more_than_a_hundred(bank: Sandbox) -> None:
    await bank.control("payouts", amount=1000, count=101)

    async def listed(**query: Any) -> httpx.Response:
        return await bank.call("GET", "/v1/payouts", params={"account_number": ACCOUNT, **query})

    assert (await listed()).json()["count"] == 10
    assert (await listed(count=100)).json()["count"] == 100
    assert (await listed(count=100, skip=100)).json()["count"] == 1
    assert refusal(await listed(count=101)) == (400, "count", "The count may not be greater than 100")
    assert refusal(await listed(count=0))[:2] == (400, "count")
    assert refusal(await listed(skip="x"))[:2] == (400, "skip")
    assert refusal(await bank.call("GET", "/v1/payouts"))[:2] == (400, "account_number")


async def test_lists_are_filtered_and_filters_combine(bank: Sandbox) -> None:
    one = await bank.pay(1000, reference_id="inv-1")
    two = await bank.pay(
        1000, reference_id="inv-2", vendor={"name": "Ravi", "vpa": "ravi@ybl"}, status="queued"
    )
    made_at = one["created_at"]
    contact = (await bank.call("GET", f"/v1/fund_accounts/{two['fund_account_id']}")).json()["contact_id"]
    for query, wanted in [
        ({"status": "queued"}, [two["id"]]),
        ({"mode": "IMPS"}, [one["id"]]),
        ({"reference_id": "inv-2"}, [two["id"]]),
        ({"fund_account_id": one["fund_account_id"]}, [one["id"]]),
        ({"contact_id": contact}, [two["id"]]),
        ({"reference_id": "inv-1", "status": "queued"}, []),
        ({"to": made_at - 1}, []),
        ({"from": made_at + 3600}, []),
        ({"from": made_at, "to": made_at + 3600}, [two["id"], one["id"]]),
    ]:
        answer = await bank.call("GET", "/v1/payouts", params={"account_number": ACCOUNT, **query})
        assert [item["id"] for item in answer.json()["items"]] == wanted, query


async def test_the_statement_shows_debit_and_reversal_and_the_balance_after_each(bank: Sandbox) -> None:
    start = await bank.balance(set=1_000_000)
    payout = await bank.pay(100_000, status="processing", outcome="failed")
    await bank.reaches(payout["id"], "failed")
    answer = await bank.call("GET", "/v1/transactions", params={"account_number": ACCOUNT, "count": 2})
    back, out = answer.json()["items"]
    assert (out["debit"], out["source"]["entity"]) == (100_000 + 236, "payout")
    assert (back["credit"], back["source"]["entity"], back["balance"]) == (out["debit"], "reversal", start)
    assert (await bank.call("GET", f"/v1/transactions/{out['id']}")).json() == out
    balances = (await bank.call("GET", "/v1/banking_balances")).json()
    assert balances["items"][0]["available_amount"] == start


async def test_contacts_and_fund_accounts_are_deactivated_but_not_rewritten(bank: Sandbox) -> None:
    contact = (await bank.call("POST", "/v1/contacts", CONTACT)).json()
    wanted = {"contact_id": contact["id"], "account_type": "vpa", "vpa": {"address": "asha@ybl"}}
    account = (await bank.call("POST", "/v1/fund_accounts", wanted)).json()
    path = f"/v1/fund_accounts/{account['id']}"
    assert (await bank.call("PATCH", path, {"vpa": {"address": "b@ybl"}})).status_code == 400
    assert refusal(await bank.call("PATCH", path, {}))[:2] == (400, "active")
    assert (await bank.call("GET", path)).json()["active"] is True
    assert (await bank.call("PATCH", path, {"active": False})).json()["active"] is False
    refused = await create(bank, fund_account=None, fund_account_id=account["id"], mode="UPI")
    assert refusal(refused)[:2] == (400, "fund_account_id")
    renamed = await bank.call("PATCH", f"/v1/contacts/{contact['id']}", {"name": "Asha and Sons"})
    assert renamed.json()["name"] == "Asha and Sons"


async def test_a_change_of_a_contact_that_is_refused_changes_nothing(bank: Sandbox) -> None:
    contact = (await bank.call("POST", "/v1/contacts", CONTACT)).json()
    path = f"/v1/contacts/{contact['id']}"
    refused = await bank.call("PATCH", path, {"name": "Asha and Sons", "type": "stranger"})
    assert refusal(refused)[:2] == (400, "type")
    assert (await bank.call("GET", path)).json() == contact
    assert (await bank.call("POST", "/v1/contacts", CONTACT)).json()["id"] == contact["id"]


async def test_a_change_of_the_bank_that_is_refused_changes_nothing(bank: Sandbox) -> None:
    payout = await bank.pay(250_000)
    wrong = {"oauth_scope": "none", "expire_token": True, "workflow": "sometimes"}
    assert (await bank.http.post("/_control/bank", json=wrong)).status_code == 400
    approved = await bank.call(
        "POST", f"/v1/payouts/{payout['id']}/approve", {"remarks": "ok"}, auth="bearer"
    )
    assert approved.status_code == 200, approved.text


@pytest.mark.parametrize(
    ("fault", "status"),
    [({"kind": "429", "retry_after": 7}, 429), ({"kind": "500"}, 500), ({"kind": "502"}, 502)],
)
async def test_a_fault_befalls_as_many_calls_as_planned_and_changes_nothing(
    bank: Sandbox, fault: dict[str, Any], status: int
) -> None:
    payout = await bank.pay(250_000)
    await bank.faults(api=[{**fault, "path": "/v1/payouts/*/approve", "count": 1}])
    path = f"/v1/payouts/{payout['id']}/approve"
    assert (await bank.payout(payout["id"]))["status"] == "pending"
    answer = await bank.call("POST", path, {"remarks": "ok"}, auth="bearer")
    assert answer.status_code == status
    assert answer.headers.get("Retry-After") == ("7" if status == 429 else None)
    assert answer.headers["Content-Type"].startswith("text/html" if status == 502 else "application/json")
    assert (await bank.payout(payout["id"]))["status"] == "pending"
    assert (await bank.call("POST", path, {"remarks": "ok"}, auth="bearer")).status_code == 200
    assert [line["effect"] for line in await bank.record()] == [False, True]


async def test_accept_then_timeout_acts_and_never_answers(bank: Sandbox) -> None:
    payout = await bank.pay(250_000)
    await bank.faults(api=[{"kind": "timeout", "method": "POST", "count": 1}])
    path = f"/v1/payouts/{payout['id']}/reject"
    with pytest.raises(httpx.ReadTimeout):
        await bank.call("POST", path, {"remarks": "no"}, timeout=SHORT_READ)
    await bank.reaches(payout["id"], "rejected")  # a busy bank may not have read it when the caller gave up
    line = (await bank.record())[0]
    assert (line["effect"], line["answered"], line["fault"]) == (True, False, "timeout")


async def test_a_slow_call_does_not_hold_up_others(bank: Sandbox) -> None:
    payout = await bank.pay(250_000)
    await bank.faults(api=[{"kind": "slow", "ms": 60_000, "path": "/v1/contacts"}])
    slow = asyncio.create_task(bank.call("GET", "/v1/contacts"))
    assert (await bank.payout(payout["id"]))["status"] == "pending"
    assert not slow.done()
    slow.cancel()
    await asyncio.wait({slow})


async def test_bodies_that_are_no_json_object_are_400(bank: Sandbox) -> None:
    for body in (b"{", b"[]", b'"x"', b"\xff"):
        answer = await bank.call("POST", "/v1/payouts", key="key-0001", content=body)
        assert answer.status_code == 400, body


async def test_a_misspelt_control_field_is_refused(bank: Sandbox) -> None:
    answer = await bank.http.post("/_control/payouts", json={"amount": 1000, "statuss": "queued"})
    assert (answer.status_code, "statuss" in answer.text) == (400, True)
