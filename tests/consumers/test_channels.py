"""Which channel tells people what, in which words, and which messages are changed when a hold goes on or ends."""

import pytest
from msgspec.structs import replace

from consumers import channels as channels_module
from consumers.channels import (
    PRIORITY_LOW,
    UNDELIVERABLE_AFTER_S_MAX,
    Channels,
    Undeliverable,
    alert_message,
    close_messages,
    deliver,
    hold_message,
    notice_message,
    notice_of,
    show_progress,
)
from streamproc.clients.limiter import NotItsTurn
from streamproc.clients.ntfy import PRIORITY_DEFAULT, PRIORITY_HIGH, PRIORITY_MAX
from streamproc.domain.alerts import Alarm
from streamproc.domain.events import NotificationSent
from streamproc.domain.notice import Notice, outcome_of
from streamproc.domain.notified import NoticeKind
from streamproc.domain.payouts import PayoutRecord
from streamproc.domain.record import HoldMessage as Told
from streamproc.domain.record import Review
from streamproc.domain.shown import moment
from streamproc.errors import TryAgain
from streamproc.log.work import Work
from tests.consumers.listeners import SHOWN_IN, People, ctx, held, rejected, told
from tests.words import ACCOUNT, NOW, observed

IN_SLACK, IN_NTFY = told("hold"), told("hold", "ntfy", "n1")
APPROVED = Review(by="asha", action="approve", why="ok", channel="cli", at=NOW)


def work_of(record: PayoutRecord) -> Work:
    return Work(b"1790000000000-9", [], record.payout, record=record)


def recorded(work: Work) -> list[tuple[str, str, str]]:
    """What was recorded of messages: kind, channel, ref."""
    return [(e.kind, e.channel, e.ref) for e in work.out if type(e) is NotificationSent]


# ---- by which channel ----


@pytest.mark.parametrize(
    ("kind", "notices", "first"),
    [
        ("hold", [], "slack"),
        ("reminder", [IN_SLACK], "slack"),
        ("reminder", [IN_NTFY], "ntfy"),
        ("reminder", [told("outcome", "ntfy", "n0"), IN_SLACK], "slack"),
        ("escalation", [IN_SLACK], "ntfy"),
        ("escalation", [IN_NTFY], "slack"),
    ],
)
async def test_a_reminder_goes_where_people_were_told_and_an_escalation_elsewhere(
    kind: NoticeKind, notices: list[Told], first: str
) -> None:
    people = People()
    letter = await hold_message(people.channels, held(*notices), kind, ctx(), "")
    second = "ntfy" if first == "slack" else "slack"
    assert [channel for channel, _ in letter.ways] == [first, second]
    assert await deliver(letter) == (first, "ref-1")
    assert people.heard == (["ask"] if first == "slack" else ["publish"])


@pytest.mark.parametrize(("slack", "ntfy"), [(True, False), (False, True)])
@pytest.mark.parametrize("kind", ["hold", "reminder", "escalation"])
async def test_where_one_channel_is_configured_it_gets_everything(
    slack: bool, ntfy: bool, kind: NoticeKind
) -> None:
    people = People(slack=slack, ntfy=ntfy)
    only = "slack" if slack else "ntfy"
    assert people.channels.any
    for letter in (
        await hold_message(people.channels, held(IN_SLACK), kind, ctx(), ""),
        notice_message(people.channels, Notice("a title", ("a line",))),
    ):
        assert [channel for channel, _ in letter.ways] == [only]
        assert (await deliver(letter))[0] == only


async def test_a_channel_that_does_not_take_it_leaves_it_to_the_other() -> None:
    people = People()
    people.room.problem = TryAgain("slack is away")
    letter = await hold_message(people.channels, held(), "hold", ctx(), "")
    assert await deliver(letter) == ("ntfy", "ref-1")


async def test_a_hold_waits_for_its_turn_at_a_channel_that_works_and_an_alert_goes_to_the_other() -> None:
    """From some eight notifiers on a turn at Slack was too far away, and holds went where there are no buttons."""
    people = People()
    people.room.problem = people.topic.problem = NotItsTurn("31 calls wait", after_s=3.0)
    hold = await hold_message(people.channels, held(), "hold", ctx(), "")
    with pytest.raises(NotItsTurn):
        await deliver(hold)
    people.room.problem = None
    assert (await deliver(notice_message(people.channels, Notice("a title", ("a line",)))))[0] == "slack"


async def test_a_hold_that_the_first_channel_does_not_take_is_undeliverable_where_the_other_has_no_turn() -> (
    None
):
    people = People()
    people.room.problem, people.topic.problem = TryAgain("slack is away"), NotItsTurn("31 calls wait")
    with pytest.raises(Undeliverable, match="slack is away; 31 calls wait"):
        await deliver(await hold_message(people.channels, held(), "hold", ctx(), ""))


async def test_where_none_takes_it_the_problem_has_what_each_said_and_the_shortest_wait() -> None:
    people = People()
    people.are_away(slack_s=5.0, ntfy_s=7.0)
    with pytest.raises(Undeliverable) as caught:
        await deliver(await hold_message(people.channels, held(), "hold", ctx(), ""))
    assert (str(caught.value), caught.value.after_s) == ("slack is away; ntfy is away", 5.0)


async def test_nobody_waits_longer_than_a_minute_for_a_channel_whatever_it_asks_for() -> None:
    people = People(ntfy=False)
    people.are_away(slack_s=3_600.0)
    with pytest.raises(Undeliverable) as caught:
        await deliver(await hold_message(people.channels, held(), "hold", ctx(), ""))
    assert caught.value.after_s == UNDELIVERABLE_AFTER_S_MAX <= 60.0


async def test_without_a_channel_nobody_can_be_told() -> None:
    none = Channels()
    assert not none.any
    with pytest.raises(Undeliverable, match="no channel is configured"):
        await deliver(await hold_message(none, held(), "hold", ctx(), ""))


def test_a_link_is_there_where_our_address_and_the_payout_are_known_and_is_quoted() -> None:
    channels = Channels(public_url="https://pay.example")
    assert channels.link("spi/1?") == "https://pay.example/console/#spi%2F1%3F"
    assert (channels.link(""), Channels().link("pout_1")) == ("", "")


# ---- in which words ----


@pytest.mark.parametrize(
    ("kind", "heading", "priority"),
    [
        ("hold", "Approve", PRIORITY_HIGH),
        ("reminder", "Reminder: approve", PRIORITY_HIGH),
        ("escalation", "Nobody has decided: approve", PRIORITY_MAX),
    ],
)
async def test_a_heading_says_whether_it_is_the_first_message_and_an_escalation_rings_loudest(
    kind: NoticeKind, heading: str, priority: int
) -> None:
    people = People()
    letter = await hold_message(people.channels, held(IN_NTFY, IN_SLACK), kind, ctx(), "")
    for _, send in letter.ways:
        await send()
    (_, asked), (push,) = people.room.heard[0], people.topic.pushes
    assert (asked["heading"], asked["thread"]) == (heading, IN_SLACK.ref)
    assert (push.title, push.priority, push.overtakes) == (f"{heading} ₹2,000.00 for bot?", priority, False)


async def test_only_a_message_in_slack_that_asked_is_answered_in_its_thread() -> None:
    people = People(ntfy=False)
    for notices in ([], [IN_NTFY], [told("outcome")]):
        await deliver(await hold_message(people.channels, held(*notices), "reminder", ctx(), ""))
    assert [said["thread"] for _, said in people.room.heard] == ["", "", ""]


async def test_a_push_has_all_that_a_person_needs_to_decide_and_both_commands() -> None:
    people = People(slack=False)
    record = held(amount=600_000, reasons=["LIMIT_EXCEEDED", "NEW_CODE"], reviews=[APPROVED])
    await deliver(await hold_message(people.channels, record, "hold", ctx(), ""))
    (push,) = people.topic.pushes
    assert push.message.splitlines() == [
        "₹6,000.00 for agent bot (claimed)",
        "vendor host vendor.example, to -",
        "- LIMIT_EXCEEDED: a budget has no room for it",
        "- NEW_CODE",
        f"expires {moment(record.hold_expires_at)}",
        "1 of 2 approvals, by asha",
        "streamproc hold approve pout_1 --by NAME --reason TEXT",
        "streamproc hold reject pout_1 --by NAME --reason TEXT",
    ]
    assert (push.tags, push.click) == (("hourglass",), "https://pay.example/console/#pout_1")


async def test_a_push_says_that_there_is_no_vendor_and_counts_no_approvals_where_one_is_enough() -> None:
    people = People(slack=False)
    record = held(vendor_url="", fund_account="fa_1")
    await deliver(await hold_message(people.channels, record, "hold", ctx(), ""))
    (push,) = people.topic.pushes
    assert "vendor host none, to fa_1" in push.message
    assert "approvals" not in push.message
    assert "" not in push.message.splitlines()


@pytest.mark.parametrize(
    ("code", "tag", "priority"),
    [("BYPASSED", "rotating_light", PRIORITY_HIGH), ("NO_POLICY", "warning", PRIORITY_DEFAULT)],
)
async def test_an_alert_rings_and_it_does_so_louder_where_money_has_moved(
    code: str, tag: str, priority: int
) -> None:
    people = People()
    facts = (("payout", "pout_1"), ("agent", "bot"))
    alarm = Alarm(code, "bot", "acc", "pout_1", 250_000, "pout_1", facts)
    assert await deliver(alert_message(people.channels, alarm)) == ("ntfy", "ref-1")
    (push,) = people.topic.pushes
    assert (push.tags, push.priority, push.overtakes) == ((tag,), priority, True)
    assert push.title == f"Alert: {code}, agent bot, account acc"
    assert push.click == "https://pay.example/console/#pout_1"
    assert push.message.splitlines()[1:] == ["payout: pout_1", "amount: ₹2,500.00", "agent: bot"]


async def test_an_alert_that_ntfy_does_not_take_goes_to_slack_and_names_no_amount_where_there_is_none() -> (
    None
):
    people = People()
    people.topic.problem = TryAgain("ntfy is away")
    alarm = Alarm("MISMATCH", "", ACCOUNT, "3:1-1", facts=(("payout", "pout_1"),))
    assert await deliver(alert_message(people.channels, alarm)) == ("slack", "ref-1")
    ((what, said),) = people.room.heard
    assert what == "tell"
    assert not any(line.startswith("amount") for line in said["notice"].lines)
    assert said["notice"].link == ""


async def test_notes_come_from_the_entry_that_showed_the_payout_which_later_messages_know_from_earlier_ones() -> (
    None
):
    seen, another = observed("pout_1"), NotificationSent(at=NOW, kind="alert", channel="ntfy", ref="n9")
    seen.facts.notes["invoice"] = "invoice 7"
    people, batch = People(), ctx({SHOWN_IN: [another, seen]})
    await deliver(await hold_message(people.channels, held(), "hold", batch, SHOWN_IN))
    first = people.room.heard[0][1]["notice"]
    later = await notice_of(people.channels, held(told("hold"), told("reminder", shown_in=SHOWN_IN)), batch)
    for notice in (first, later):
        assert any("invoice 7" in said.text for said in notice.untrusted)


@pytest.mark.parametrize(("amount", "approvals"), [(500_000, ""), (500_001, "0 of 2 approvals")])
async def test_two_must_approve_what_is_above_the_policys_amount_and_one_what_is_not(
    amount: int, approvals: str
) -> None:
    assert (await notice_of(Channels(), held(amount=amount), ctx())).approvals == approvals


async def test_an_approval_whose_reviewer_may_not_review_any_more_is_not_shown_as_one() -> None:
    gone = replace(APPROVED, by="gone")
    notice = await notice_of(Channels(), held(amount=600_000, reviews=[gone, APPROVED]), ctx())
    assert notice.approvals == "1 of 2 approvals, by asha"


async def test_one_approval_is_wanted_where_the_agent_has_no_policy_any_more() -> None:
    assert (await notice_of(Channels(), held(agent="gone", amount=900_000), ctx())).approvals == ""


# ---- messages that are changed ----


async def test_progress_is_shown_in_each_open_message_in_slack_under_its_own_heading() -> None:
    people = People()
    notices = [
        told("hold", ref="C1:1.0"), told("reminder", ref="C1:2.0"), told("reminder", ref="C1:3.0"),
        told("outcome", ref="C1:2.0"), told("outcome", "ntfy", "C1:3.0"), IN_NTFY,
    ]  # fmt: skip
    work = work_of(held(*notices))
    await show_progress(people.channels, work, ctx())
    assert [(what, said["ref"], said["heading"]) for what, said in people.room.heard] == [
        ("progress", "C1:1.0", "Approve"),
        ("progress", "C1:3.0", "Reminder: approve"),
    ]
    assert (people.topic.heard, work.out) == ([], [])


async def test_progress_that_slack_does_not_take_is_tried_again_and_without_slack_there_is_none() -> None:
    people = People()
    people.are_away()
    with pytest.raises(Undeliverable, match="slack: slack is away") as caught:
        await show_progress(people.channels, work_of(held(IN_SLACK)), ctx())
    assert caught.value.after_s == 5.0
    await show_progress(Channels(), work_of(held(IN_SLACK)), ctx())


async def test_the_end_is_shown_in_every_open_message_once_and_said_once_more_in_ntfy() -> None:
    people = People()
    closed = [told("hold", ref="C1:1.0"), told("outcome", ref="C1:1.0")]
    notices = [*closed, told("reminder", ref="C1:2.0"), IN_NTFY, told("escalation", "ntfy", "n2")]
    work = work_of(rejected(*notices))
    await close_messages(people.channels, work, ctx(now_us=NOW + 5))
    (close,) = people.room.heard
    assert (close[0], close[1]["ref"]) == ("close", "C1:2.0")
    assert close[1]["outcome"] == outcome_of(work.known())
    (push,) = people.topic.pushes
    assert (push.title, push.priority) == ("REJECTED: ₹2,000.00 for bot", PRIORITY_LOW)
    assert not push.overtakes
    assert push.message.startswith("pout_1: nobody decided it in time")
    assert recorded(work) == [
        ("outcome", "slack", "C1:2.0"), ("outcome", "ntfy", "n1"), ("outcome", "ntfy", "n2"),
    ]  # fmt: skip
    assert {(event.at, event.payout) for event in work.out if type(event) is NotificationSent} == {
        (NOW + 5, "pout_1")
    }
    # All are closed now.
    await close_messages(people.channels, work, ctx())
    assert people.heard == ["close", "publish"]


async def test_where_no_message_is_open_nothing_is_looked_up() -> None:
    people = People()
    closed = told("hold", shown_in="an entry that nobody may look for")
    await close_messages(people.channels, work_of(rejected(closed, told("outcome"))), ctx())
    assert people.heard == []


async def test_the_end_is_shown_again_in_slack_where_the_buttons_may_have_come_back() -> None:
    people = People()
    notices = [told("hold", ref="C1:1.0"), told("outcome", ref="C1:1.0"), told("reminder", ref="C1:2.0")]
    work = work_of(rejected(*notices))
    await close_messages(people.channels, work, ctx(), again=True)
    assert [said["ref"] for _, said in people.room.heard] == ["C1:1.0", "C1:2.0"]
    assert recorded(work) == [("outcome", "slack", "C1:2.0")]
    assert people.topic.heard == []


@pytest.mark.parametrize(
    ("slack", "ntfy", "closed"),
    [(True, False, [("outcome", "slack", "C1:1.0")]), (False, True, [("outcome", "ntfy", "n1")])],
)
async def test_a_message_in_a_channel_that_is_not_configured_any_more_is_not_said_to_be_closed(
    slack: bool, ntfy: bool, closed: list[tuple[str, str, str]]
) -> None:
    people = People(slack=slack, ntfy=ntfy)
    work = work_of(rejected(IN_SLACK, IN_NTFY))
    await close_messages(people.channels, work, ctx())
    assert recorded(work) == closed


@pytest.mark.parametrize("notices", [[IN_SLACK], [IN_NTFY]], ids=["slack", "ntfy"])
async def test_an_end_that_a_channel_does_not_take_is_tried_again(notices: list[Told]) -> None:
    people = People()
    people.are_away(slack_s=5.0, ntfy_s=5.0)
    work = work_of(rejected(*notices))
    with pytest.raises(Undeliverable, match="is away") as caught:
        await close_messages(people.channels, work, ctx())
    assert (caught.value.after_s, work.out) == (5.0, [])


def test_nobody_has_to_do_anything_about_an_outcome_so_that_it_does_not_ring() -> None:
    assert PRIORITY_LOW < PRIORITY_DEFAULT < PRIORITY_HIGH < PRIORITY_MAX
    assert channels_module.HEADINGS.keys() == {"hold", "reminder", "escalation"}
