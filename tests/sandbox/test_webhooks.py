"""Webhooks as they arrive: bytes, headers, signature, retries, and what can go wrong with them."""

import hashlib
import hmac
import json
import re
from itertools import pairwise
from typing import Any

import pytest

from tests.bank import Inbox, Sandbox, until

pytestmark = pytest.mark.asyncio(loop_scope="module")

SECRET = "sandbox_webhook_secret"


def signed_with(secret: str, headers: dict[str, str], body: bytes) -> bool:
    wanted = hmac.new(secret.encode(), body, hashlib.sha256).hexdigest()
    return headers.get("x-razorpay-signature") == wanted


def names(inbox: Inbox) -> list[str]:
    return [json.loads(body)["event"] for _, body in inbox.requests]


async def delivered(bank: Sandbox, state: str, count: int, **filters: str) -> list[dict[str, Any]]:
    async def there() -> list[dict[str, Any]]:
        found = await bank.deliveries(state=state, **filters)
        return found if len(found) >= count else []

    return await until(there, what=f"{count} deliveries are {state}")


async def test_the_signature_is_over_the_raw_bytes_and_the_ids_are_bare(bank: Sandbox, inbox: Inbox) -> None:
    await bank.pay(250_000)
    headers, body = (await inbox.holds(1))[0]
    assert signed_with(SECRET, headers, body)
    assert headers["user-agent"] == "Razorpay-Webhook/v1"
    assert headers["content-type"] == "application/json"
    assert headers["request-id"] == headers["x-razorpay-event-id"]
    assert re.fullmatch("[0-9A-Za-z]{14}", headers["x-razorpay-event-id"])


async def test_the_body_is_compact_with_escaped_slashes_and_ascii_only(bank: Sandbox, inbox: Inbox) -> None:
    await bank.pay(250_000, notes={"vendor_url": "https://asha.example/é"})
    _, body = (await inbox.holds(1))[0]
    assert rb'"vendor_url":"https:\/\/asha.example\/\u00e9"' in body
    assert body.isascii()
    assert json.dumps(json.loads(body)).encode() != body


async def test_the_envelope_has_the_documented_keys(bank: Sandbox, inbox: Inbox) -> None:
    payout = await bank.pay(250_000)
    _, body = (await inbox.holds(1))[0]
    event = json.loads(body)
    assert list(event) == ["entity", "account_id", "event", "contains", "payload", "created_at"]
    assert (event["entity"], event["account_id"]) == ("event", "acc_Sandbox0000001")
    assert (event["event"], event["contains"]) == ("payout.pending", ["payout"])
    entity = event["payload"]["payout"]["entity"]
    assert (entity["id"], entity["notes"], entity["debit_account_number"]) == (payout["id"], [], "null")
    assert entity["status_details"]["reason"] == "pending_approval"


async def test_pending_can_come_expanded_without_a_fund_account_id(bank: Sandbox, inbox: Inbox) -> None:
    await bank.bank(expand_pending=True)
    await bank.pay(250_000)
    event = json.loads((await inbox.holds(1))[0][1])
    entity = event["payload"]["payout"]["entity"]
    assert "created_at" not in event
    assert "fund_account_id" not in entity
    assert entity["fund_account"]["contact"]["name"] == "Asha Paper Works"


async def test_an_approved_payout_is_told_of_from_pending_to_processed(bank: Sandbox, inbox: Inbox) -> None:
    payout = await bank.pay(250_000)
    await inbox.holds(1)
    await bank.call("POST", f"/v1/payouts/{payout['id']}/approve", {"remarks": "ok"}, auth="bearer")
    await inbox.holds(3)
    assert sorted(names(inbox)) == ["payout.initiated", "payout.pending", "payout.processed"]


async def test_after_a_cancel_nothing_is_sent(bank: Sandbox, inbox: Inbox) -> None:
    payout = await bank.pay(250_000, status="queued")
    await bank.call("POST", f"/v1/payouts/{payout['id']}/cancel")
    await bank.control("clock", advance_s=100_000)
    await delivered(bank, "delivered", 1, payout=payout["id"])
    assert [each["event"] for each in await bank.deliveries(payout=payout["id"])] == ["payout.queued"]


@pytest.mark.parametrize("answer", [400, 401, 404, 302, 500, 503])
async def test_anything_but_2xx_is_tried_again_with_the_same_id_and_bytes(
    bank: Sandbox, inbox: Inbox, answer: int
) -> None:
    inbox.answers = [answer, answer]
    await bank.pay(250_000)
    first, second, third = await inbox.holds(3)
    assert first[1] == second[1] == third[1]
    ids = {headers["x-razorpay-event-id"] for headers, _ in inbox.requests}
    assert len(ids) == 1
    attempts = (await delivered(bank, "delivered", 1))[0]["attempts"]
    assert [attempt["status"] for attempt in attempts] == [answer, answer, 200]


async def test_204_is_success(bank: Sandbox, inbox: Inbox) -> None:
    inbox.answers = [204]
    await bank.pay(250_000)
    assert len((await delivered(bank, "delivered", 1))[0]["attempts"]) == 1


async def test_the_gaps_of_the_ladder_about_double_until_it_gives_up_and_disables(bank: Sandbox) -> None:
    await bank.webhook(url="http://127.0.0.1:9/closed", retry_base_s=5.8)
    payout = await bank.pay(250_000)

    gaps: list[float] = []

    async def tried_again() -> dict[str, Any] | None:
        each = (await bank.deliveries(payout=payout["id"]))[0]
        return each if len(each["attempts"]) > len(gaps) else None

    while (each := await until(tried_again, what="another attempt") or {})["state"] == "waiting":
        last = each["attempts"][-1]
        gaps.append(each["next_at"] - last["at"] - last["ms"] / 1000)
        now = (await bank.control("clock", advance_s=0))["now"]
        await bank.control("clock", advance_s=max(0.0, each["next_at"] - now))
    assert each["state"] == "given_up"
    assert 13 <= len(gaps) <= 15
    assert gaps[0] == pytest.approx(5.8, rel=0.2)
    assert all(later / gap == pytest.approx(2, rel=0.2) for gap, later in pairwise(gaps))
    assert sum(gaps) < 86_400
    later = await bank.pay(1000)
    assert (await bank.deliveries(payout=later["id"]))[0]["state"] == "skipped"
    await bank.webhook(url="")


async def test_an_event_made_before_a_rotation_keeps_the_old_secret(bank: Sandbox, inbox: Inbox) -> None:
    inbox.answers = [503]
    await bank.webhook(retry_base_s=3600)
    await bank.pay(250_000)
    await inbox.holds(1)
    await bank.webhook(secret="new")
    await bank.control("clock", advance_s=7200)
    await inbox.holds(2)
    await bank.pay(1000)
    (_, retried, fresh) = await inbox.holds(3)
    assert signed_with(SECRET, *retried)
    assert signed_with("new", *fresh)
    await bank.webhook(retry_base_s=0.01)


async def test_without_a_secret_there_is_no_signature_header(bank: Sandbox, inbox: Inbox) -> None:
    await bank.webhook(secret="")
    await bank.pay(250_000)
    assert "x-razorpay-signature" not in (await inbox.holds(1))[0][0]


async def test_a_duplicate_has_the_same_id_and_the_same_bytes(bank: Sandbox, inbox: Inbox) -> None:
    await bank.faults(webhooks=[{"kind": "duplicate", "copies": 2, "count": 1}])
    await bank.pay(250_000)
    requests = await inbox.holds(3)
    assert len({(headers["x-razorpay-event-id"], body) for headers, body in requests}) == 1


async def test_a_dropped_event_never_comes_and_a_later_one_does(bank: Sandbox, inbox: Inbox) -> None:
    await bank.faults(webhooks=[{"kind": "drop", "events": "payout.initiated"}])
    await bank.pay(250_000, status="processing")
    await inbox.holds(1)
    assert names(inbox) == ["payout.processed"]
    assert [each["event"] for each in await bank.deliveries(state="dropped")] == ["payout.initiated"]


async def test_a_reordered_event_comes_after_a_later_one(bank: Sandbox, inbox: Inbox) -> None:
    await bank.faults(webhooks=[{"kind": "reorder", "events": "payout.initiated", "count": 1, "ms": 600_000}])
    await bank.pay(250_000, status="processing")
    await inbox.holds(2)
    assert names(inbox) == ["payout.processed", "payout.initiated"]


async def test_a_delayed_event_comes_when_its_time_is_there(bank: Sandbox, inbox: Inbox) -> None:
    await bank.faults(webhooks=[{"kind": "delay", "events": "payout.pending", "ms": 600_000}])
    await bank.pay(250_000)
    await bank.pay(250_000, status="queued")
    await inbox.holds(1)
    assert names(inbox) == ["payout.queued"]
    await bank.control("clock", advance_s=601)
    await inbox.holds(2)
    assert names(inbox)[1] == "payout.pending"


async def test_wrong_signatures_are_sent_as_often_as_planned_then_right_ones(
    bank: Sandbox, inbox: Inbox
) -> None:
    inbox.answers = [401, 401]
    await bank.faults(
        webhooks=[
            {"kind": "bad_signature", "count": 1},
            {"kind": "stale_secret", "secret": "old", "count": 1},
        ]
    )
    await bank.pay(250_000)
    requests = await inbox.holds(2)
    assert not signed_with(SECRET, *requests[0])
    assert signed_with(SECRET, *(await inbox.holds(3))[2])


async def test_support_can_send_an_event_again(bank: Sandbox, inbox: Inbox) -> None:
    await bank.pay(250_000)
    sent = (await delivered(bank, "delivered", 1))[0]
    await bank.control(f"deliveries/{sent['id']}/resend")
    first, second = await inbox.holds(2)
    assert (first[0]["x-razorpay-event-id"], first[1]) == (second[0]["x-razorpay-event-id"], second[1])


async def test_any_other_event_can_be_sent_signed(bank: Sandbox, inbox: Inbox) -> None:
    downtime = {"id": "poutdown_00000000000001", "method": ["IMPS"], "begin": 1, "end": None}
    await bank.control("events", event="payout.downtime.started", entity="payout.downtime", body=downtime)
    headers, body = (await inbox.holds(1))[0]
    assert json.loads(body)["payload"]["payout.downtime"]["entity"]["method"] == ["IMPS"]
    assert signed_with(SECRET, headers, body)


async def test_only_subscribed_events_are_sent(bank: Sandbox, inbox: Inbox) -> None:
    await bank.webhook(events=["payout.processed"])
    await bank.pay(250_000, status="processing")
    await inbox.holds(1)
    assert names(inbox) == ["payout.processed"]
