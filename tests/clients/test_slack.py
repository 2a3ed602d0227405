"""Slack's Web API over a scripted server: what is sent, and what each kind of failure is called."""

import json
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from streamproc.clients.http import OutcomeUnknown
from streamproc.clients.slack import Slack, SlackRefused, open_slack
from streamproc.errors import TryAgain
from tests.clients.loopback import Loopback, Script, always, in_turn, loopback, response, silent_for

TOKEN = "xoxb-SECRET-TOKEN"
TIMEOUT_S = 20.0
"""No test waits for it: it passes at once."""
MESSAGE = {"channel": "C1", "text": "a ₹ and a \ud800"}


@asynccontextmanager
async def slack(script: Script) -> AsyncIterator[tuple[Slack, Loopback]]:
    async with (
        loopback(script) as server,
        open_slack(server.url + "/api", TOKEN, timeout_s=TIMEOUT_S) as client,
    ):
        yield client, server


async def problem_of(script: Script) -> TryAgain | SlackRefused:
    async with slack(script) as (client, _):
        with pytest.raises((TryAgain, SlackRefused)) as caught:
            await client.call("chat.postMessage", MESSAGE)
    return caught.value


async def test_a_call_is_json_with_the_token_in_a_header_and_gives_the_answer() -> None:
    async with slack(always(200, {"ok": True, "ts": "1.2"})) as (client, server):
        answer = await client.call("chat.postMessage", MESSAGE)
    (asked,) = server.asked
    assert (asked.method, asked.target) == ("POST", "/api/chat.postMessage")
    assert asked.headers["authorization"] == f"Bearer {TOKEN}"
    assert asked.headers["content-type"] == "application/json; charset=utf-8"
    assert json.loads(asked.body) == MESSAGE
    assert answer == {"ok": True, "ts": "1.2"}


async def test_a_modal_is_opened_by_its_trigger() -> None:
    async with slack(always(200, {"ok": True})) as (client, server):
        await client.open_view("1.2.x", {"type": "modal"})
    assert server.asked[0].path == "/api/views.open"
    assert json.loads(server.asked[0].body) == {"trigger_id": "1.2.x", "view": {"type": "modal"}}


@pytest.mark.parametrize("word", ["channel_not_found", "invalid_auth", "expired_trigger_id"])
async def test_what_slack_will_not_do_is_refused_in_its_own_word(word: str) -> None:
    problem = await problem_of(always(200, {"ok": False, "error": word}))
    assert isinstance(problem, SlackRefused)
    assert (problem.error, str(problem)) == (word, f"slack chat.postMessage: refused, {word}")


@pytest.mark.parametrize("status", [400, 404])
async def test_a_4xx_is_a_refusal(status: int) -> None:
    assert str(await problem_of(always(status, b"no such page"))).endswith(f"refused, http_{status}")


@pytest.mark.parametrize("error", [{}, {"error": 7}, {"error": "Not a word"}])
async def test_a_refusal_whose_reason_is_no_word_is_a_refusal_too(error: dict[str, object]) -> None:
    problem = await problem_of(always(200, {"ok": False, **error}))
    assert isinstance(problem, SlackRefused)
    assert problem.error == "no word that can be shown"


async def test_429_says_how_long_to_wait() -> None:
    problem = await problem_of(always(429, {"ok": False, "error": "ratelimited"}, Retry_After="30"))
    assert type(problem) is TryAgain
    assert problem.after_s == 30.0


@pytest.mark.parametrize(
    "word", ["ratelimited", "rate_limited", "service_unavailable", "request_timeout", "team_added_to_org"]
)
async def test_a_refusal_that_passes_is_tried_again(word: str) -> None:
    assert type(await problem_of(always(200, {"ok": False, "error": word}))) is TryAgain


@pytest.mark.parametrize(
    "script",
    [
        always(200, {"ok": False, "error": "internal_error"}),
        always(200, {"ok": False, "error": "fatal_error"}),
        always(500, b""),
        always(200, b"<html>"),
        always(200, {}),
        always(200, {"ok": "true"}),
        always(200, []),
        always(302, b"", location="https://elsewhere.example/"),
        in_turn(None),
    ],
)
async def test_where_it_may_have_been_done_that_is_said(script: Script) -> None:
    assert isinstance(await problem_of(script), OutcomeUnknown)


async def test_no_answer_in_time_is_unknown() -> None:
    assert isinstance(await problem_of(silent_for(TIMEOUT_S)), OutcomeUnknown)


async def test_five_failures_open_the_breaker_and_then_nothing_is_called() -> None:
    async with slack(always(500)) as (client, server):
        for _ in range(6):
            with pytest.raises(TryAgain):
                await client.call("auth.test", {})
        assert client.breaker.state == "open"
    assert len(server.asked) == 5


async def test_no_problem_and_no_log_line_shows_the_token_or_the_text(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with caplog.at_level(logging.DEBUG):
        said = [
            str(await problem_of(always(200, {"ok": False, "error": f"{TOKEN} a ₹"}))),
            str(await problem_of(in_turn(response(500, TOKEN.encode())))),
        ]
    assert "SECRET" not in " ".join(said) + caplog.text
    assert "₹" not in " ".join(said) + caplog.text


async def test_a_method_is_a_word_of_ours() -> None:
    async with slack(always(200, {"ok": True})) as (client, _):
        with pytest.raises(ValueError, match="no method"):
            await client.call("../admin", {})
