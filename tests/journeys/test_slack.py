"""Slack from click to bank, with every role a process: and the end of a hold that nobody answers, across midnight."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

from streamproc.domain.button import button_value
from streamproc.domain.events import AccessRefused, ReviewRefused
from streamproc.log.stream import Append, Producer
from tests.bank import free_port, until
from tests.journeys.system import ACCOUNT, System, running_system
from tests.words import NOON_ZONE, observed

SIGNING_SECRET = "journey_signing_secret"  # of a simulator
TOKEN = "xoxb-journey"  # of a simulator
POLICIES = """
policies:
  bot: {daily_limit: 1_000_000, require_approval_above: 100_000}
reviewers:
  asha: {slack: U0ASHA}
"""


@asynccontextmanager
async def slack_system(redis_url: str, dsn: str, **settings: Any) -> AsyncIterator[System]:
    """The system with the sandbox's Slack, whose port must be known before the roles start."""
    port = free_port()
    slack = {
        "slack_bot_token": TOKEN,
        "slack_signing_secret": SIGNING_SECRET,
        "slack_channel_id": "C0HOLDS",
        "slack_base_url": f"http://127.0.0.1:{port}/slack/api",
    }
    sandbox = {"port": port, "slack_token": TOKEN, "slack_signing_secret": SIGNING_SECRET}
    async with running_system(redis_url, dsn, sandbox=sandbox, **slack, **settings) as system:
        yield system


async def shown(system: System, payout: str) -> str:
    """A hold's message in the sandbox's Slack; its ts."""
    elements = [
        {
            "type": "button",
            "action_id": f"hold.{action}",
            "text": {"type": "plain_text", "text": action},
            "value": button_value(payout, SIGNING_SECRET),
        }
        for action in ("approve", "reject")
    ]
    blocks = [{"type": "actions", "block_id": "answer", "elements": elements}]
    message = {"channel": "C0HOLDS", "text": "held", "blocks": blocks}
    headers = {"Authorization": f"Bearer {TOKEN}"}
    answer = await system.bank.http.post("/slack/api/chat.postMessage", json=message, headers=headers)
    ts: str = answer.json()["ts"]
    return ts


async def click(system: System, user: str, ts: str, action: str, **more: Any) -> dict[str, Any]:
    url = f"{system.api.base_url}".rstrip("/") + "/webhooks/slack"
    body = {"user": user, "ts": ts, "action_id": f"hold.{action}", "url": url, **more}
    said: dict[str, Any] = await system.bank.control("slack/click", **body)
    return said


async def asked_why(system: System, user: str, payout: str) -> dict[str, Any]:
    """The form for the reason that a click on Reject opens. Slack shows an error after 3 s, of which a busy machine may
    need more for its part and ours; then a person clicks again, and so do we."""
    ts = await shown(system, payout)

    async def opened() -> dict[str, Any] | None:
        said = await click(system, user, ts, "reject")
        assert said["status"] in (200, 502, 503, None), said
        return said if said["status"] == 200 else None

    return await until(opened, what="the form for the reason is open")


async def test_people_decide_holds_by_clicking_in_slack(redis_url: str, postgres: str) -> None:
    async with slack_system(redis_url, postgres) as system:
        await system.apply(POLICIES)
        yes, no = [await system.bank.pay(200_000, notes={"agent_id": "bot"}) for _ in range(2)]
        for payout in (yes, no):
            await system.reaches(payout["id"], "held")

        ts = await shown(system, yes["id"])
        assert (await click(system, "U0EVE", ts, "approve"))["status"] == 200
        assert (await click(system, "U0ASHA", ts, "approve", age_s=-400))["status"] == 401
        forged = button_value(no["id"], "somebody elses secret")
        assert (await click(system, "U0ASHA", ts, "approve", value=forged))["status"] == 403
        assert (await click(system, "U0ASHA", ts, "approve"))["status"] == 200
        assert (await system.reaches(yes["id"], "processed")).reviews[0].by == "asha"

        said = await asked_why(system, "U0ASHA", no["id"])
        url = f"{system.api.base_url}".rstrip("/") + "/webhooks/slack"
        submit = {"user": "U0ASHA", "view": said["view"], "values": {"reason": "not ours"}, "url": url}
        assert (await system.bank.control("slack/submit", **submit))["status"] == 200
        record = await system.reaches(no["id"], "rejected")
        assert (record.reason, record.reviews[0].why) == ("REVIEW_REJECTED", "not ours")
        await system.bank.reaches(no["id"], "rejected")

        events = await system.events()
        [refused] = [event for event in events if isinstance(event, ReviewRefused)]
        assert refused.problem == "Slack user U0EVE is not in the list of reviewers"
        audited = {event.problem for event in events if isinstance(event, AccessRefused)}
        assert audited == {
            "x-slack-request-timestamp is more than 300 s from now",
            "this is not a button of ours: its payout was changed",
        }
        await system.settled()
        code, out, _ = await system.cli("audit", "list", "--kind", "alert", "--limit", "100")
        assert code == 0
        assert "refused by slack" in out
        assert await system.effects(yes["id"]) == ["payout.approve"]
        assert await system.effects(no["id"]) == ["payout.reject"]


async def budgets(system: System) -> dict[str, tuple[int, int]]:
    """Reserved and committed of each day, as the view has it; the counters in Redis must say the same."""
    rows = await system.pool.fetch(
        "SELECT window_name, reserved, committed FROM budgets WHERE scope = 'agent:bot' AND window_name ~ $1",
        r"^\d{4}-\d\d-\d\d$",
    )
    found = {row["window_name"]: (row["reserved"], row["committed"]) for row in rows}
    for day, (reserved, committed) in found.items():
        counter = await system.redis.hmget(system.names.budget("agent:bot", day), "r", "c")
        assert tuple(int(value or 0) for value in counter) == (reserved, committed)
    return found


async def test_an_expiry_gives_the_budget_back_to_the_day_it_was_charged_to_across_midnight_and_a_restart(
    redis_url: str, postgres: str
) -> None:
    """The hold is of a payout received right before the last midnight; its timer is moved to now, as time would."""
    now = datetime.now(ZoneInfo(NOON_ZONE))
    midnight = now.replace(hour=0, minute=0, second=0, microsecond=0)
    received = midnight - timedelta(microseconds=1)
    yesterday, today = f"{received:%Y-%m-%d}", f"{now:%Y-%m-%d}"
    async with running_system(redis_url, postgres, poll_interval="1h") as system:
        await system.apply(POLICIES)
        held = observed(
            "pout_held00000001",
            300_000,
            at=round(received.timestamp() * 1_000_000) - 1,
            account=ACCOUNT,
        )
        async with Producer(redis_url, partitions=1, name="test") as producer:
            await producer.append(Append(ACCOUNT, ("test:held",), (held,)))
        await system.reaches(held.payout, "held")
        other = await system.bank.pay(50_000, notes={"agent_id": "bot"})
        await system.reaches(other["id"], "processed")
        await system.settled()
        assert await budgets(system) == {yesterday: (300_000, 0), today: (0, 50_000)}

        for name in list(system.roles):
            await system.kill(name)
        timers = await system.redis.zrange(system.names.timers, 0, -1)
        [timer] = [timer for timer in timers if b'"hold_expiry"' in timer]
        await system.redis.zadd(system.names.timers, {timer: 0})
        for name in ("serve", "projector", "worker-1"):
            await system.start(name)

        record = await system.reaches(held.payout, "rejected")
        await system.settled()
        assert record.reason == "HOLD_EXPIRED"
        assert await budgets(system) == {yesterday: (0, 0), today: (0, 50_000)}
        again = await system.bank.pay(100_000, notes={"agent_id": "bot"})
        await system.reaches(again["id"], "processed")
        await system.settled()
        assert await budgets(system) == {yesterday: (0, 0), today: (0, 150_000)}
