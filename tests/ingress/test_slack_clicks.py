"""What Slack's webhook asks of the system for one request, what it appends, and what it answers: without the system."""

import logging
from collections.abc import AsyncIterator, Mapping
from typing import Any

import httpx
import pytest

from streamproc.clients.slack import SlackRefused
from streamproc.domain.attribution import WHY_CHARS_MAX
from streamproc.domain.button import button_value
from streamproc.domain.events import AccessRefused, Event, ReviewSubmitted
from streamproc.errors import JobFailed, LogBroken, LogUnavailable, TryAgain
from streamproc.ingress import slack_review
from streamproc.ingress.refusals import Refusals
from streamproc.ingress.slack_payload import TRIGGER_CHARS_MAX
from streamproc.ingress.slack_review import AGE_S_MAX, IN_VAIN_S, REMEMBERED_S, Hold, SlackReview
from tests.ingress.recorder import Recorder
from tests.slack import SECRET, TRIGGER, block_actions, form, headers, signature, view_submission

VALUE = button_value("pout_1", SECRET)
APPROVE = block_actions("U0ASHA", "hold.approve", VALUE)
REJECT = block_actions("U0ASHA", "hold.reject", VALUE)
REASON = view_submission("U0ASHA", VALUE, "not ours")
CLICK_AGAIN = [
    LogUnavailable("Redis is away"), LogBroken("another log"), TryAgain("Postgres is away"),
    JobFailed("Postgres refuses"), TimeoutError(),
]  # fmt: skip


class System:
    """One held payout, and what the webhook asked for."""

    def __init__(self) -> None:
        self.hold: Hold | None = Hold("acc", 200_000, "")
        self.problem: Exception | None = None
        self.slack_says: Exception | None = None
        self.keys: dict[str, int] = {}
        self.asked: list[ReviewSubmitted] = []
        self.views: list[tuple[str, Mapping[str, Any]]] = []

    async def first_time(self, key: str, remembered_s: int) -> bool:
        is_new = key not in self.keys
        self.keys[key] = remembered_s
        return is_new

    async def find(self, answer: ReviewSubmitted) -> Hold | None:
        self.asked.append(answer)
        if self.problem is not None:
            raise self.problem
        return self.hold

    async def open_view(self, trigger: str, view: Mapping[str, Any]) -> None:
        if self.slack_says is not None:
            raise self.slack_says
        self.views.append((trigger, view))


class Webhook:
    """The webhook over such a system, and a log that keeps what it gets."""

    def __init__(self, system: System, door: Recorder, http: httpx.AsyncClient, refusals: Refusals) -> None:
        self.system, self.door, self.http, self.refusals = system, door, http, refusals

    async def post(self, payload: Any, *, away_s: float = 0.0, **changed: str) -> httpx.Response:
        body = form(payload)
        sent = headers(body, self.door.now_s + away_s)
        sent |= {name.replace("_", "-"): value for name, value in changed.items()}
        return await self.http.post("/webhooks/slack", content=body, headers=sent)

    async def refused(self) -> list[tuple[str, str, str]]:
        """Refusals in the log: subject, problem, payout."""
        await self.refusals.__aexit__(None, None, None)
        return [
            (event.subject, event.problem, event.payout_named)
            for event in self.door.events
            if type(event) is AccessRefused
        ]


@pytest.fixture
async def webhook() -> AsyncIterator[Webhook]:
    system, door = System(), Recorder()
    refusals = Refusals(door)
    await refusals.__aenter__()
    review = SlackReview(door, system, system, refusals, secret=SECRET, body_bytes_max=40_000)
    transport = httpx.ASGITransport(app=review)  # type: ignore[arg-type]
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as http:
        yield Webhook(system, door, http, refusals)


def claim(payload: Any, at_s: int) -> str:
    """The key by which a request is known again."""
    return "slack:" + signature(form(payload), str(at_s)).removeprefix("v0=")


def submitted(webhook: Webhook, action: Any, why: str) -> Event:
    return ReviewSubmitted(
        at=webhook.door.now_us(), payout="pout_1", by="slack:U0ASHA", action=action, why=why, channel="slack"
    )


@pytest.mark.parametrize(
    ("payload", "action", "why"),
    [
        (APPROVE, "approve", "approved by the button in Slack"),
        (REASON, "reject", "not ours"),
        (view_submission("U0ASHA", VALUE, "  not ours\n"), "reject", "not ours"),
        (view_submission("U0ASHA", VALUE, " " + "x" * WHY_CHARS_MAX), "reject", "x" * WHY_CHARS_MAX),
    ],
)
async def test_an_answer_is_appended_for_the_payouts_account_under_the_requests_own_key(
    webhook: Webhook, payload: Any, action: str, why: str
) -> None:
    answer = await webhook.post(payload)
    assert (answer.status_code, answer.content, answer.headers["content-type"]) == (200, b"", "text/plain")
    (append,) = webhook.door.appends
    key = claim(payload, webhook.door.now_s)
    assert (append.account, append.keys, append.events) == (
        "acc", (key,), (submitted(webhook, action, why),),
    )  # fmt: skip
    assert webhook.system.asked == list(append.events)
    # A request can come again while its signed time is valid: from that much before now until that much after.
    assert webhook.system.keys == {key: REMEMBERED_S}
    assert REMEMBERED_S > 2 * AGE_S_MAX


@pytest.mark.parametrize("reason", ["", " \n", None, "x" * (WHY_CHARS_MAX + 1)])
async def test_a_reason_that_cannot_be_taken_is_answered_as_json_or_slack_would_close_the_modal(
    webhook: Webhook, reason: str | None
) -> None:
    answer = await webhook.post(view_submission("U0ASHA", VALUE, reason))
    assert (answer.status_code, answer.headers["content-type"]) == (200, "application/json")
    assert webhook.door.appends == []


async def test_other_fields_of_the_form_and_a_trigger_of_the_greatest_length_are_taken(
    webhook: Webhook,
) -> None:
    payload = REJECT | {"trigger_id": "1" * TRIGGER_CHARS_MAX}
    body = b"other=%7B%7D&" + form(payload)
    answer = await webhook.http.post(
        "/webhooks/slack", content=body, headers=headers(body, webhook.door.now_s)
    )
    assert answer.status_code == 200
    assert [trigger for trigger, _ in webhook.system.views] == [payload["trigger_id"]]


async def test_a_click_on_reject_opens_the_modal_of_its_button_and_appends_nothing(webhook: Webhook) -> None:
    assert (await webhook.post(REJECT)).status_code == 200
    ((trigger, view),) = webhook.system.views
    assert (trigger, view["private_metadata"]) == (TRIGGER, VALUE)
    assert webhook.door.appends == []


@pytest.mark.parametrize(
    ("payload", "action", "why"),
    [
        (APPROVE, "approve", "approved by the button in Slack"),
        (REJECT, "reject", "clicked Reject; no reason was asked for, since the answer could not count then"),
        (REASON, "reject", "not ours"),
    ],
)
async def test_an_answer_that_cannot_count_is_appended_for_its_refusal_once_in_a_while_for_each_payout(
    webhook: Webhook, payload: Any, action: str, why: str
) -> None:
    webhook.system.hold = Hold("acc", 200_000, "it is over")
    assert (await webhook.post(payload)).status_code == 200
    assert webhook.door.events == [submitted(webhook, action, why)]
    assert webhook.system.views == []
    assert webhook.system.keys["in-vain:slack:U0ASHA:pout_1"] == IN_VAIN_S
    assert (await webhook.post(payload, away_s=1)).status_code == 429
    assert await webhook.refused() == [
        ("slack:U0ASHA", f"an answer that cannot count came again within {IN_VAIN_S} s", "pout_1")
    ]


async def test_answers_that_count_come_as_often_as_people_give_them(webhook: Webhook) -> None:
    assert [(await webhook.post(APPROVE, away_s=n)).status_code for n in range(3)] == [200] * 3


async def test_a_request_that_the_log_knows_is_refused_although_it_was_forgotten_elsewhere(
    webhook: Webhook,
) -> None:
    assert (await webhook.post(APPROVE)).status_code == 200
    webhook.system.keys.clear()
    assert (await webhook.post(APPROVE)).status_code == 409
    assert await webhook.refused() == [("slack:U0ASHA", "the same request came before", "pout_1")]
    assert len([event for event in webhook.door.events if type(event) is ReviewSubmitted]) == 1


@pytest.mark.parametrize(
    ("away_s", "status"), [(-AGE_S_MAX, 200), (AGE_S_MAX, 200), (-AGE_S_MAX - 1, 401), (AGE_S_MAX + 1, 401)]
)
async def test_a_signed_time_may_be_five_minutes_from_now_either_way_and_no_second_more(
    webhook: Webhook, away_s: int, status: int
) -> None:
    assert AGE_S_MAX == 300
    assert (await webhook.post(APPROVE, away_s=away_s)).status_code == status


@pytest.mark.parametrize("timestamp", ["", "soon", "-1", "1.5", "1" * 13, "\u0661"])
async def test_a_time_that_is_none_is_refused_although_it_is_signed(webhook: Webhook, timestamp: str) -> None:
    sent = timestamp.encode("latin-1", "replace").decode("latin-1")
    answer = await webhook.post(
        APPROVE, x_slack_request_timestamp=sent, x_slack_signature=signature(form(APPROVE), sent)
    )
    assert answer.status_code == 401
    assert [subject for subject, _, _ in await webhook.refused()] == [""]


@pytest.mark.parametrize(
    ("payload", "subject"), [({"type": "block_actions"}, ""), (REASON | {"view": 7}, "")]
)
async def test_a_refusal_names_whom_slack_named_if_that_could_be_read(
    webhook: Webhook, payload: Any, subject: str
) -> None:
    assert (await webhook.post(payload)).status_code == 400
    assert [(who, payout) for who, _, payout in await webhook.refused()] == [(subject, "")]


async def test_a_payout_that_is_not_known_is_named_in_the_refusal(webhook: Webhook) -> None:
    webhook.system.hold = None
    for payload in (APPROVE, REJECT, REASON):
        assert (await webhook.post(payload)).status_code == 404
    assert set(await webhook.refused()) == {
        ("slack:U0ASHA", "the payout of this button is not known here", "pout_1")
    }


@pytest.mark.parametrize("problem", CLICK_AGAIN, ids=lambda problem: type(problem).__name__)
async def test_what_cannot_be_asked_now_is_no_refusal_and_the_next_click_is_taken(
    webhook: Webhook, problem: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(slack_review, "AT_ONCE_MAX", 1)
    webhook.system.problem = problem
    for n in range(3):
        answer = await webhook.post(APPROVE, away_s=n)
        assert (answer.status_code, answer.json()["detail"]) == (
            503, "this cannot be recorded now; click again",
        )  # fmt: skip
    webhook.system.problem = None
    assert (await webhook.post(APPROVE, away_s=3)).status_code == 200
    assert await webhook.refused() == []


@pytest.mark.parametrize("problem", [SlackRefused("views.open", "expired_trigger_id"), TryAgain("no answer")])
async def test_a_modal_that_does_not_open_is_no_refusal(webhook: Webhook, problem: Exception) -> None:
    webhook.system.slack_says = problem
    answer = await webhook.post(REJECT)
    assert (answer.status_code, answer.headers["content-type"]) == (502, "application/problem+json")
    assert str(problem) in answer.json()["detail"]
    assert await webhook.refused() == []


async def test_a_refused_reviewer_is_logged_each_time_and_strangers_fill_no_log(
    webhook: Webhook, caplog: pytest.LogCaptureFixture
) -> None:
    for _ in range(5):
        await webhook.post(APPROVE, x_slack_signature="v0=" + "0" * 64)
    strangers = [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert len(strangers) == 1
    for _ in range(3):
        await webhook.post(APPROVE)
    assert len([record for record in caplog.records if "the same request came before" in record.message]) == 2


async def test_a_body_that_is_too_large_is_audited_as_a_strangers(webhook: Webhook) -> None:
    assert (await webhook.post(APPROVE | {"x": "y" * 40_000})).status_code == 413
    ((subject, problem, payout),) = await webhook.refused()
    assert (subject, payout) == ("", "")
    assert "40000 bytes" in problem
