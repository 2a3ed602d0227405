"""People are told of a hold where they can decide it, of its end, and of what is alarming; each of them once."""

import asyncio
from typing import Any

import pytest
from msgspec.structs import replace

from consumers.notify import AGAIN_S
from streamproc.clients import slack
from streamproc.domain.button import APPROVE, REJECT, payout_of
from streamproc.domain.events import EntrySetAside, Event, PayoutMalformed, ReconcileMismatch
from streamproc.domain.wire import Newer, decode_events
from streamproc.log import batch, failures, opened, scripts
from streamproc.log.connection import connected
from streamproc.log.untold import untold
from tests.deadline import DEADLINE_S
from tests.engine import Engine
from tests.people import CHANNEL, SECRET, TOPIC, failed, people, sent, telling_engine, texts
from tests.words import ACCOUNT, Vendors, observed, reviewed

POLICIES = """
policies:
  bot: {daily_limit: 900000, require_approval_above: 100000, dual_approval_above: 500000, hold_ttl: 1h,
        blocked_domains: [evil.example]}
reviewers: {asha: {slack: U0ASHA}, vikram: {}}
"""
VENDOR = "https://vendor.example.com/inv/7"


@pytest.fixture(autouse=True)
def soon_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is put off is tried again at once."""
    monkeypatch.setattr(failures, "BACKOFF", scripts.Backoff(0.05, 0.1, 0.1))


async def held(engine: Engine, amount: int = 200_000, payout: str = "pout_1") -> None:
    await engine.apply(POLICIES)
    await engine.deliver(observed(payout, amount, url=VENDOR))
    assert (await engine.record(payout)).state == "held"


def buttons(message: dict[str, Any]) -> dict[str, dict[str, Any]]:
    found = [
        e for block in message["body"]["blocks"] if block["type"] == "actions" for e in block["elements"]
    ]
    return {element["action_id"]: element for element in found}


async def reject(engine: Engine) -> None:
    """Somebody rejects the hold; it is not waited for."""
    event = reviewed("pout_1", "asha", "reject", at=engine.producer.now_us(), why="no", channel="cli")
    await engine.append(ACCOUNT, event)


async def fire(engine: Engine, timer: str) -> None:
    """The hold's timer is due now; the others stay."""
    rows = await engine.client.zrange(engine.names.timers, 0, -1)
    for row in rows:
        if timer.encode() in row:
            await engine.client.zadd(engine.names.timers, {row: 0})
            async with asyncio.timeout(DEADLINE_S):
                while await engine.client.zscore(engine.names.timers, row) is not None:
                    await asyncio.sleep(0.01)
    await engine.settled()


async def test_a_hold_is_a_slack_message_with_buttons_that_name_this_payout_only(redis_url: str) -> None:
    async with people() as told, telling_engine(redis_url, told) as engine:
        await held(engine)
        (message,) = await told.slack()
        record = await engine.record("pout_1")
        assert await told.ntfy() == []
    assert message["method"] == "chat.postMessage"
    assert message["body"]["channel"] == CHANNEL
    kinds = [block["type"] for block in message["body"]["blocks"]]
    assert kinds[0] == "header"
    assert set(kinds) <= {"header", "section", "divider", "actions"}
    found = buttons(message)
    assert {payout_of(found[action]["value"], SECRET) for action in (APPROVE, REJECT)} == {"pout_1"}
    assert found[APPROVE]["confirm"]["confirm"]["text"] == "Approve"
    assert set(found) == {APPROVE, REJECT}  # every button is answered by our webhook
    shown = "\n".join(text["text"] for text in texts(message["body"]["blocks"]))
    for fact in (
        "₹2,000.00",
        "bot (claimed)",
        "vendor.example.com",
        "APPROVAL_REQUIRED",
        "console/#pout_1|Details>",
    ):
        assert fact in shown
    assert f"<!date^{record.hold_expires_at // 1_000_000}^" in shown
    assert record.notices[0].shown_in
    assert [(n.kind, n.channel, n.ref) for n in record.notices] == [
        ("hold", "slack", f"{CHANNEL}:{message['ts']}")
    ]


async def test_who_may_pay_without_asking_is_told_to_nobody(redis_url: str) -> None:
    async with people() as told, telling_engine(redis_url, told) as engine:
        await engine.apply(POLICIES)
        await engine.deliver(observed("pout_1", 50_000, url=VENDOR))
        assert (await engine.record("pout_1")).decision == "APPROVED"
        assert await told.slack() == await told.ntfy() == []
        assert sent(await engine.story("pout_1")) == []


@pytest.mark.parametrize(
    ("action", "outcome"), [("approve", "approved by asha"), ("reject", "rejected by asha")]
)
async def test_the_message_is_updated_with_the_outcome_and_has_no_buttons_any_more(
    redis_url: str, action: str, outcome: str
) -> None:
    async with people() as told, telling_engine(redis_url, told) as engine:
        await held(engine)
        await engine.review("pout_1", "asha", action, account=ACCOUNT)
        posted, updated = await told.slack_has(2)
        await engine.settled()
        story = await engine.story("pout_1")
    assert (updated["method"], updated["ts"]) == ("chat.update", posted["ts"])
    assert APPROVE not in buttons(updated)
    assert any(outcome in text["text"] for text in texts(updated["body"]["blocks"]))
    assert sent(story) == [("hold", "slack"), ("outcome", "slack")]


async def test_the_first_of_two_approvals_is_shown_and_the_buttons_stay(redis_url: str) -> None:
    async with people() as told, telling_engine(redis_url, told) as engine:
        await held(engine, 600_000)
        await engine.review("pout_1", "asha", "approve", account=ACCOUNT)
        _, updated = await told.slack_has(2)
        assert any("1 of 2 approvals, by asha" in text["text"] for text in texts(updated["body"]["blocks"]))
        assert APPROVE in buttons(updated)
        await engine.review("pout_1", "vikram", "approve", account=ACCOUNT)
        *_, last = await told.slack_has(3)
        assert APPROVE not in buttons(last)
        assert any("approved by asha, vikram" in text["text"] for text in texts(last["body"]["blocks"]))


async def test_notes_of_a_payout_made_at_the_bank_are_shown_as_plain_text_also_in_later_messages(
    redis_url: str,
) -> None:
    hostile = "*Acme* <!channel> @here <https://evil.example|bank> " * 100
    seen = observed("pout_1", 600_000, url=VENDOR)
    notes = {**seen.facts.notes, "vendor_name": hostile}
    facts = replace(seen.facts, notes=notes, narration="invoice 7", purpose="vendor bill")
    async with people() as told, telling_engine(redis_url, told) as engine:
        await engine.apply(POLICIES)
        await engine.deliver(replace(seen, facts=facts))
        await engine.review("pout_1", "asha", "approve", account=ACCOUNT)
        for message in await told.slack_has(2):
            shown = [text for text in texts(message["body"]["blocks"]) if "vendor_name" in text["text"]]
            assert [text["type"] for text in shown] == ["plain_text"]
            assert "*Acme* &lt;!channel&gt; @here" in shown[0]["text"]
            assert "…" in shown[0]["text"]
            assert "purpose: vendor bill" in shown[0]["text"]
            assert "agent_id" not in shown[0]["text"]


async def test_a_hold_that_expires_says_so_in_its_message(redis_url: str) -> None:
    async with people() as told, telling_engine(redis_url, told) as engine:
        await held(engine)
        await fire(engine, "hold_expiry")
        _, updated = await told.slack_has(2)
    assert any("nobody decided it in time" in text["text"] for text in texts(updated["body"]["blocks"]))


DOWN = [{"slack": "500"}, {"slack": "429"}, {"slack_error": "channel_not_found"}]


@pytest.mark.parametrize("how", DOWN, ids=lambda how: next(iter(how.values())))
async def test_where_slack_does_not_take_it_ntfy_gets_the_hold_with_command_and_link(
    redis_url: str, how: dict[str, str]
) -> None:
    async with people() as told, telling_engine(redis_url, told) as engine:
        await told.mood(**how)
        await held(engine)
        (push,) = await told.ntfy_has(1)
        await engine.settled()
        story = await engine.story("pout_1")
    assert push["topic"] == TOPIC
    assert push["title"] == "Approve ₹2,000.00 for bot?"
    assert push["click"] == "https://pay.example.com/console/#pout_1"
    assert "streamproc hold approve pout_1 --by NAME --reason TEXT" in push["message"]
    assert push["priority"] == 4
    assert (sent(story), failed(story)) == ([("hold", "ntfy")], [])


async def test_where_slack_does_not_answer_ntfy_gets_the_hold(
    redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "streamproc.clients.slack.open_slack.__kwdefaults__",
        {"breaker": None, "timeout_s": 0.3, "wait_s_max": None},
    )
    async with people() as told, telling_engine(redis_url, told) as engine:
        await told.mood(slack="timeout")
        await held(engine)
        await told.ntfy_has(1)


async def test_many_holds_are_told_at_slacks_pace_and_waiting_for_it_is_no_failure_of_slack(
    redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(slack, "CALLS_BURST", 1)
    async with people() as told, telling_engine(redis_url, told) as engine:
        await told.mood(slow_ms=300)
        await engine.apply(POLICIES.replace("daily_limit: 900000", "daily_limit: 9000000"))
        await engine.deliver(*(observed(f"pout_{number}", 100_001, url=VENDOR) for number in range(10)))
        assert await told.ntfy() == []
        assert len(await told.slack()) == 10


async def test_while_both_are_down_the_hold_is_there_and_counted_and_is_told_when_one_is_back(
    redis_url: str,
) -> None:
    async with people() as told, telling_engine(redis_url, told) as engine:
        await told.mood(slack="500", ntfy="500")
        await held(engine)
        async with asyncio.timeout(DEADLINE_S):
            while not (await untold(engine.client, 1)).count or not failed(await engine.story("pout_1")):
                await asyncio.sleep(0.01)
        record = await engine.record("pout_1")
        assert (record.state, record.told) == ("held", False)
        assert (await untold(engine.client, 1)).oldest_at == record.decided_at
        await told.mood(slack="ok", ntfy="ok")
        for breaker in told.breakers.values():
            breaker._open_s = 0.0  # nobody waits for it in a test
        await told.slack_has(1)
        await engine.until("pout_1", "NotificationSent")
        story = await engine.story("pout_1")
        assert (await untold(engine.client, 1)).count == 0
        assert len(await told.slack()) + len(await told.ntfy()) == 1
    assert len(sent(story)) == 1
    (problem,) = failed(story)
    assert (problem.kind, problem.given_up) == ("hold", False)
    assert "slack" in problem.problem
    assert "ntfy" in problem.problem


async def test_a_hold_that_was_over_before_anybody_could_be_told_is_given_up_with_an_event(
    redis_url: str,
) -> None:
    async with people() as told, telling_engine(redis_url, told) as engine:
        await told.mood(slack="500", ntfy="500")
        await held(engine)
        await engine.until("pout_1", "NotificationFailed")
        await engine.review("pout_1", "asha", "reject", account=ACCOUNT)
        for breaker in told.breakers.values():
            breaker._open_s = 0.0
        async with asyncio.timeout(DEADLINE_S):
            while len(failed(await engine.story("pout_1"))) < 2:
                await asyncio.sleep(0.01)
        await engine.settled()
        assert await engine.client.zcard(engine.names.retries("notification")) == 0
        assert await told.slack() == await told.ntfy() == []
        assert [one.given_up for one in failed(await engine.story("pout_1"))] == [False, True]


async def test_where_nothing_is_configured_nothing_is_sent_and_the_hold_counts_as_untold(
    redis_url: str,
) -> None:
    none = {"slack_channel_id": "", "ntfy_topic": ""}
    async with people(**none) as told, telling_engine(redis_url, told) as engine:
        assert not told.channels.any
        await held(engine)
        await engine.deliver(observed("pout_evil", 100, url="https://evil.example/x"))
        assert await engine.client.zcard(engine.names.retries("notification")) == 0
        assert (await untold(engine.client, 1)).count == 1
        await engine.review("pout_1", "asha", "reject", account=ACCOUNT)
        assert (await untold(engine.client, 1)).count == 0
        assert [e for e in await engine.story("pout_1") if type(e).__name__.startswith("Notif")] == []


async def test_what_was_told_and_committed_is_not_told_again_when_it_is_handled_again(redis_url: str) -> None:
    async with people() as told, telling_engine(redis_url, told) as engine:
        await held(engine)
        await engine.stop()
        await engine.client.execute_command("XGROUP", "SETID", engine.names.log, "notification", "0")
        engine.start()
        await engine.settled()
        assert len(await told.slack()) == 1
        assert sent(await engine.story("pout_1")) == [("hold", "slack")]


async def test_nobody_is_told_of_a_hold_that_was_over_so_long_ago_that_redis_forgot_the_payout(
    redis_url: str,
) -> None:
    """Notification was down for longer than the retention time; its entry became a dead letter."""
    async with people() as told, telling_engine(redis_url, told) as engine:
        await held(engine)
        await engine.review("pout_1", "asha", "reject", account=ACCOUNT)
        await engine.stop()
        await engine.client.delete(engine.names.payout("pout_1"))
        await engine.client.execute_command("XGROUP", "SETID", engine.names.log, "notification", "0")
        engine.start()
        await engine.settled()
        assert len(await told.slack()) == 2  # its message and the end of it, both of before
        assert await engine.client.xlen(engine.names.dead) == 0
        assert await engine.client.zcard(engine.names.retries("notification")) == 0


class SlowRoom:
    """Slack, with a moment between the message's arrival and its answer, in which anything may happen."""

    def __init__(self, room: Any, meanwhile: Any) -> None:
        self.room, self.meanwhile = room, meanwhile

    def __getattr__(self, name: str) -> Any:
        return getattr(self.room, name)

    async def ask(self, notice: Any, *, heading: str, thread: str = "") -> str:
        ref = await self.room.ask(notice, heading=heading, thread=thread)
        await self.meanwhile()
        return str(ref)


async def test_a_hold_that_is_answered_while_its_message_is_on_its_way_is_closed_at_once(
    redis_url: str,
) -> None:
    async with people() as told:
        engine: Engine

        async def answered() -> None:
            await reject(engine)
            async with asyncio.timeout(DEADLINE_S):
                while (await engine.record("pout_1")).state == "held" or not await everything_is_read():
                    await asyncio.sleep(0.01)
            # Another worker has handled the outcome already, and knew of no message.
            last = (await engine.client.xinfo_stream(engine.names.log))["last-generated-id"]
            await engine.client.xack(engine.names.log, "notification", last)

        async def everything_is_read() -> bool:
            rows = await engine.client.xinfo_groups(engine.names.log)
            return all(row["lag"] == 0 for row in rows)

        slow = SlowRoom(told.channels.slack, answered)
        told.channels = type(told.channels)(slack=slow, ntfy=told.channels.ntfy)
        engine = telling_engine(redis_url, told, workers=2)
        async with engine:
            await engine.apply(POLICIES)
            await engine.deliver(observed("pout_1", 200_000, url=VENDOR))
            posted, updated = await told.slack_has(2)
            await engine.settled()
            assert sent(await engine.story("pout_1")) == [("hold", "slack"), ("outcome", "slack")]
    assert (updated["method"], updated["ts"]) == ("chat.update", posted["ts"])
    assert APPROVE not in buttons(updated)


class LateRoom(SlowRoom):
    """Slack, which shows progress only after whatever happens meanwhile."""

    async def ask(self, notice: Any, *, heading: str, thread: str = "") -> str:
        return str(await self.room.ask(notice, heading=heading, thread=thread))

    async def progress(self, ref: str, notice: Any, *, heading: str) -> None:
        await self.meanwhile()
        await self.room.progress(ref, notice, heading=heading)


async def test_progress_that_comes_after_the_outcome_does_not_bring_the_buttons_back(redis_url: str) -> None:
    async with people() as told:
        engine: Engine

        async def approved() -> None:
            event = reviewed("pout_1", "vikram", at=engine.producer.now_us(), why="yes", channel="cli")
            await engine.append(ACCOUNT, event)
            await handled_by_another_worker()

        async def handled_by_another_worker() -> None:
            """It takes over what the first one has read beside the progress that it is showing."""
            other = batch.Handler(0, told.group(redis_url), batch.Limits())
            log, group = engine.names.log, other.group.name
            async with connected(redis_url) as client, asyncio.timeout(DEADLINE_S):
                while len(await told.slack()) < 2:
                    _, *rows = await client.xpending_range(log, group, "-", "+", 10)
                    for row in rows:
                        claim = ("XCLAIM", log, group, "another", 0, row["message_id"])
                        await other.handle(client, await client.execute_command(*claim), taken=True)

        late = LateRoom(told.channels.slack, approved)
        told.channels = type(told.channels)(slack=late, ntfy=told.channels.ntfy)
        engine = telling_engine(redis_url, told)
        async with engine:
            await held(engine, 600_000)
            await engine.review("pout_1", "asha", "approve", account=ACCOUNT)
            await engine.settled()
            *_, last = await told.slack_has(4)
            assert sent(await engine.story("pout_1")) == [("hold", "slack"), ("outcome", "slack")]
    assert APPROVE not in buttons(last)
    assert any("approved by asha, vikram" in text["text"] for text in texts(last["body"]["blocks"]))


async def test_a_message_of_a_hold_that_is_over_is_closed_in_a_minute_where_slack_failed_just_then(
    redis_url: str,
) -> None:
    async with people() as told:
        engine: Engine

        async def rejected_and_slack_fails() -> None:
            await reject(engine)
            async with asyncio.timeout(DEADLINE_S):
                while (await engine.record("pout_1")).state == "held":
                    await asyncio.sleep(0.01)
            # Another worker has handled the outcome already, and knew of no message.
            last = (await engine.client.xinfo_stream(engine.names.log))["last-generated-id"]
            await engine.client.execute_command("XGROUP", "SETID", engine.names.log, "notification", last)
            await told.mood(slack="500")

        slow = SlowRoom(told.channels.slack, rejected_and_slack_fails)
        told.channels = type(told.channels)(slack=slow, ntfy=told.channels.ntfy)
        engine = telling_engine(redis_url, told)
        async with engine:
            await engine.apply(POLICIES)
            await engine.deliver(observed("pout_1", 200_000, url=VENDOR))
            await engine.until("pout_1", "NotificationSent")
            timers = await engine.client.zrange(engine.names.timers, 0, -1, withscores=True)
            soonest_us = min(at for row, at in timers if b"hold_reminder" in row)
            assert soonest_us <= engine.producer.now_us() + AGAIN_S * 1_000_000
            await told.mood(slack="ok")
            await fire(engine, "hold_reminder")
            *_, updated = await told.slack_has(2)
    assert updated["method"] == "chat.update"
    assert APPROVE not in buttons(updated)


async def test_a_hold_that_was_answered_before_its_message_was_sent_is_not_told_as_open(
    redis_url: str,
) -> None:
    async with people() as told, telling_engine(redis_url, told) as engine:
        await engine.stop()
        both = engine.groups
        engine.groups = both[:1]
        engine.start()
        await engine.apply(POLICIES)
        await engine.append(ACCOUNT, observed("pout_1", 200_000, url=VENDOR))
        await engine.until_state("pout_1", "held")
        await engine.append(
            ACCOUNT,
            reviewed("pout_1", at=engine.producer.now_us(), why="ok", channel="cli"),
        )
        await engine.until_state("pout_1", "approved")
        await engine.stop()
        engine.groups = both
        engine.start()
        await engine.settled()
        assert await told.slack() == await told.ntfy() == []


# ---- reminder, escalation ----


async def test_a_reminder_comes_where_the_hold_was_told_and_an_escalation_elsewhere(redis_url: str) -> None:
    async with people() as told, telling_engine(redis_url, told) as engine:
        await held(engine)
        first, *_ = await told.slack()
        await fire(engine, "hold_reminder")
        _, reminder = await told.slack()
        assert reminder["body"]["thread_ts"] == first["ts"]
        assert reminder["body"]["reply_broadcast"] is True
        assert payout_of(buttons(reminder)[APPROVE]["value"], SECRET) == "pout_1"
        assert await told.ntfy() == []
        await fire(engine, "hold_escalation")
        (push,) = await told.ntfy()
        assert push["priority"] == 5
        await engine.review("pout_1", "asha", "approve", account=ACCOUNT)
        updates = await told.slack_has(2, "chat.update")
        assert {message["ts"] for message in updates} == {first["ts"], reminder["ts"]}
        await told.ntfy_has(2)
        await engine.settled()
        assert sent(await engine.story("pout_1"))[:3] == [
            ("hold", "slack"), ("reminder", "slack"), ("escalation", "ntfy"),
        ]  # fmt: skip


async def test_a_reminder_waits_for_a_later_version_where_only_that_can_read_what_the_bank_showed(
    redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with people() as told, telling_engine(redis_url, told) as engine:
        await held(engine)
        await told.slack_has(1)
        retries = engine.names.retries("notification")
        with monkeypatch.context() as earlier:
            earlier.setattr(opened, "decode_events", cannot_read_observations)
            earlier.setattr(opened, "NEWER_S", 0.1)
            reminding = asyncio.create_task(fire(engine, "hold_reminder"))
            async with asyncio.timeout(DEADLINE_S):
                while not await engine.client.zcard(retries):
                    await asyncio.sleep(0.01)
            assert len(await told.slack()) == 1
        await reminding
        assert len(await told.slack_has(2)) == 2
        assert await engine.client.xlen(engine.names.dead) == 0


def cannot_read_observations(e: bytes) -> list[Event]:
    """As an earlier version, to which the observation's version is new."""
    if b'"type":"payout.observed"' in e:
        raise Newer("event type 'payout.observed' has version 9; known here are 1 to 1")
    return decode_events(e)


async def test_nobody_is_reminded_of_a_hold_that_is_over(redis_url: str) -> None:
    async with people() as told, telling_engine(redis_url, told) as engine:
        await held(engine)
        await engine.review("pout_1", "asha", "approve", account=ACCOUNT)
        await told.slack_has(2)
        await fire(engine, "hold_reminder")
        await fire(engine, "hold_escalation")
        assert len(await told.slack()) == 2
        assert await told.ntfy() == []


@pytest.mark.parametrize("status", ["cancelled", "rejected", "failed", "processing", "processed"])
async def test_a_hold_that_the_bank_ended_by_itself_loses_its_buttons_at_once(
    redis_url: str, status: str
) -> None:
    async with people() as told, telling_engine(redis_url, told) as engine:
        await held(engine)
        await engine.deliver(
            observed("pout_1", 200_000, url=VENDOR, status=status, at=engine.producer.now_us())
        )
        _, updated = await told.slack_has(2)
    assert APPROVE not in buttons(updated)
    assert any(f"the bank says {status}" in text["text"] for text in texts(updated["body"]["blocks"]))


async def test_an_alert_does_not_wait_for_the_message_of_the_hold_that_it_ends(redis_url: str) -> None:
    async with people() as told, telling_engine(redis_url, told) as engine:
        await held(engine)
        await told.mood(slack="500")
        seen = observed("pout_1", 200_000, url=VENDOR, status="processed", at=engine.producer.now_us())
        await engine.deliver(seen)
        (push,) = await told.ntfy_has(1)
        assert "BYPASSED" in push["title"]
        await told.mood(slack="ok")
        await engine.settled()
        await fire(engine, "hold_reminder")
        _, updated = await told.slack_has(2, "chat.postMessage", "chat.update")
    assert APPROVE not in buttons(updated)


# ---- alerts, and answers to one person ----


async def test_what_is_alarming_goes_to_ntfy_and_says_what_it_is(redis_url: str) -> None:
    vendors = Vendors({"threat.example": "threat"})
    async with people() as told, telling_engine(redis_url, told, vendors=vendors) as engine:
        await engine.apply(POLICIES)
        await engine.deliver(observed("pout_risk", 100, url="https://threat.example/x"))
        await engine.deliver(observed("pout_domain", 100, url="https://evil.example/x"))
        await engine.deliver(observed("pout_limit", 900_001, url=VENDOR))
        await engine.deliver(observed("pout_nobody", 100, agent="stranger", url=VENDOR))
        await engine.freeze("agent:bot")
        await engine.deliver(observed("pout_frozen", 100, url=VENDOR))
        await engine.deliver(observed("pout_moved", 100, url=VENDOR, status="processing"))
        await engine.append(
            ACCOUNT,
            ReconcileMismatch(
                at=1, payout="", account=ACCOUNT, kind="budget", ours="1", theirs="2", subject="d"
            ),
        )
        await engine.append(
            ACCOUNT,
            PayoutMalformed(at=1, payout="pout_bad", account=ACCOUNT, source="webhook", problem="no amount"),
        )
        pushes = await told.ntfy_has(8)
        await engine.settled()
        story = await engine.story("pout_bad")
        assert await told.slack() == []
    titles = " ".join(push["title"] for push in pushes)
    for code in (
        "RISK_HIGH",
        "DOMAIN_BLOCKED",
        "LIMIT_EXCEEDED",
        "NO_POLICY",
        "FROZEN",
        "BYPASSED",
        "SET_ASIDE",
        "MISMATCH",
    ):
        assert code in titles
    assert next(push for push in pushes if "BYPASSED" in push["title"])["priority"] == 4
    assert any(type(event) is EntrySetAside for event in story)
    assert sent(story) == [("alert", "ntfy")]


class SlowTopic:
    """ntfy, with a moment between the message's arrival and its answer, in which anything may happen."""

    def __init__(self, topic: Any, meanwhile: Any) -> None:
        self.topic, self.meanwhile = topic, meanwhile

    async def publish(self, push: Any) -> str:
        ref = await self.topic.publish(push)
        await self.meanwhile()
        return str(ref)


async def test_an_alert_whose_payout_changes_while_it_is_on_its_way_is_sent_once(redis_url: str) -> None:
    async with people() as told:
        engine: Engine

        async def ended_at_the_bank() -> None:
            now_us = engine.producer.now_us()
            await engine.append(ACCOUNT, observed("pout_1", 100, url=VENDOR, status="reversed", at=now_us))
            async with asyncio.timeout(DEADLINE_S):
                while (await engine.record("pout_1")).bank_status != "reversed":
                    await asyncio.sleep(0.01)

        slow: Any = SlowTopic(told.channels.ntfy, ended_at_the_bank)
        told.channels = type(told.channels)(slack=told.channels.slack, ntfy=slow)
        engine = telling_engine(redis_url, told)
        async with engine:
            await engine.apply(POLICIES)
            await engine.deliver(observed("pout_1", 100, url=VENDOR, status="processing"))
            (push,) = await told.ntfy_has(1)
            await engine.settled()
            assert len(await told.ntfy()) == 1
            assert sent(await engine.story("pout_1")) == [("alert", "ntfy")]
    assert "BYPASSED" in push["title"]


async def test_an_alert_about_a_limit_says_it_in_rupees_and_hides_no_digit_of_it(redis_url: str) -> None:
    policies = "policies: {bot: {daily_limit: 12345678900}}"
    async with people() as told, telling_engine(redis_url, told) as engine:
        await engine.apply(policies)
        await engine.deliver(observed("pout_123456789012", 22_345_678_900, url=VENDOR))
        (push,) = await told.ntfy_has(1)
    assert "limit ₹12,34,56,789.00, used ₹0.00" in push["message"]
    assert "payout: pout_123456789012\n" in push["message"]


async def test_an_alert_goes_to_slack_where_ntfy_is_not_set_or_away(redis_url: str) -> None:
    async with people() as told, telling_engine(redis_url, told) as engine:
        await told.mood(ntfy="500")
        await engine.apply(POLICIES)
        await engine.deliver(observed("pout_1", 100, url="https://evil.example/x"))
        (message,) = await told.slack_has(1)
    assert "DOMAIN_BLOCKED" in message["body"]["text"]
    assert not buttons(message).keys() & {APPROVE, REJECT}


@pytest.mark.parametrize("by", ["asha", "slack:U0STRANGER"])
async def test_who_clicked_in_vain_is_told_so_and_nobody_else_is(redis_url: str, by: str) -> None:
    async with people() as told, telling_engine(redis_url, told) as engine:
        await held(engine)
        await engine.review("pout_1", "vikram", "reject", account=ACCOUNT)
        await told.slack_has(2)
        event = reviewed("pout_1", by, at=engine.producer.now_us(), why="late", channel="slack")
        await engine.append(ACCOUNT, event)
        (private,) = await told.slack_has(1, "chat.postEphemeral")
        await engine.settled()
        assert ("private", "slack") in sent(await engine.story("pout_1"))
    assert private["body"]["user"] == ("U0ASHA" if by == "asha" else "U0STRANGER")
    assert "does not count" in private["body"]["text"]
