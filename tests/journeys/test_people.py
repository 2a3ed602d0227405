"""People are told by the running system, over its processes' deaths, and its operators see of whom nobody was told."""

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from streamproc.clients.slack import CALLS_BURST
from streamproc.domain.button import APPROVE, payout_of
from streamproc.domain.events import NotificationSent
from streamproc.log.stream import Append, Producer
from tests.bank import free_port, until
from tests.journeys.system import ACCOUNT, STEP_MAX_S, System, running_system
from tests.journeys.truth import at_rest
from tests.people import CHANNEL, SECRET, TOPIC
from tests.telemetry.pages import samples, total
from tests.words import observed

METRICS = "metrics-token-of-the-test"
POLICIES = """
policies: {buyer: {require_approval_above: 100000, hold_ttl: 1h}}
reviewers: {asha: {slack: U0ASHA}}
"""


@asynccontextmanager
async def told_system(
    redis_url: str, dsn: str, *, workers: int = 1, **settings: str
) -> AsyncIterator[System]:
    """The system with the sandbox's Slack and ntfy."""
    port = free_port()
    given = {
        "slack_bot_token": "xoxb-journey",
        "slack_signing_secret": SECRET,
        "slack_channel_id": CHANNEL,
        "slack_base_url": f"http://127.0.0.1:{port}/slack/api",
        "ntfy_url": f"http://127.0.0.1:{port}/ntfy",
        "ntfy_topic": TOPIC,
    }
    sandbox = {"port": port}
    async with running_system(
        redis_url, dsn, workers=workers, sandbox=sandbox, **{**given, **settings}
    ) as system:
        await system.apply(POLICIES)
        yield system


async def slack(system: System, count: int, method: str) -> list[dict[str, Any]]:
    async def there() -> list[dict[str, Any]] | None:
        found = [one for one in await system.bank.messages("slack") if one["method"] == method]
        return found if len(found) >= count else None

    return await until(there, what=f"{count} of {method}") or []


def holds(story: list[Any]) -> list[NotificationSent]:
    return [event for event in story if type(event) is NotificationSent and event.kind == "hold"]


async def test_a_hold_is_told_approved_by_command_and_its_message_says_so(
    redis_url: str, postgres: str
) -> None:
    async with told_system(redis_url, postgres, metrics_token=METRICS) as system:
        made = await system.bank.pay(250_000, notes={"agent_id": "buyer"})
        (message,) = await slack(system, 1, "chat.postMessage")
        assert made["id"] in json.dumps(message["body"])

        code, _, err = await system.cli("hold", "approve", made["id"], "--by", "asha", "--reason", "seen")

        assert (code, err) == (0, "")
        (update,) = await slack(system, 1, "chat.update")
        assert update["ts"] == message["ts"]
        assert "approved by asha" in json.dumps(update["body"])
        await system.reaches(made["id"], "processed")
        await system.settled()
        ready = {check["name"]: check for check in (await system.api.get("/readyz")).json()["checks"]}
        assert ready["notifications"]["ok"] is True
        await assert_both_messages_are_counted(system)


@at_rest  # a process counts what it has done, so after it
async def assert_both_messages_are_counted(system: System) -> None:
    accept = {"accept": "application/openmetrics-text; version=1.0.0"}
    page = await system.api.get("/metrics", headers={"authorization": f"Bearer {METRICS}", **accept})
    found = samples(page.text)
    assert total(found, "streamproc_notifications_total", kind="hold", outcome="slack") == 1
    assert total(found, "streamproc_notifications_total", kind="outcome", outcome="slack") == 1
    assert total(found, "streamproc_holds_untold") == 0
    for channel in ("slack", "ntfy"):
        assert total(found, "streamproc_breaker_state", system=channel, state="closed") == 1


async def test_a_worker_that_dies_while_it_tells_is_followed_and_the_known_message_is_updated(
    redis_url: str, postgres: str
) -> None:
    async with told_system(redis_url, postgres, claim_idle="2s") as system:
        await system.bank.control("messaging", slow_ms=1_500)
        made = await system.bank.pay(250_000, notes={"agent_id": "buyer"})

        async def in_hand() -> bool:
            return (await system.pending())["notification"] > 0

        await until(in_hand, what="a worker tells")
        await system.kill("worker-1")
        await system.bank.control("messaging", slow_ms=0)
        await system.start("worker-2")
        await until(lambda: _told(system, made["id"]), what="the hold is told", deadline_s=60.0)
        posted = await slack(system, 1, "chat.postMessage")
        assert len(posted) <= 2  # at least once: the first may have arrived after the worker's death
        (event,) = holds(await system.story(made["id"]))
        await system.review(made["id"], by="asha", action="reject")
        (update,) = await slack(system, 1, "chat.update")
        assert f"{CHANNEL}:{update['ts']}" == event.ref
        assert update["ts"] in {one["ts"] for one in posted}
        await system.settled()
        assert len(holds(await system.story(made["id"]))) == 1


async def _told(system: System, payout: str) -> bool:
    system.check_alive()
    return bool(holds(await system.story(payout)))


async def test_operators_see_of_which_hold_nobody_could_be_told(redis_url: str, postgres: str) -> None:
    async with told_system(redis_url, postgres, slack_channel_id=CHANNEL) as system:
        await system.bank.control("messaging", slack="500", ntfy="500")
        made = await system.bank.pay(250_000, notes={"agent_id": "buyer"})

        async def bad() -> dict[str, Any] | None:
            checks = (await system.api.get("/readyz")).json()["checks"]
            line = next(check for check in checks if check["name"] == "notifications")
            return line if not line["ok"] else None

        line = await until(bad, what="readyz tells")
        assert line is not None
        assert line["detail"].startswith("1 held payout that nobody could be told of, the oldest since 20")
        assert (await system.api.get("/readyz")).status_code == 200
        await system.reaches(made["id"], "held")
        _, out, _ = await system.cli("hold", "list", "--json")
        assert [item["notified"] for item in json.loads(out)["items"]] == [False]
        _, out, _ = await system.cli("doctor", "--json")
        found = {check["name"]: check for check in json.loads(out)["checks"]}
        assert found["untold holds"]["status"] == "bad"
        await system.bank.control("messaging", slack="ok", ntfy="ok")
        await until(lambda: _told(system, made["id"]), what="the hold is told", deadline_s=60.0)
        await system.settled()
        _, out, _ = await system.cli("hold", "list", "--json")
        assert [item["notified"] for item in json.loads(out)["items"]] == [True]


FLOOD = 300
"""Holds, of which Slack takes one a second after the first ones: this test does not wait for all of them."""
FLOODED = """
policies:
  buyer: {require_approval_above: 100000, hold_ttl: 1h, rate_limit: {count: 0, window: 1m}}
  first: {blocked_domains: [evil.example]}
  second: {blocked_domains: [evil.example]}
reviewers: {asha: {slack: U0ASHA}}
"""


async def test_an_alert_overtakes_hundreds_of_holds_also_after_the_worker_was_killed_amid(
    redis_url: str, postgres: str
) -> None:
    async with told_system(redis_url, postgres, ntfy_topic="") as system:
        await system.apply(FLOODED)
        held = [f"pout_{n:03}" for n in range(FLOOD)]
        await observe(system, *held)
        await slack(system, CALLS_BURST + 3, "chat.postMessage")  # from now on holds wait for their turns
        assert await alerted(system, "first") < FLOOD / 2

        await system.kill("worker-1")
        before = len(await slack(system, 1, "chat.postMessage"))
        await system.start("worker-2")
        # The killed worker's last call may have arrived, unrecorded.
        await slack(system, before + 3, "chat.postMessage")
        assert await alerted(system, "second") < FLOOD / 2

        messages = await slack(system, 1, "chat.postMessage")
        told = [payout for message in messages if (payout := asked_about(message))]
        assert len(told) - len(set(told)) <= 1  # the one that the killed worker had in hand
        assert list(dict.fromkeys(told)) == held[: len(set(told))]
        assert sum("DOMAIN_BLOCKED" in one["body"]["text"] for one in messages) == 2  # each alert once


async def observe(system: System, *payouts: str, agent: str = "buyer", url: str | None = None) -> None:
    """The bank shows payouts that wait for approval, in this order."""
    async with Producer(system.redis_url, partitions=1, name="webhook") as producer:
        for payout in payouts:
            seen = observed(payout, 250_000, agent=agent, url=url, account=ACCOUNT, at=producer.now_us())
            await producer.append(Append(ACCOUNT, (), [seen]))


async def alerted(system: System, agent: str) -> int:
    """An agent would pay somebody who is blocked; how many messages Slack got before the alert of that."""
    await observe(system, f"pout_{agent}", agent=agent, url="https://evil.example/")

    async def there() -> list[int]:
        posted = await slack(system, 1, "chat.postMessage")
        # Not the next one about it: the bank knows no such payout, so its rejection becomes a dead letter.
        return [
            n
            for n, one in enumerate(posted)
            if f"pout_{agent}" in json.dumps(one["body"]) and "DOMAIN_BLOCKED" in one["body"]["text"]
        ]

    (place,) = await until(there, what="the alert is told", deadline_s=STEP_MAX_S)
    return place


def asked_about(message: dict[str, Any]) -> str:
    """The payout whose hold a message asks to decide, or ''."""
    buttons = [e for b in message["body"]["blocks"] if b["type"] == "actions" for e in b["elements"]]
    return next((payout_of(e["value"], SECRET) or "" for e in buttons if e["action_id"] == APPROVE), "")
