"""Notification on a log that was there before it: nobody is told of what is over, everybody of what is held."""

import pytest

import consumers
from consumers.vet import Reputations
from streamproc.log import failures, scripts
from streamproc.log.stream import open_log
from streamproc.log.untold import look_for_held
from tests.engine import ZONE, Engine
from tests.people import people, sent
from tests.words import ACCOUNT, Vendors, observed

POLICIES = """
policies: {bot: {require_approval_above: 100000, hold_ttl: 1h, blocked_domains: [evil.example]}}
reviewers: [asha]
"""
VENDOR = "https://vendor.example.com/"


async def test_what_is_held_is_told_and_old_alerts_and_decided_holds_are_not(
    redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(failures, "BACKOFF", scripts.Backoff(0.05, 0.1, 0.1))
    async with people() as told:
        engine = Engine(redis_url, groups=[consumers.governance(Reputations(Vendors()), zone=ZONE)])
        async with engine:
            await engine.apply(POLICIES)
            for n in range(3):
                await engine.deliver(observed(f"pout_{n}", 200_000, url=VENDOR))
            await engine.deliver(observed("pout_evil", 100, url="https://evil.example/"))
            await engine.review("pout_0", "asha", "approve", account=ACCOUNT)
            await engine.stop()
            await engine.client.delete(engine.names.timers)  # an older version made no reminders

            names = [group.name for group in engine.groups]
            await open_log(
                engine.client, partitions=1, groups=[*names, "notification"], from_end=["notification"]
            )
            assert await look_for_held(redis_url, 0, "notification") == 2
            assert await look_for_held(redis_url, 0, "notification") == 0  # once is enough
            timers = await engine.client.zrange(engine.names.timers, 0, -1)
            assert len(timers) == 2 * 4

            engine.groups = [*engine.groups, told.group(redis_url)]
            engine.start()
            for n in (1, 2):
                await engine.until(f"pout_{n}", "NotificationSent")
            messages = await told.slack()
            assert (
                sorted(message["body"]["text"] for message in messages) == ["Approve ₹2,000.00 for bot?"] * 2
            )
            assert await told.ntfy() == []
            assert sent(await engine.story("pout_1")) == [("hold", "slack")]
            assert sent(await engine.story("pout_0")) == []
