"""One Slack channel: what is posted, updated or told to one person there, and what each refusal is taken for."""

import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest

from streamproc.clients.slack import open_slack
from streamproc.clients.slack_room import PRIVATE_CHARS_MAX, REFUSED_AFTER_S, SlackRoom
from streamproc.domain.button import APPROVE, REJECT, payout_of
from streamproc.domain.notice import HoldNotice, HoldOutcome, Notice
from streamproc.domain.plain import units
from streamproc.errors import TryAgain
from tests.clients.loopback import Loopback, Script, always, loopback

SECRET = "slack_signing_secret_of_a_test"
CHANNEL, REF = "C0PAYOUTS", "C0PAYOUTS:1790000000.000100"
HOLD = HoldNotice(
    payout="pout_1", amount="₹2,000.00", agent="bot", identity="claimed", host="vendor.example", payee="",
    reasons=(("APPROVAL_REQUIRED", "the amount is high"),), policy_version=7, expires_at=1_800_000_000_000_000,
    untrusted=(), approvals="", link="https://pay.example/v1/payouts/pout_1",
)  # fmt: skip
ALERT = Notice(title="BYPASSED: bot", lines=("money moved",), urgent=True)
OVER = HoldOutcome("REJECTED", "rejected by asha")
OK = {"ok": True, "channel": "C0MOVED", "ts": "1790000001.000200", "message_ts": "1790000002.000300"}

Say = Callable[[SlackRoom], Awaitable[Any]]
SAID: dict[str, Say] = {
    "ask": lambda room: room.ask(HOLD, heading="Approve"),
    "tell": lambda room: room.tell(ALERT),
    "progress": lambda room: room.progress(REF, HOLD, heading="Approve"),
    "close": lambda room: room.close(REF, HOLD, OVER),
    "answer": lambda room: room.answer("U0ASHA", "no"),
}


@asynccontextmanager
async def opened(script: Script, secret: str = SECRET) -> AsyncIterator[tuple[SlackRoom, Loopback]]:
    async with loopback(script) as server, open_slack(server.url + "/api", "xoxb-token") as slack:
        yield SlackRoom(slack, CHANNEL, secret), server


async def said(say: Say, answer: object = OK, secret: str = SECRET) -> tuple[Any, str, dict[str, Any]]:
    """What a call came to, its method, and what Slack got."""
    async with opened(always(200, answer), secret) as (room, server):
        result = await say(room)
    (asked,) = server.asked
    return result, asked.path.removeprefix("/api/"), json.loads(asked.body)


def buttons(body: dict[str, Any]) -> dict[str, str | None]:
    """The buttons of a message, each with the payout that a click on it is about."""
    found = [e for block in body["blocks"] if block["type"] == "actions" for e in block["elements"]]
    return {element["action_id"]: payout_of(element["value"], SECRET) for element in found}


async def test_a_hold_is_posted_to_the_channel_with_buttons_for_it_and_known_by_where_slack_says_it_is() -> (
    None
):
    ref, method, body = await said(SAID["ask"])
    assert (ref, method) == ("C0MOVED:1790000001.000200", "chat.postMessage")
    assert body["channel"] == CHANNEL
    assert body["text"] == "Approve ₹2,000.00 for bot?"
    assert buttons(body) == {APPROVE: "pout_1", REJECT: "pout_1"}
    assert body.keys().isdisjoint({"thread_ts", "reply_broadcast"})


async def test_a_reminder_answers_the_first_message_and_is_seen_by_the_whole_channel_too() -> None:
    _, _, body = await said(lambda room: room.ask(HOLD, heading="Reminder: approve", thread=REF))
    assert (body["thread_ts"], body["reply_broadcast"]) == ("1790000000.000100", True)


async def test_a_reminder_of_a_message_that_slack_did_not_name_is_a_message_of_its_own() -> None:
    """Slack refuses an answer to nothing, and nobody would be reminded."""
    _, _, body = await said(lambda room: room.ask(HOLD, heading="Reminder: approve", thread="C0PAYOUTS:"))
    assert body.keys().isdisjoint({"thread_ts", "reply_broadcast"})


@pytest.mark.parametrize("say", ["ask", "progress"])
async def test_without_a_secret_there_are_no_buttons_since_no_click_could_be_verified(say: str) -> None:
    _, _, body = await said(SAID[say], secret="")
    assert buttons(body) == {}


async def test_an_alert_is_posted_without_buttons() -> None:
    ref, method, body = await said(SAID["tell"])
    assert (ref, method, body["channel"]) == ("C0MOVED:1790000001.000200", "chat.postMessage", CHANNEL)
    assert (body["text"], buttons(body)) == ("BYPASSED: bot", {})


@pytest.mark.parametrize(
    ("channel", "ts", "ref"),
    [
        (None, "1.2", f"{CHANNEL}:1.2"),
        ("c0:1", "1.2", f"{CHANNEL}:1.2"),
        ("C" * 33, "1.2", f"{CHANNEL}:1.2"),
        ("C0MOVED", None, "C0MOVED:"),
        ("C0MOVED", "1.2:3", "C0MOVED:"),
        ("C0MOVED", 1.2, "C0MOVED:"),
    ],
)
async def test_what_slack_says_of_a_message_is_believed_if_it_has_the_form_of_it(
    channel: object, ts: object, ref: str
) -> None:
    assert (await said(SAID["tell"], {"ok": True, "channel": channel, "ts": ts}))[0] == ref


@pytest.mark.parametrize(
    ("say", "text", "left"),
    [
        ("progress", "Approve ₹2,000.00 for bot?", {APPROVE: "pout_1", REJECT: "pout_1"}),
        ("close", "REJECTED: ₹2,000.00 for bot", {}),
    ],
)
async def test_a_message_is_updated_where_it_is_and_has_buttons_until_the_hold_is_over(
    say: str, text: str, left: dict[str, str]
) -> None:
    _, method, body = await said(SAID[say])
    assert method == "chat.update"
    # `mrkdwn` and the unfurling of links are for a new message alone.
    assert body.keys() == {"channel", "ts", "text", "blocks", "parse", "link_names"}
    assert (body["channel"], body["ts"], body["text"]) == (CHANNEL, "1790000000.000100", text)
    assert buttons(body) == left


async def test_a_message_that_slack_did_not_name_is_left_as_it_is() -> None:
    async with opened(always(200, OK)) as (room, server):
        await room.close("C0PAYOUTS:", HOLD, OVER)
    assert server.asked == []


@pytest.mark.parametrize(
    "error", ["message_not_found", "channel_not_found", "cant_update_message", "edit_window_closed"]
)
@pytest.mark.parametrize("say", ["progress", "close"])
async def test_a_message_that_can_never_be_changed_again_needs_nothing(say: str, error: str) -> None:
    await said(SAID[say], {"ok": False, "error": error})


@pytest.mark.parametrize("say", SAID)
async def test_a_refusal_is_tried_again_after_a_while_since_somebody_may_correct_its_cause(say: str) -> None:
    with pytest.raises(TryAgain, match="invalid_auth") as caught:
        await said(SAID[say], {"ok": False, "error": "invalid_auth"})
    assert caught.value.after_s == REFUSED_AFTER_S


async def test_an_answer_is_seen_by_one_person_and_is_plain_text_of_limited_length() -> None:
    ref, method, body = await said(lambda room: room.answer("U0ASHA", "<!here> *a*\n" + "&" * 9_000))
    assert (ref, method) == (f"{CHANNEL}:1790000002.000300", "chat.postEphemeral")
    assert body.pop("text").startswith("&lt;!here&gt; *a* &amp;")
    assert body == {
        "channel": CHANNEL, "user": "U0ASHA", "mrkdwn": False, "parse": "none", "link_names": False,
    }  # fmt: skip


async def test_an_answer_is_cut_to_its_limit() -> None:
    _, _, body = await said(lambda room: room.answer("U0ASHA", "x" * (PRIVATE_CHARS_MAX + 1)))
    assert units(body["text"]) == PRIVATE_CHARS_MAX
