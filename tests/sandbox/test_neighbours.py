"""Safe Browsing, GLEIF, Slack and ntfy beside the bank."""

import json
from typing import Any
from urllib.parse import parse_qs

import httpx
import pytest

from tests.bank import SHORT_READ, Sandbox, until
from tests.clients.loopback import Asked, loopback, response
from tests.slack import signature

pytestmark = pytest.mark.asyncio(loop_scope="module")


async def look_up(bank: Sandbox, *urls: str, key: str = "any", **info: Any) -> httpx.Response:
    asked = {
        "threatTypes": ["MALWARE", "SOCIAL_ENGINEERING"],
        "platformTypes": ["ANY_PLATFORM"],
        "threatEntryTypes": ["URL"],
        "threatEntries": [{"url": url} for url in urls],
        **info,
    }
    body = {"client": {"clientId": "test", "clientVersion": "1"}, "threatInfo": asked}
    path = "/safebrowsing/v4/threatMatches:find"
    return await bank.http.post(path, params={"key": key} if key else {}, json=body)


async def test_a_listed_host_and_those_below_it_are_threats_and_others_are_not(bank: Sandbox) -> None:
    listed = ["http://malware.example.net/", "https://a.b.MALWARE.example.net./x?y", "phishing.example.org/z"]
    clean = ["http://notmalware.example.net/", "http://example.net/", "http://malware.example.net.evil.test/"]
    matches = (await look_up(bank, *listed, *clean)).json()["matches"]
    assert [match["threat"]["url"] for match in matches] == listed
    assert [match["threatType"] for match in matches] == ["MALWARE", "MALWARE", "SOCIAL_ENGINEERING"]
    assert {match["cacheDuration"] for match in matches} == {"300.000s"}


async def test_no_match_is_an_empty_object(bank: Sandbox) -> None:
    assert (await look_up(bank, "http://example.com/")).json() == {}


async def test_a_threat_type_that_was_not_asked_for_is_not_named(bank: Sandbox) -> None:
    answer = await look_up(bank, "http://malware.example.net/", threatTypes=["SOCIAL_ENGINEERING"])
    assert answer.json() == {}


async def test_without_a_key_the_lookup_is_forbidden(bank: Sandbox) -> None:
    answer = await look_up(bank, "http://example.com/", key="")
    assert (answer.status_code, answer.json()["error"]["status"]) == (403, "PERMISSION_DENIED")


async def test_the_list_the_cache_time_and_the_availability_can_be_changed(bank: Sandbox) -> None:
    await bank.control("safebrowsing", threats={"bad.example": "MALWARE"}, cache_s=5)
    match = (await look_up(bank, "http://bad.example/")).json()["matches"][0]
    assert match["cacheDuration"] == "5.000s"
    for mood, status in (("500", 500), ("429", 429), ("ok", 200)):
        await bank.control("safebrowsing", down=mood)
        assert (await look_up(bank, "http://bad.example/")).status_code == status
    await bank.control("safebrowsing", down="timeout")
    with pytest.raises(httpx.ReadTimeout):
        await bank.http.post("/safebrowsing/v4/threatMatches:find?key=k", timeout=SHORT_READ)

    async def all_heard() -> bool:
        return [call["status"] for call in await bank.show("safebrowsing")] == [200, 500, 429, 200, 0]

    await until(all_heard, what="the call without an answer is listed, after all others")


async def test_gleif_finds_by_a_part_of_the_name_and_by_lei(bank: Sandbox) -> None:
    path = "/gleif/api/v1/lei-records"
    by_name = (await bank.http.get(path, params={"filter[entity.legalName]": "asha paper"})).json()
    assert by_name["data"][0]["attributes"]["entity"]["status"] == "ACTIVE"
    await bank.control("gleif", records=[{"lei": "X1", "name": "Gone Ltd", "registration": "LAPSED"}])
    by_lei = (await bank.http.get(path, params={"filter[lei]": "X1"})).json()
    assert by_lei["data"][0]["attributes"]["registration"]["status"] == "LAPSED"
    assert (await bank.http.get(path, params={"filter[lei]": "X2"})).json()["data"] == []


async def test_slack_keeps_what_was_posted_and_refuses_in_its_own_way(bank: Sandbox) -> None:
    headers = {"Authorization": "Bearer xoxb-test"}

    async def slack(method: str, body: dict[str, Any], **more: Any) -> dict[str, Any]:
        answer = await bank.http.post(f"/slack/api/{method}", json=body, **{"headers": headers, **more})
        assert answer.status_code == 200
        said: dict[str, Any] = answer.json()
        return said

    posted = await slack("chat.postMessage", {"channel": "C1", "text": "held"})
    assert (await slack("chat.update", {"channel": "C1", "ts": posted["ts"], "text": "done"}))["ok"]
    assert (await slack("auth.test", {}))["ok"]
    assert (await slack("chat.postMessage", {"channel": "C1"}))["error"] == "no_text"
    assert (await slack("chat.postMessage", {"text": "x"}))["error"] == "channel_not_found"
    assert (await slack("auth.test", {}, headers={}))["error"] == "not_authed"
    sent = [(each["method"], each["body"]["text"]) for each in await bank.messages("slack")]
    assert sent == [("chat.postMessage", "held"), ("chat.update", "done")]


BUTTONS = [
    {"type": "section", "text": {"type": "mrkdwn", "text": "held"}},
    {
        "type": "actions",
        "block_id": "answer",
        "elements": [
            {
                "type": "button",
                "action_id": "hold.approve",
                "text": {"type": "plain_text", "text": "Approve"},
                "value": "v1.mac.pout_1",
            }
        ],
    },
]
MODAL = {
    "type": "modal",
    "callback_id": "hold.reject",
    "private_metadata": "v1.mac.pout_1",
    "blocks": [
        {
            "type": "input",
            "block_id": "reason",
            "element": {"type": "plain_text_input", "action_id": "reason"},
        }
    ],
}


async def test_a_click_in_slack_is_posted_signed_and_opens_one_modal_that_can_be_submitted(
    bank: Sandbox,
) -> None:
    headers = {"Authorization": "Bearer xoxb-test"}
    clicked: list[tuple[dict[str, str], bytes]] = []
    answers: list[str] = []

    async def app(asked: Asked) -> bytes:
        clicked.append((asked.headers, asked.body))
        payload = json.loads(parse_qs(asked.body.decode())["payload"][0])
        for _ in range(2):
            body = {"trigger_id": payload["trigger_id"], "view": MODAL}
            opened = await bank.http.post("/slack/api/views.open", json=body, headers=headers)
            answers.append(opened.json().get("error", "ok"))
        return response(200)

    message = {"channel": "C1", "text": "held", "blocks": BUTTONS}
    posted = (await bank.http.post("/slack/api/chat.postMessage", json=message, headers=headers)).json()
    async with loopback(app) as server:
        click = {"user": "U0ASHA", "ts": posted["ts"], "action_id": "hold.approve", "url": server.url}
        said = await bank.control("slack/click", **click)
        assert (said["status"], answers) == (200, ["ok", "exchanged_trigger_id"])
        submit = {"user": "U0ASHA", "view": said["view"], "values": {"reason": "no"}, "url": server.url}
        assert (await bank.control("slack/submit", **submit))["status"] == 200
    payloads = [json.loads(parse_qs(body.decode())["payload"][0]) for _, body in clicked]
    assert [payload["type"] for payload in payloads] == ["block_actions", "view_submission"]
    assert (payloads[0]["actions"][0]["value"], payloads[0]["user"]["id"]) == ("v1.mac.pout_1", "U0ASHA")
    view = payloads[1]["view"]
    assert view["private_metadata"] == "v1.mac.pout_1"
    assert view["state"]["values"] == {"reason": {"reason": {"type": "plain_text_input", "value": "no"}}}
    for sent, body in clicked:
        stamp = sent["x-slack-request-timestamp"]
        assert sent["x-slack-signature"] == signature(body, stamp, bank.config.slack_signing_secret)


async def test_a_trigger_that_slack_did_not_give_opens_nothing(bank: Sandbox) -> None:
    body = {"trigger_id": "1.2.x", "view": MODAL}
    answer = await bank.http.post(
        "/slack/api/views.open", json=body, headers={"Authorization": "Bearer xoxb-test"}
    )
    assert answer.json() == {"ok": False, "error": "invalid_trigger_id"}


async def test_an_ephemeral_message_needs_somebody_who_sees_it(bank: Sandbox) -> None:
    headers = {"Authorization": "Bearer xoxb-test"}
    body = {"channel": "C1", "user": "U0EVE", "text": "no"}
    answer = await bank.http.post("/slack/api/chat.postEphemeral", json=body, headers=headers)
    assert answer.json()["ok"]
    body.pop("user")
    answer = await bank.http.post("/slack/api/chat.postEphemeral", json=body, headers=headers)
    assert answer.json()["error"] == "user_not_in_channel"
    [sent] = await bank.messages("slack")
    assert sent["body"]["user"] == "U0EVE"


async def test_ntfy_takes_text_to_a_topic_and_json_without_one(bank: Sandbox) -> None:
    await bank.http.post("/ntfy/alerts", content="held: ₹8,000".encode(), headers={"Title": "Approve?"})
    await bank.http.post("/ntfy/", json={"topic": "alerts", "message": "second"})
    assert (await bank.http.post("/ntfy/", json={"message": "no topic"})).status_code == 400
    first, second = await bank.messages("ntfy")
    assert (first["topic"], first["body"]["message"], first["body"]["title"]) == (
        "alerts",
        "held: ₹8,000",
        "Approve?",
    )
    assert second["body"]["message"] == "second"
