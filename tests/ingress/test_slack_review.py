"""A click in Slack: a genuine one is an answer, once; anything else is refused, and the refusal is in the log."""

import asyncio
import json
import logging
import time
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from streamproc.api.asgi import create_app
from streamproc.api.health import Check
from streamproc.api.webhooks import slack_operation
from streamproc.clients.slack import open_slack
from streamproc.domain.attribution import WHY_CHARS_MAX
from streamproc.domain.button import button_value
from streamproc.domain.events import AccessRefused, ReviewRefused, ReviewSubmitted
from streamproc.errors import LogUnavailable, TryAgain
from streamproc.ingress import slack_review
from streamproc.ingress.refusals import Refusals
from streamproc.ingress.slack_review import AGE_S_MAX, Hold, NotConfigured, SlackReview
from streamproc.operate.slack_holds import SiteHolds
from tests.api.declared import held_against_its_document
from tests.api.served import webhook_of
from tests.clients.loopback import Loopback, always, loopback, silent_for
from tests.deadline import DEADLINE_S
from tests.engine import Engine
from tests.ingress.recorder import Recorder
from tests.slack import SECRET, block_actions, form, headers, signature, view_submission
from tests.words import observed

POLICIES = """
policies:
  bot: {daily_limit: 10000000, require_approval_above: 100000, dual_approval_above: 500000}
reviewers:
  asha: {slack: U0ASHA}
  vikram: {slack: U0VIKRAM}
agents:
  bot: {slack: [U0BOT]}
"""
PAYOUT = "pout_1"
VALUE = button_value(PAYOUT, SECRET)
BODY_BYTES_MAX = 40_000
PATH = "/webhooks/slack"


class Slack:
    """Slack as we meet it: it posts clicks, and opens modals when asked."""

    def __init__(self, engine: Engine, http: httpx.AsyncClient, web_api: Loopback) -> None:
        self.engine, self.http, self.web_api = engine, http, web_api

    async def post(self, payload: Any, *, at: float | None = None, **changed: str | None) -> httpx.Response:
        """A payload, signed now unless told otherwise; a header set to None is left out."""
        return await self.post_body(form(payload), at=at, **changed)

    async def post_body(
        self, body: bytes, *, at: float | None = None, **changed: str | None
    ) -> httpx.Response:
        sent: dict[str, str | None] = {**headers(body, time.time() if at is None else at)}
        sent |= {name.replace("_", "-"): value for name, value in changed.items()}
        kept = {name: value for name, value in sent.items() if value is not None}
        return await self.http.post(PATH, content=body, headers=kept)

    async def click(self, user: str, action: str = "approve", value: str = VALUE) -> httpx.Response:
        return await self.post(block_actions(user, f"hold.{action}", value))

    async def events(self, kind: type[Any]) -> list[Any]:
        await self.engine.settled()
        return [event for entry in await self.engine.entries() for event in entry if type(event) is kind]

    async def audited(self) -> AccessRefused:
        """The one refusal that is in the log; it is written in the background."""
        async with asyncio.timeout(DEADLINE_S):
            while not (found := await self.events(AccessRefused)):
                await asyncio.sleep(0.01)
        [event] = found
        assert isinstance(event, AccessRefused)
        assert (event.channel, event.what) == ("slack", "POST /webhooks/slack")
        return event

    async def nothing_was_answered(self) -> bool:
        return not await self.events(ReviewSubmitted)


async def ready() -> list[Check]:
    return []


@pytest.fixture
async def slack(redis_url: str) -> AsyncIterator[Slack]:
    async with (
        Engine(redis_url) as engine,
        loopback(always(200, {"ok": True})) as web_api,
        open_slack(web_api.url + "/api", "xoxb-token", timeout_s=slack_review.MODAL_S_MAX) as modals,
        Refusals(engine.producer) as refusals,
    ):
        await engine.apply(POLICIES)
        await engine.deliver(observed(PAYOUT, 200_000))
        holds = SiteHolds(redis_url, 1, None)
        review = SlackReview(
            engine.producer, holds, modals, refusals, secret=SECRET, body_bytes_max=BODY_BYTES_MAX
        )
        app = create_app(
            webhook_of(engine.producer), body_bytes_max=BODY_BYTES_MAX, ready=ready,
            operations=[slack_operation(review)],
        )  # fmt: skip
        transport = httpx.ASGITransport(app=app)  # type: ignore[arg-type]
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as http:
            await held_against_its_document(http)
            yield Slack(engine, http, web_api)


class Away:
    """A system that cannot be asked."""

    def __init__(self, problem: Exception) -> None:
        self.problem = problem

    async def first_time(self, key: str, remembered_s: int) -> bool:
        return True

    async def find(self, answer: ReviewSubmitted) -> Hold | None:
        raise self.problem

    async def open_view(self, trigger: str, view: object) -> None:
        raise self.problem


async def asked_of_a_recorder(
    body: bytes, away: Away, **changed: str | None
) -> tuple[Recorder, httpx.Response]:
    """One request to a webhook without a system behind it, and what it appended once all is written."""
    door = Recorder()
    door.now_s = int(time.time())
    sent = {
        **headers(body, time.time()),
        **{name.replace("_", "-"): value for name, value in changed.items()},
    }
    async with Refusals(door) as refusals:
        review = SlackReview(door, away, away, refusals, secret=SECRET, body_bytes_max=BODY_BYTES_MAX)
        transport = httpx.ASGITransport(app=review)  # type: ignore[arg-type]
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as http:
            kept = {name: value for name, value in sent.items() if value is not None}
            answer = await http.post(PATH, content=body, headers=kept)
    return door, answer


# ---- what is genuine ----


def test_the_signature_is_that_of_slacks_documentation() -> None:
    body = (
        b"token=xyzz0WbapA4vBCDEFasx0q6G&team_id=T1DC2JH3J&team_domain=testteamnow&channel_id=G8PSS9T3V"
        b"&channel_name=foobar&user_id=U2CERLKJA&user_name=roadrunner&command=%2Fwebhook-collect&text="
        b"&response_url=https%3A%2F%2Fhooks.slack.com%2Fcommands%2FT1DC2JH3J%2F397700885554%2F96rGlfmibIGlgcZRskXaIFfN"
        b"&trigger_id=398738663015.47445629121.803a0bc887a14d10d2c447fce8b6703c"
    )
    expected = "v0=a2114d57b48eac39b9ad189dd8316235a7b4a8d21a10bd27519666489c69b503"
    assert (
        slack_review.signature("8f742231b10e8888abcd99yyyzzz85a5", b"1531420618", body).decode() == expected
    )
    assert signature(body, "1531420618", "8f742231b10e8888abcd99yyyzzz85a5") == expected


async def test_a_click_on_approve_approves_in_the_reviewers_name(slack: Slack) -> None:
    answer = await slack.click("U0ASHA")
    assert (answer.status_code, answer.content) == (200, b"")
    [submitted] = await slack.events(ReviewSubmitted)
    assert (submitted.payout, submitted.by, submitted.action, submitted.channel) == (
        PAYOUT,
        "slack:U0ASHA",
        "approve",
        "slack",
    )
    record = await slack.engine.record(PAYOUT)
    assert (record.decision, record.reason, record.reviews[0].by) == ("APPROVED", "REVIEW_APPROVED", "asha")


async def test_a_click_on_reject_opens_a_modal_and_its_reason_rejects(slack: Slack) -> None:
    answer = await slack.click("U0ASHA", "reject")
    assert (answer.status_code, answer.content) == (200, b"")
    assert await slack.nothing_was_answered()
    [asked] = slack.web_api.asked
    opened = json.loads(asked.body)
    assert (asked.path, opened["trigger_id"]) == ("/api/views.open", block_actions("", "", "")["trigger_id"])
    view = opened["view"]
    assert (view["type"], view["callback_id"], view["private_metadata"]) == ("modal", "hold.reject", VALUE)
    assert "pout_1, ₹2,000.00" in json.dumps(view["blocks"], ensure_ascii=False)

    answer = await slack.post(view_submission("U0ASHA", view["private_metadata"], " not ours \n at all "))
    assert (answer.status_code, answer.content) == (200, b"")
    await slack.engine.settled()
    record = await slack.engine.record(PAYOUT)
    assert (record.decision, record.reason) == ("REJECTED", "REVIEW_REJECTED")
    assert (record.reviews[0].by, record.reviews[0].why) == ("asha", "not ours   at all")


@pytest.mark.parametrize("reason", [None, "", "  \n ", "x" * (WHY_CHARS_MAX + 1)])
async def test_a_reason_that_cannot_be_taken_is_said_in_the_modal(slack: Slack, reason: str | None) -> None:
    answer = await slack.post(view_submission("U0ASHA", VALUE, reason))
    assert answer.status_code == 200
    said = answer.json()
    assert (said["response_action"], list(said["errors"])) == ("errors", ["reason"])
    assert f"1 to {WHY_CHARS_MAX}" in said["errors"]["reason"]
    assert await slack.nothing_was_answered()


async def test_the_longest_reason_is_taken(slack: Slack) -> None:
    answer = await slack.post(view_submission("U0ASHA", VALUE, "x" * WHY_CHARS_MAX))
    assert (answer.status_code, answer.content) == (200, b"")
    await slack.engine.settled()
    assert (await slack.engine.record(PAYOUT)).decision == "REJECTED"


@pytest.mark.parametrize(
    "payload",
    [
        block_actions("U0ASHA", "open.link", "x"),
        block_actions("U0ASHA", "hold.approve", VALUE, type="message_action"),
        view_submission("U0ASHA", VALUE, "no", type="view_closed"),
        view_submission("U0ASHA", VALUE, "no") | {"view": {"callback_id": "somebody.elses"}},
    ],
)
async def test_what_is_not_for_us_is_acknowledged_and_changes_nothing(slack: Slack, payload: Any) -> None:
    assert (await slack.post(payload)).status_code == 200
    assert await slack.nothing_was_answered()


# ---- who may not ----


@pytest.mark.parametrize("action", ["approve", "reject"])
@pytest.mark.parametrize(
    ("user", "problem"),
    [
        ("U0EVE", "Slack user U0EVE is not in the list of reviewers"),
        ("U0BOT", "Slack user U0BOT is the agent bot's own account, and an agent never reviews"),
    ],
)
async def test_an_unknown_user_and_the_agents_account_are_refused_by_the_review_stage_without_a_modal(
    slack: Slack, user: str, problem: str, action: str
) -> None:
    assert (await slack.click(user, action)).status_code == 200
    [refused] = await slack.events(ReviewRefused)
    assert (refused.by, refused.problem, refused.channel) == (f"slack:{user}", problem, "slack")
    assert slack.web_api.asked == []
    assert (await slack.engine.record(PAYOUT)).state == "held"


async def test_who_is_taken_from_the_list_while_the_modal_is_open_is_refused(slack: Slack) -> None:
    await slack.click("U0ASHA", "reject")
    await slack.engine.apply("reviewers: {vikram: {slack: U0VIKRAM}}")
    assert (await slack.post(view_submission("U0ASHA", VALUE, "no"))).status_code == 200
    [refused] = await slack.events(ReviewRefused)
    assert refused.problem == "Slack user U0ASHA is not in the list of reviewers"


async def test_an_answer_that_cannot_count_fills_no_log(slack: Slack) -> None:
    answers = []
    for n in range(6):
        payload = block_actions("U0EVE", "hold.approve", VALUE, trigger_id=f"{n}.{n}.x")
        answers.append(await slack.post(payload))
    assert [answer.status_code for answer in answers] == [200, 429, 429, 429, 429, 429]
    assert len(await slack.events(ReviewRefused)) == 1
    assert (await slack.audited()).subject == "slack:U0EVE"


async def test_who_approved_already_is_told_so_and_needs_another(slack: Slack) -> None:
    await slack.engine.deliver(observed("pout_2", 500_001))
    value = button_value("pout_2", SECRET)
    await slack.click("U0ASHA", value=value)
    await slack.engine.settled()
    await slack.post(block_actions("U0ASHA", "hold.approve", value, trigger_id="2.2.x"))
    [refused] = await slack.events(ReviewRefused)
    assert (refused.by, refused.problem) == (
        "asha",
        "asha has approved already; another reviewer must approve too",
    )
    await slack.click("U0VIKRAM", value=value)
    await slack.engine.settled()
    assert (await slack.engine.record("pout_2")).decision == "APPROVED"


async def test_a_button_of_a_hold_that_is_over_tells_who_decided_it(slack: Slack) -> None:
    await slack.click("U0ASHA")
    await slack.engine.settled()
    assert (await slack.click("U0VIKRAM", "reject")).status_code == 200
    [refused] = await slack.events(ReviewRefused)
    assert refused.problem.startswith("already APPROVED by asha at ")
    assert slack.web_api.asked == []


# ---- what is not genuine ----


async def test_a_wrong_signature_is_refused_and_audited(slack: Slack) -> None:
    body = form(block_actions("U0ASHA", "hold.approve", VALUE))
    answer = await slack.post_body(body, x_slack_signature=signature(body, str(int(time.time())), "other"))
    assert answer.status_code == 401
    event = await slack.audited()
    assert (event.subject, event.problem) == (
        "",
        "x-slack-signature is missing or is not this request's",
    )
    assert await slack.nothing_was_answered()


@pytest.mark.parametrize(
    "changed",
    [
        {"x_slack_signature": None},
        {"x_slack_request_timestamp": None},
        {"x_slack_signature": "v0="},
        {"x_slack_signature": "v1=" + "0" * 64},
        {"x_slack_signature": "v0=" + "0" * 64},
        {"x_slack_request_timestamp": "soon"},
        {"x_slack_request_timestamp": "-1"},
        {"x_slack_request_timestamp": "9" * 40},
    ],
)
async def test_missing_and_mended_headers_are_refused_and_audited(changed: dict[str, str | None]) -> None:
    body = form(block_actions("U0ASHA", "hold.approve", VALUE))
    nothing = Away(AssertionError("nothing may be looked up"))
    door, answer = await asked_of_a_recorder(body, nothing, **changed)
    assert answer.status_code == 401
    assert [type(event) for event in door.events] == [AccessRefused]


async def test_a_body_that_was_changed_is_refused(slack: Slack) -> None:
    body = form(block_actions("U0ASHA", "hold.approve", VALUE))
    sent = headers(body, time.time())
    answer = await slack.http.post(PATH, content=body.replace(b"U0ASHA", b"U0EVE0"), headers=sent)
    assert answer.status_code == 401


@pytest.mark.parametrize("away_s", [-AGE_S_MAX - 5, AGE_S_MAX + 5, -86_400])
async def test_an_old_or_future_request_is_refused_although_it_is_signed(slack: Slack, away_s: int) -> None:
    answer = await slack.post(block_actions("U0ASHA", "hold.approve", VALUE), at=time.time() + away_s)
    assert answer.status_code == 401
    assert (await slack.audited()).problem == "x-slack-request-timestamp is more than 300 s from now"
    assert await slack.nothing_was_answered()


@pytest.mark.parametrize("away_s", [-AGE_S_MAX + 20, AGE_S_MAX - 20])
async def test_a_request_within_five_minutes_passes(slack: Slack, away_s: int) -> None:
    answer = await slack.post(block_actions("U0ASHA", "hold.approve", VALUE), at=time.time() + away_s)
    assert answer.status_code == 200


@pytest.mark.parametrize(
    "payload",
    [
        block_actions("U0ASHA", "hold.approve", VALUE),
        block_actions("U0ASHA", "hold.reject", VALUE),
        view_submission("U0ASHA", VALUE, "not ours"),
    ],
)
async def test_the_same_request_again_is_refused_and_audited(slack: Slack, payload: Any) -> None:
    body, at = form(payload), time.time()
    answers = [await slack.post_body(body, at=at) for _ in range(3)]
    assert [answer.status_code for answer in answers] == [200, 409, 409]
    event = await slack.audited()
    assert (event.subject, event.problem) == ("slack:U0ASHA", "the same request came before")
    assert len(await slack.events(ReviewSubmitted)) + len(slack.web_api.asked) == 1


async def test_the_same_request_twenty_times_at_one_moment_is_one_answer(slack: Slack) -> None:
    body, at = form(block_actions("U0ASHA", "hold.approve", VALUE)), time.time()
    answers = await asyncio.gather(*(slack.post_body(body, at=at) for _ in range(20)))
    assert sorted(answer.status_code for answer in answers) == [200] + [409] * 19
    assert len(await slack.events(ReviewSubmitted)) == 1


@pytest.mark.parametrize(
    "payload",
    [
        block_actions("U0ASHA", "hold.approve", VALUE.replace(PAYOUT, "pout_2")),
        block_actions("U0ASHA", "hold.reject", VALUE.replace(PAYOUT, "pout_2")),
        view_submission("U0ASHA", VALUE.replace(PAYOUT, "pout_2"), "no"),
        view_submission("U0ASHA", VALUE.replace(PAYOUT, "pout_2"), ""),
        block_actions("U0ASHA", "hold.approve", "pout_2"),
    ],
)
async def test_a_changed_payout_is_refused_and_audited_although_slack_signed_it(
    slack: Slack, payload: Any
) -> None:
    await slack.engine.deliver(observed("pout_2", 200_000))
    assert (await slack.post(payload)).status_code == 403
    event = await slack.audited()
    assert (event.subject, event.payout_named) == ("slack:U0ASHA", "pout_2")
    assert event.problem == "this is not a button of ours: its payout was changed"
    assert await slack.nothing_was_answered()
    assert slack.web_api.asked == []


async def test_a_payout_that_nobody_knows_is_refused_and_audited(slack: Slack) -> None:
    assert (await slack.click("U0ASHA", value=button_value("pout_gone", SECRET))).status_code == 404
    assert (await slack.audited()).payout_named == "pout_gone"


# ---- hostile shapes, signed all the same ----

CLICK = block_actions("U0ASHA", "hold.approve", VALUE)


def without(payload: dict[str, Any], name: str) -> dict[str, Any]:
    return {key: value for key, value in payload.items() if key != name}


def action(**changed: Any) -> dict[str, Any]:
    return CLICK | {"actions": [CLICK["actions"][0] | changed]}


HOSTILE: dict[str, bytes] = {
    "empty": b"",
    "no form": b"\x00\xff\xfe",
    "no payload": b"other=1",
    "not ASCII": form(CLICK).replace(b"somebody", "sömebody".encode()),
    "under another name": form(CLICK).replace(b"payload=", b"other="),
    "a blank one too": b"payload=&" + form(CLICK),
    "two payloads": form(CLICK) + b"&" + form(CLICK),
    "many fields": b"&".join(b"a=1" for _ in range(100)) + b"&" + form(CLICK),
    "not JSON": form("{"),
    "wrong UTF-8": b"payload=%ff%fe",
    "wrong UTF-8 in a text": form(CLICK).replace(b"somebody", b"some%ffbody"),
    "a list": form([]),
    "a number": form("1e999"),
    "null": form("null"),
    "NaN": form("NaN"),
    "deep": form("[" * 5_000 + "]" * 5_000),
    "deep in a field": form(json.dumps(CLICK)[:-1] + ',"x":' + "[" * 60 + "]" * 60 + "}"),
    "huge number": form('{"type": ' + "9" * 5_000 + "}"),
    "no type": form(without(CLICK, "type")),
    "type is a list": form(CLICK | {"type": ["block_actions"]}),
    "no user": form(without(CLICK, "user")),
    "user is text": form(CLICK | {"user": "U0ASHA"}),
    "user id is a number": form(CLICK | {"user": {"id": 7}}),
    "user id is no id": form(CLICK | {"user": {"id": "U0ASHA\nU0VIKRAM"}}),
    "user id is a surrogate": form(CLICK | {"user": {"id": "\ud800"}}),
    "user id is huge": form(CLICK | {"user": {"id": "U" * 10_000}}),
    "no actions": form(without(CLICK, "actions")),
    "empty actions": form(CLICK | {"actions": []}),
    "two actions": form(CLICK | {"actions": CLICK["actions"] * 2}),
    "actions is an object": form(CLICK | {"actions": {"0": CLICK["actions"][0]}}),
    "action is text": form(CLICK | {"actions": ["hold.approve"]}),
    "value is a number": form(action(value=7)),
    "value is null": form(action(value=None)),
    "value is huge": form(action(value="v1." + "a" * 9_000)),
    "no trigger": form(without(block_actions("U0ASHA", "hold.reject", VALUE), "trigger_id")),
    "trigger is huge": form(block_actions("U0ASHA", "hold.reject", VALUE, trigger_id="1" * 9_000)),
    "no view": form(without(view_submission("U0ASHA", VALUE, "no"), "view")),
    "no state": form(view_submission("U0ASHA", VALUE, "no", view={"callback_id": "hold.reject"})),
    "reason is a list": form(view_submission("U0ASHA", VALUE, ["no"])),
}


@pytest.mark.parametrize("body", HOSTILE.values(), ids=HOSTILE.keys())
async def test_a_hostile_shape_is_refused_and_audited_and_never_a_500(body: bytes) -> None:
    door, answer = await asked_of_a_recorder(body, Away(AssertionError("nothing may be looked up")))
    assert answer.status_code == 400
    assert answer.headers["content-type"] == "application/problem+json"
    [event] = door.events
    assert isinstance(event, AccessRefused)
    assert event.problem.startswith("signed, but it cannot be read: ")


async def test_a_value_that_is_a_surrogate_is_no_button_of_ours(slack: Slack) -> None:
    assert (await slack.post(action(value="\ud800"))).status_code == 403
    await slack.audited()


async def test_a_reason_with_surrogates_and_controls_is_taken_clean(slack: Slack) -> None:
    answer = await slack.post(view_submission("U0ASHA", VALUE, "no \ud800\0 <!channel>"))
    assert answer.status_code == 200
    [submitted] = await slack.events(ReviewSubmitted)
    assert submitted.why == "no \ufffd\ufffd <!channel>"


async def test_a_body_over_the_limit_is_refused_and_audited(slack: Slack) -> None:
    answer = await slack.post(CLICK | {"x": "y" * BODY_BYTES_MAX})
    assert answer.status_code == 413
    assert (await slack.audited()).problem == f"the body is over {BODY_BYTES_MAX} bytes"


async def test_only_post_is_answered(slack: Slack) -> None:
    answer = await slack.http.get(PATH)
    assert (answer.status_code, answer.headers["allow"]) == (405, "POST")


# ---- what is away ----


async def test_a_modal_that_slack_does_not_open_is_an_error_in_slack(slack: Slack) -> None:
    slack.web_api.script = always(200, {"ok": False, "error": "expired_trigger_id"})
    answer = await slack.click("U0ASHA", "reject")
    assert answer.status_code == 502
    assert "expired_trigger_id" in answer.json()["detail"]


async def test_a_slack_that_hangs_is_not_waited_for(slack: Slack) -> None:
    slack.web_api.script = silent_for(slack_review.MODAL_S_MAX)
    assert (await slack.click("U0ASHA", "reject")).status_code == 502


@pytest.mark.parametrize(
    "problem", [LogUnavailable("Redis is away"), TryAgain("Postgres is away"), TimeoutError()]
)
async def test_while_redis_or_the_archive_is_away_nothing_is_pretended(problem: Exception) -> None:
    door, answer = await asked_of_a_recorder(form(CLICK), Away(problem))
    assert answer.status_code == 503
    assert "click again" in answer.json()["detail"]
    assert door.events == []


class Slow(Away):
    """A system that takes its time."""

    async def find(self, answer: ReviewSubmitted) -> Hold | None:
        await asyncio.get_running_loop().create_future()
        return None


async def test_more_requests_than_are_taken_at_once_are_refused_and_a_slow_system_is_not_waited_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(slack_review, "AT_ONCE_MAX", 3)
    monkeypatch.setattr(slack_review, "ANSWER_S_MAX", 0.5)
    door, slow = Recorder(), Slow(AssertionError("it never answers"))
    door.now_s = int(time.time())
    async with Refusals(door) as refusals:
        review = SlackReview(door, slow, slow, refusals, secret=SECRET, body_bytes_max=BODY_BYTES_MAX)
        transport = httpx.ASGITransport(app=review)  # type: ignore[arg-type]
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as http:
            body = form(CLICK)
            posts = [http.post(PATH, content=body, headers=headers(body, time.time())) for _ in range(5)]
            answers = await asyncio.gather(*posts)
    details = sorted(answer.json()["detail"] for answer in answers)
    assert {answer.status_code for answer in answers} == {503}
    assert details[:2] == ["3 requests are in hand, the limit is 3"] * 2
    assert all("click again" in detail for detail in details[2:])


async def test_without_a_signing_secret_it_says_so() -> None:
    transport = httpx.ASGITransport(app=NotConfigured())  # type: ignore[arg-type]
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as http:
        answer = await http.post(PATH, content=form(CLICK))
    assert answer.status_code == 503
    assert "STREAMPROC_SLACK_SIGNING_SECRET is not set" in answer.json()["detail"]


async def test_no_log_line_shows_what_was_sent(slack: Slack, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG):
        await slack.post(view_submission("U0ASHA", VALUE, "PRIVATE-REASON"))
        await slack.post(view_submission("U0ASHA", VALUE.replace(PAYOUT, "pout_2"), "PRIVATE-REASON"))
        await slack.post_body(form("PRIVATE-REASON"))
        await slack.post(CLICK, x_slack_signature="v0=PRIVATE-REASON")
        await slack.engine.settled()
    ours = [record.getMessage() for record in caplog.records if record.name.startswith("streamproc")]
    assert ours
    assert "PRIVATE-REASON" not in " ".join(ours)
    assert SECRET not in caplog.text
