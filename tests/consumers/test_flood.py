"""A storm of alerts is two messages: one at once, and one with the number when its minute is over. A storm of holds is
as many messages as holds, and no alert waits for them."""

import asyncio
from typing import Any, cast

import pytest
from prometheus_client import CollectorRegistry

import consumers
from consumers.digest import send_digests
from streamproc.clients import slack
from streamproc.domain.button import APPROVE, payout_of
from streamproc.domain.events import PayoutDecided
from streamproc.domain.wire import encode_events
from streamproc.log.connection import connect
from streamproc.log.digests import Digests
from streamproc.log.names import Names
from streamproc.log.scripts import Delivery, append_once
from streamproc.telemetry import watch
from streamproc.telemetry.exposure import snapshot
from streamproc.telemetry.metrics import Meters
from tests.people import SECRET, people, telling_engine, texts
from tests.words import ACCOUNT, NOW, observed, reviewed

STORM = 5_000


def rejected(n: int) -> PayoutDecided:
    return PayoutDecided(
        at=NOW + n, payout=f"pout_{n}", account=ACCOUNT, agent="bot", amount=250_000, decision="REJECTED",
        reason="LIMIT_EXCEEDED", reasons=["LIMIT_EXCEEDED"], findings=[], policy_version=1, bank_status="pending",
    )  # fmt: skip


async def test_five_thousand_rejections_in_a_minute_are_two_messages(redis_url: str) -> None:
    async with people() as told:
        engine = telling_engine(redis_url, told, workers=2)
        engine.groups = engine.groups[1:]
        async with engine:
            for start in range(0, STORM, 500):
                rows = [
                    Delivery((), encode_events([rejected(n)]), b'{"by":"governance"}')
                    for n in range(start, start + 500)
                ]
                await append_once(engine.client, Names(0), rows)
            await engine.settled()
            assert len(await told.ntfy()) == 1
            assert len(await told.slack()) == 0
            for name in await engine.client.zrange(engine.names.digests, 0, -1):
                await engine.client.zadd(engine.names.digests, {name: 1})
            stopping = asyncio.Event()
            tellers = [
                asyncio.create_task(send_digests(Digests(redis_url), told.channels, 1, stopping, look_s=0.01))
                for _ in range(3)
            ]
            _, digest = await told.ntfy_has(2)
            stopping.set()
            await asyncio.gather(*tellers)
            assert len(await told.ntfy()) == 2
            assert await told.slack() == []
            *_, (event,) = await engine.entries()
    assert "4999 alerts" in digest["title"]
    assert "₹1,24,97,500.00" in digest["message"]
    assert "for example pout_" in digest["message"]
    assert (type(event).__name__, event.kind, event.count) == ("NotificationSent", "digest", 4999)


async def test_a_digest_that_no_channel_takes_waits_for_the_next_lease_and_is_counted_once(
    redis_url: str,
) -> None:
    meters = Meters(CollectorRegistry())
    watch.turn_on(meters)
    async with people() as told:
        client = connect(redis_url)
        await client.xgroup_create(Names(0).log, consumers.NOTIFICATION, mkstream=True)
        from streamproc.log.digests import Alert

        due = Digests(redis_url, gather_s=0.0, lease_s=0.0)
        await due.count(0, [Alert("k", "FROZEN, agent bot", f"p{n}", 1) for n in range(3)])
        await told.mood(slack="500", ntfy="500")
        stopping = asyncio.Event()
        telling = asyncio.create_task(send_digests(due, told.channels, 1, stopping, look_s=0.01))
        for breaker in told.breakers.values():
            breaker._open_s = 0.0
        await told.mood(slack="ok", ntfy="ok")
        await told.ntfy_has(1)
        stopping.set()
        await telling
        await client.aclose()
    watch.turn_off()
    points = [p for family in snapshot(meters.registry) for p in family.points]
    [counted] = [p for p in points if p.name == "streamproc_notifications_total"]
    assert (counted.labels["kind"], counted.value) == ("digest", 1)


HELD = 60
POLICIES = """
policies: {bot: {require_approval_above: 100000, hold_ttl: 1h, rate_limit: {count: 0, window: 1m}}}
reviewers: [asha]
"""


class ClosedRoom:
    """Slack, which takes what asks for a decision only once it is opened."""

    def __init__(self, room: Any) -> None:
        self.room = room
        self.asked, self.opened = asyncio.Event(), asyncio.Event()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.room, name)

    async def ask(self, notice: Any, *, heading: str, thread: str = "") -> str:
        self.asked.set()
        await self.opened.wait()
        return str(await self.room.ask(notice, heading=heading, thread=thread))


async def test_an_alert_behind_many_holds_is_the_first_message_and_holds_are_told_in_order(
    redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(slack, "CALLS_BURST", 1_000)
    async with people(ntfy_topic="") as told:
        room = ClosedRoom(told.channels.slack)
        told.channels = type(told.channels)(slack=cast(Any, room))
        engine = telling_engine(redis_url, told)
        async with engine:
            await engine.apply(POLICIES)
            for n in range(HELD):
                await engine.append(ACCOUNT, observed(f"pout_{n}", 200_000, at=engine.producer.now_us()))
            await room.asked.wait()
            stranger = observed("pout_alert", 100, agent="stranger", at=engine.producer.now_us())
            await engine.append(ACCOUNT, stranger)
            (alert,) = await told.slack_has(1)
            assert "NO_POLICY" in alert["body"]["text"]
            answer = reviewed(
                "pout_0", "asha", "reject", at=engine.producer.now_us(), why="no", channel="cli"
            )
            await engine.append(ACCOUNT, answer)
            room.opened.set()
            await engine.until("pout_0", "PayoutDecided")
            messages = await told.slack_has(1 + HELD + 1)
            await engine.settled()
            assert len(await told.slack()) == 1 + HELD + 1
    posted = [message for message in messages if message["method"] == "chat.postMessage"][1:]
    assert [payout_of(approve_value(message), SECRET) for message in posted] == [
        f"pout_{n}" for n in range(HELD)
    ]
    (closed,) = [message for message in messages if message["method"] == "chat.update"]
    assert closed["ts"] == posted[0]["ts"]
    assert any("rejected by asha" in text["text"] for text in texts(closed["body"]["blocks"]))


def approve_value(message: dict[str, Any]) -> str:
    """What the button of a hold's message carries."""
    (actions,) = [block for block in message["body"]["blocks"] if block["type"] == "actions"]
    return next(str(one["value"]) for one in actions["elements"] if one["action_id"] == APPROVE)
