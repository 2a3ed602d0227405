"""The notification stage without clients and servers: who is told of what, what is put off, and what is given up."""

import re
from collections.abc import Sequence
from typing import Any, cast

import pytest

from consumers.notify import (
    AGAIN_S,
    ALERT_OLD_S,
    CONCURRENT_MAX,
    PASS_S,
    PRIVATE_OLD_S,
    READ_MAX,
    START_S,
    WANTED,
    WORKS_MAX,
    Notifier,
    notification,
)
from streamproc.clients.limiter import NotItsTurn
from streamproc.domain.events import (
    EntrySetAside,
    Event,
    GovernanceBypassed,
    NotificationFailed,
    NotificationSent,
    PayoutDecided,
    PayoutSettled,
    ReconcileMismatch,
    ReviewCounted,
    ReviewRefused,
    TimerFired,
)
from streamproc.domain.notice import alert_about
from streamproc.domain.payouts import PayoutRecord
from streamproc.domain.wire import encode_events
from streamproc.errors import TryAgain
from streamproc.log.digests import Alert
from streamproc.log.work import LeaveToSlowLane, Work
from tests.consumers.listeners import SHOWN_IN, People, ctx, held, rejected, told
from tests.words import NOW

US = 1_000_000
ENTRY_MS = NOW // 1_000
ENTRY = f"{ENTRY_MS}-0"
HOLD = told("hold", shown_in=SHOWN_IN)
SENT = NotificationSent(at=NOW, payout="pout_1", kind="hold", channel="slack", ref=HOLD.ref)


def decided(decision: Any = "HELD", reason: str = "APPROVAL_REQUIRED", at: int = NOW) -> PayoutDecided:
    return PayoutDecided(
        at=at, payout="pout_1", account="acc", agent="bot", amount=200_000, decision=decision, reason=reason,
        policy_version=1, bank_status="pending",
    )  # fmt: skip


def timer(kind: Any, at: int = NOW + 60 * US) -> TimerFired:
    return TimerFired(at=at, payout="pout_1", timer=kind)


def counted(needed: int = 2) -> ReviewCounted:
    return ReviewCounted(
        at=NOW, payout="pout_1", by="asha", action="approve", why="ok", channel="cli", needed=needed
    )


def refused(by: str = "asha", channel: str = "slack") -> ReviewRefused:
    return ReviewRefused(
        at=NOW, payout="pout_1", by=by, action="reject", channel=channel, problem="it is over"
    )


BYPASSED = GovernanceBypassed(
    at=NOW, payout="pout_1", account="acc", agent="bot", amount=200_000, status="processing"
)
ASIDE = EntrySetAside(at=NOW, payout="pout_1", group="governance", entry="1-1", stage="screen", problem="bad")
MISMATCH = ReconcileMismatch(at=NOW, payout="", account="acc", kind="budget", ours="1", theirs="2")
RELEASED = PayoutSettled(
    at=NOW, payout="pout_1", settlement="released", amount=200_000, why="failed", windows=[]
)


class Stage:
    """The stage over one entry, and what it said to whom."""

    def __init__(self, people: People | None = None, *, first: bool = True) -> None:
        self.people = people or People()
        self.first = first
        """Whether an alert is the first of its kind, so that it is told now."""
        self.counted: list[tuple[int, Sequence[Alert]]] = []
        self.once: list[tuple[int, str, Event]] = []
        self.untold: list[tuple[int, list[tuple[str, int]]]] = []

    async def count(self, partition: int, alerts: Sequence[Alert]) -> list[bool]:
        self.counted.append((partition, alerts))
        return [self.first] * len(alerts)

    async def _record(self, partition: int, key: str, event: Event) -> None:
        self.once.append((partition, key, event))

    async def _note(self, partition: int, holds: Sequence[tuple[str, int]]) -> None:
        self.untold.append((partition, list(holds)))

    async def told_of(
        self,
        *events: Event,
        record: PayoutRecord | None = None,
        age_s: float = 0.0,
        may_wait: bool = False,
        **more: Any,
    ) -> Work:
        """The work of an entry with these events, after the stage; written `age_s` before. `may_wait`: there is a slow
        lane with room."""
        work = Work(
            ENTRY.encode(),
            list(events),
            "pout_1",
            record=record,
            m=b'{"by":"governance","cause":"%b"}' % SHOWN_IN.encode(),
        )
        for name, value in more.items():
            setattr(work, name, value)
        stage = Notifier(self.people.channels, self, self._record, self._note)
        now_us = ENTRY_MS * 1_000 + int(age_s * US)
        batch = ctx(now_us=now_us)
        batch.may_wait = may_wait
        await stage.handle([(work, event) for event in events], batch)
        return work


def kinds(work: Work) -> list[str]:
    """Messages that were sent, and those that were given up."""
    return [
        f"{event.kind} given up" if type(event) is NotificationFailed else event.kind
        for event in work.out
        if type(event) in (NotificationSent, NotificationFailed)
    ]


# ---- holds ----


async def test_a_hold_is_told_once_with_the_entry_that_showed_the_payout() -> None:
    stage = Stage()
    work = await stage.told_of(decided(), record=held())
    assert work.out == [
        NotificationSent(
            at=NOW, payout="pout_1", kind="hold", channel="slack", ref="ref-1", shown_in=SHOWN_IN
        )
    ]
    await stage.told_of(decided(), record=held(HOLD))
    assert stage.people.heard == ["ask"]


@pytest.mark.parametrize(
    ("record", "taken", "given_up"),
    [
        (rejected(), True, ["hold given up"]),
        (held(decided_at=NOW + 1), True, ["hold given up"]),
        (rejected(), False, []),
        (rejected(HOLD), True, []),
        (None, True, []),
    ],
    ids=["over", "held anew", "never put off", "told before", "forgotten"],
)
async def test_a_hold_that_is_over_is_told_to_nobody_and_given_up_where_it_was_put_off_before(
    record: PayoutRecord | None, taken: bool, given_up: list[str]
) -> None:
    stage = Stage()
    work = await stage.told_of(decided(), record=record, taken=taken)
    assert (stage.people.heard, kinds(work), work.problem) == ([], given_up, None)
    nobody = Stage(People(slack=False, ntfy=False))
    assert kinds(await nobody.told_of(decided(), record=record, taken=taken)) == []


async def test_a_hold_that_nobody_could_be_told_of_is_noted_recorded_once_and_put_off() -> None:
    stage = Stage()
    stage.people.are_away(slack_s=5.0, ntfy_s=7.0)
    work = await stage.told_of(decided(), record=held(decided_at=NOW), age_s=9.0)
    assert stage.untold == [(3, [("pout_1", NOW)])]
    ((partition, key, event),) = stage.once
    assert (partition, key) == (3, "untold:pout_1:hold")
    assert event == NotificationFailed(
        at=NOW + 9 * US, payout="pout_1", kind="hold", problem="slack is away; ntfy is away"
    )
    assert type(work.problem) is TryAgain
    assert work.problem.after_s == 5.0
    assert "slack is away" in str(work.problem)
    assert work.out == []


async def test_where_no_channel_is_configured_a_hold_is_noted_and_not_tried_again() -> None:
    stage = Stage(People(slack=False, ntfy=False))
    work = await stage.told_of(decided(), record=held())
    assert (stage.untold, stage.once) == ([(3, [("pout_1", NOW)])], [])
    assert (work.problem, work.out) == (None, [])


async def test_a_reminder_that_nobody_took_leaves_the_hold_told_and_is_put_off() -> None:
    stage = Stage()
    stage.people.are_away()
    work = await stage.told_of(timer("hold_reminder"), record=held(HOLD))
    assert (stage.untold, [key for _, key, _ in stage.once]) == ([], ["untold:pout_1:reminder"])
    assert type(work.problem) is TryAgain


# ---- the payout changed while its message was on the way ----


@pytest.mark.parametrize("event", [decided(), timer("hold_reminder")], ids=["hold", "reminder"])
@pytest.mark.parametrize(
    ("record", "heard"),
    [(held(HOLD), ["progress"]), (rejected(HOLD), ["close"])],
    ids=["still held", "over"],
)
async def test_a_message_that_was_sent_meanwhile_is_brought_up_to_date_and_not_sent_again(
    event: Event, record: PayoutRecord, heard: list[str]
) -> None:
    stage = Stage()
    work = await stage.told_of(event, record=record, stale_times=1, out=[SENT])
    assert stage.people.heard == heard
    assert kinds(work)[0] == "hold"
    assert (work.problem, work.timers) == (None, [])


@pytest.mark.parametrize("stale_times", [0, 1])
async def test_another_look_that_finds_nothing_sent_tells_as_the_first_one_does(stale_times: int) -> None:
    stage = Stage()
    work = await stage.told_of(decided(), record=held(), stale_times=stale_times)
    assert kinds(work) == ["hold"]
    work = await stage.told_of(timer("hold_reminder"), record=held(HOLD), stale_times=stale_times)
    assert kinds(work) == ["reminder"]


@pytest.mark.parametrize(
    ("record", "again"),
    [(held(HOLD), []), (rejected(HOLD), [timer("hold_reminder", NOW + int(AGAIN_S * US))])],
)
async def test_a_message_that_cannot_be_closed_at_once_is_closed_later_and_its_being_sent_stays_recorded(
    record: PayoutRecord, again: list[TimerFired]
) -> None:
    """If it is held, the next answer brings it up to date."""
    stage = Stage()
    stage.people.are_away()
    work = await stage.told_of(decided(), record=record, stale_times=1, out=[SENT])
    assert (work.out, work.timers, work.problem) == ([SENT], again, None)


# ---- reminders ----


@pytest.mark.parametrize(
    ("kind", "record", "told_of"),
    [
        ("hold_reminder", held(HOLD), ["reminder"]),
        ("hold_reminder", held(HOLD, told("reminder", ref="C1:2.0")), []),
        ("hold_reminder", held(told("hold", at=NOW + 60 * US)), []),
        ("hold_reminder", held(told("hold", at=NOW + 60 * US - 1)), ["reminder"]),
        ("hold_escalation", held(HOLD), ["escalation"]),
        ("hold_escalation", held(HOLD, told("reminder", at=NOW + 60 * US, ref="C1:2.0")), ["escalation"]),
        ("hold_escalation", held(HOLD, told("escalation", "ntfy", "n1")), []),
        ("hold_reminder", held(), ["hold"]),
        ("hold_escalation", held(), ["hold"]),
        ("hold_expiry", held(), []),
        ("hold_expiry", held(HOLD), []),
        ("hold_reminder", None, []),
        ("hold_reminder", rejected(), []),
        ("hold_reminder", rejected(HOLD), ["outcome"]),
        ("hold_escalation", rejected(HOLD), ["outcome"]),
    ],
)
async def test_people_are_reminded_once_and_of_what_they_do_not_know_yet_as_of_a_hold(
    kind: str, record: PayoutRecord | None, told_of: list[str]
) -> None:
    """A message that was sent after the reminder was due, since no channel took it earlier, is the reminder too."""
    work = await Stage().told_of(timer(kind), record=record)
    assert (kinds(work), work.problem) == (told_of, None)
    assert {event.shown_in for event in work.out if type(event) is NotificationSent} <= {""}


async def test_a_reminder_and_an_escalation_that_are_due_at_once_are_both_sent() -> None:
    """As after a time in which no worker ran."""
    stage = Stage()
    work = await stage.told_of(timer("hold_reminder"), timer("hold_escalation"), record=held(HOLD))
    assert kinds(work) == ["reminder", "escalation"]
    assert stage.people.heard == ["ask", "publish"]


async def test_an_end_that_cannot_be_shown_a_minute_later_either_is_put_off() -> None:
    stage = Stage()
    stage.people.are_away()
    work = await stage.told_of(timer("hold_reminder"), record=rejected(HOLD))
    assert type(work.problem) is TryAgain
    assert work.timers == []


# ---- how it ends ----


@pytest.mark.parametrize(
    "event", [decided("REJECTED", "HOLD_EXPIRED"), RELEASED, BYPASSED], ids=lambda event: type(event).__name__
)
async def test_whatever_ends_a_hold_closes_its_message(event: Event) -> None:
    stage = Stage(first=False)
    assert kinds(await stage.told_of(event, record=rejected(HOLD))) == ["outcome"]
    for record in (held(HOLD), None):
        work = await stage.told_of(event, record=record)
        assert (work.out, work.problem) == ([], None)
    assert stage.people.heard == ["close"]


async def test_an_end_that_cannot_be_shown_is_put_off_and_given_up_after_an_hour() -> None:
    stage = Stage()
    stage.people.are_away()
    event = decided("REJECTED", "HOLD_EXPIRED")
    late = await stage.told_of(event, record=rejected(HOLD), age_s=ALERT_OLD_S)
    assert type(late.problem) is TryAgain
    assert (kinds(late), [key for _, key, _ in stage.once]) == ([], ["untold:pout_1:outcome"])
    old = await stage.told_of(event, record=rejected(HOLD), age_s=ALERT_OLD_S + 0.001)
    assert (old.problem, kinds(old), len(stage.once)) == (None, ["outcome given up"], 1)
    (failed,) = old.out
    assert type(failed) is NotificationFailed
    assert (failed.given_up, failed.problem, failed.payout) == (True, "slack is away", "pout_1")
    assert failed.at == NOW + int((ALERT_OLD_S + 0.001) * US)


async def test_progress_is_shown_while_it_is_held_and_the_commit_checks_that_it_still_is() -> None:
    stage = Stage()
    work = await stage.told_of(counted(), record=held(HOLD))
    assert (stage.people.heard, work.looked_at) == (["progress"], True)
    assert not (await stage.told_of(counted(0), record=held(HOLD))).looked_at
    forgotten = await stage.told_of(counted())
    assert (forgotten.looked_at, forgotten.problem) == (False, None)
    assert stage.people.heard == ["progress"]


@pytest.mark.parametrize(
    ("more", "heard"),
    [({}, []), ({"taken": True}, ["close"]), ({"stale_times": 1}, ["close"])],
    ids=["at once", "taken up again", "looked at again"],
)
async def test_the_end_is_shown_once_more_where_progress_may_have_brought_the_buttons_back(
    more: dict[str, Any], heard: list[str]
) -> None:
    stage = Stage()
    over = rejected(HOLD, told("outcome"))
    work = await stage.told_of(counted(), record=over, **more)
    assert (stage.people.heard, work.looked_at) == (heard, False)


async def test_progress_that_cannot_be_shown_is_put_off() -> None:
    stage = Stage()
    stage.people.are_away()
    work = await stage.told_of(counted(), record=held(HOLD))
    assert type(work.problem) is TryAgain
    assert [key for _, key, _ in stage.once] == ["untold:pout_1:outcome"]


# ---- alerts ----

ALARMING = decided("REJECTED", "NO_POLICY")


async def test_an_alert_is_counted_by_what_it_is_about_and_told_if_it_is_the_first() -> None:
    stage = Stage()
    work = await stage.told_of(BYPASSED, record=rejected())
    about = alert_about("BYPASSED", "bot", "acc")
    assert stage.counted == [(3, [Alert("BYPASSED\0bot\0acc", about, "pout_1", 200_000)])]
    assert work.out == [
        NotificationSent(at=NOW, payout="pout_1", kind="alert", channel="ntfy", ref="ref-1", about=about)
    ]
    assert kinds(await Stage(first=False).told_of(BYPASSED, record=rejected())) == []


async def test_a_mismatch_about_no_payout_is_counted_as_the_entry_that_says_it() -> None:
    """Two of one account at different times are two, and the same one that is handled again is one."""
    stage = Stage()
    await stage.told_of(MISMATCH)
    (alert,) = stage.counted[0][1]
    assert (alert.subject, alert.paise) == (f"3:{ENTRY}", 0)


async def test_what_is_alarming_is_not_counted_at_another_look_nor_where_nobody_can_be_told() -> None:
    for stage, more in (
        (Stage(), {"stale_times": 1}),
        (Stage(People(slack=False, ntfy=False)), {}),
    ):
        assert kinds(await stage.told_of(ALARMING, record=rejected(), **more)) == []
        assert stage.counted == []


async def test_what_alarms_nobody_is_not_counted() -> None:
    stage = Stage()
    await stage.told_of(decided("REJECTED", "HOLD_EXPIRED"), RELEASED, record=rejected(HOLD))
    assert stage.counted == []


async def test_each_of_several_alerts_in_one_entry_is_told_if_it_is_a_first_one() -> None:
    stage = Stage()
    work = await stage.told_of(ALARMING, ASIDE, record=rejected())
    assert [alert.kind.partition("\0")[0] for alert in stage.counted[0][1]] == ["NO_POLICY", "SET_ASIDE"]
    assert kinds(work) == ["alert", "alert"]


async def test_an_alert_that_nobody_could_be_told_of_is_put_off_and_given_up_after_an_hour_with_one_event() -> (
    None
):
    stage = Stage()
    stage.people.are_away()
    late = await stage.told_of(BYPASSED, record=rejected(), age_s=ALERT_OLD_S)
    assert type(late.problem) is TryAgain
    assert [(partition, key) for partition, key, _ in stage.once] == [(3, "untold:pout_1:alert")]
    old = await stage.told_of(BYPASSED, record=rejected(), age_s=ALERT_OLD_S + 1)
    assert (kinds(old), old.problem) == (["alert given up"], None)
    again = await stage.told_of(BYPASSED, record=rejected(), age_s=ALERT_OLD_S + 1, out=list(old.out))
    assert (again.out, again.problem) == (old.out, None)


@pytest.mark.parametrize("event", [BYPASSED, ALARMING], ids=["bypassed", "rejected"])
async def test_an_alert_is_told_although_the_hold_that_it_ended_cannot_be_closed(event: Event) -> None:
    stage = Stage()
    stage.people.room.problem = TryAgain("slack is away")
    work = await stage.told_of(event, record=rejected(HOLD))
    assert (kinds(work), work.problem) == (["alert"], None)
    assert work.timers == [timer("hold_reminder", NOW + int(AGAIN_S * US))]
    counted_only = await Stage(stage.people, first=False).told_of(event, record=rejected(HOLD))
    assert type(counted_only.problem) is TryAgain
    assert counted_only.timers == []


async def test_what_is_put_off_tells_no_alert_since_all_of_it_is_handled_again() -> None:
    stage = Stage()
    stage.people.room.problem = TryAgain("slack is away")
    work = await stage.told_of(counted(), BYPASSED, record=held(HOLD))
    assert (stage.people.heard, kinds(work)) == ([], [])
    assert type(work.problem) is TryAgain


# ---- an answer to one person ----


@pytest.mark.parametrize(("by", "user"), [("asha", "U0ASHA"), ("slack:U0OTHER", "U0OTHER")])
async def test_who_clicked_in_vain_is_told_why(by: str, user: str) -> None:
    stage = Stage()
    work = await stage.told_of(refused(by), record=rejected())
    assert stage.people.room.heard == [
        ("answer", {"user": user, "text": "Your reject of pout_1 does not count: it is over"})
    ]
    assert [(e.kind, e.channel, e.ref) for e in work.out if type(e) is NotificationSent] == [
        ("private", "slack", "ref-1")
    ]


@pytest.mark.parametrize(
    ("event", "slack", "out"),
    [
        (refused("vikram"), True, []),
        (refused("nobody"), True, []),
        (refused("slack:"), True, []),
        (refused(channel="cli"), True, []),
        (refused(), False, []),
        (refused(), True, [SENT]),
    ],
    ids=["no account", "unknown", "empty", "not clicked", "no Slack", "told before"],
)
async def test_who_cannot_be_told_privately_or_was_told_is_not(
    event: ReviewRefused, slack: bool, out: list[Event]
) -> None:
    stage = Stage(People(slack=slack))
    work = await stage.told_of(event, record=rejected(), out=out)
    assert (stage.people.heard, work.out, work.problem) == ([], out, None)


async def test_a_hold_whose_turn_does_not_come_is_put_off_and_nobody_says_that_people_cannot_be_told() -> (
    None
):
    stage = Stage()
    stage.people.room.problem = NotItsTurn("31 calls wait", after_s=3.0)
    late = await stage.told_of(decided(), record=held())
    assert late.problem is stage.people.room.problem
    assert (stage.people.heard, late.out, stage.untold, stage.once) == ([], [], [], [])


async def test_an_answer_to_one_person_is_put_off_for_two_minutes_and_then_given_up() -> None:
    stage = Stage()
    stage.people.are_away()
    late = await stage.told_of(refused(), record=rejected(), age_s=PRIVATE_OLD_S)
    assert type(late.problem) is TryAgain
    assert late.problem.after_s == 5.0
    assert [key for _, key, _ in stage.once] == [f"untold:3:{ENTRY}:private"]
    old = await stage.told_of(refused(), record=rejected(), age_s=PRIVATE_OLD_S + 1)
    assert (kinds(old), old.problem) == (["private given up"], None)
    (failed,) = old.out
    assert type(failed) is NotificationFailed
    assert failed.problem == "slack: slack is away"


# ---- what is read at all ----


async def test_alerts_of_a_batch_are_told_before_its_holds_which_may_be_many() -> None:
    stage = Stage()
    stage.people.room.heard = stage.people.topic.heard
    works = [
        (Work(b"%d-0" % (ENTRY_MS + n), [event], "pout_1", record=held(), m=b'{"by":"governance"}'), event)
        for n, event in enumerate([decided()] * (CONCURRENT_MAX + 1) + [BYPASSED])
    ]
    await Notifier(stage.people.channels, stage, stage._record, stage._note).handle(works, ctx())
    assert stage.people.topic.what == ["publish", *["ask"] * (CONCURRENT_MAX + 1)]


OPEN, CLOSED = told("hold"), told("outcome")
WAITING = {
    "a hold": (decided(), held()),
    "a reminder": (timer("hold_reminder"), held(OPEN)),
    "an approval that is shown": (counted(), held(OPEN)),
    "the end of a hold that was told": (decided("REJECTED", "HOLD_EXPIRED"), rejected(OPEN)),
    "its end at the bank": (RELEASED, rejected(OPEN)),
}
AT_ONCE = {
    "an alert": (BYPASSED, held(OPEN)),
    "an alert that ends a hold": (decided("REJECTED", "FROZEN"), rejected(OPEN)),
    "a private answer": (refused(), held(OPEN)),
    "a mismatch": (MISMATCH, None),
    "a hold that left Redis": (decided(), None),
    "a rejection that nobody was told of": (RELEASED, rejected()),
    "the end of a hold whose message says it": (RELEASED, rejected(OPEN, CLOSED)),
}


@pytest.mark.parametrize("what", WAITING)
async def test_what_is_about_holds_waits_for_its_turn_where_it_may_and_nothing_is_done_yet(what: str) -> None:
    event, record = WAITING[what]
    stage = Stage()
    left = await stage.told_of(event, record=record, may_wait=True)
    assert (type(left.problem), left.out) == (LeaveToSlowLane, [])
    assert stage.people.room.what == stage.people.topic.what == []
    there = await stage.told_of(event, record=record)
    assert there.problem is None
    assert stage.people.room.what != []


@pytest.mark.parametrize("what", AT_ONCE)
@pytest.mark.parametrize("first", [True, False], ids=["first", "counted"])
async def test_alerts_and_private_answers_wait_for_no_hold_nor_does_what_sends_nothing(
    what: str, first: bool
) -> None:
    event, record = AT_ONCE[what]
    work = await Stage(first=first).told_of(event, record=record, may_wait=True)
    assert work.problem is None


async def test_what_has_sent_a_message_does_not_wait_again() -> None:
    work = await Stage().told_of(decided(), record=held(), may_wait=True, stale_times=1, out=[SENT])
    assert work.problem is None


async def test_without_a_channel_nothing_waits() -> None:
    people, nobody = People(slack=False, ntfy=False), cast(Any, None)
    work = await Stage(people).told_of(decided(), record=held(), may_wait=True)
    assert work.problem is None
    assert not notification(people.channels, nobody, nobody, nobody).slow_lane
    assert notification(People().channels, nobody, nobody, nobody).slow_lane


def test_a_worker_takes_few_messages_in_hand_and_decodes_only_what_may_concern_somebody() -> None:
    nobody: Any = None
    group = notification(People().channels, nobody, nobody, nobody)
    assert (group.read_max, group.works_max, group.wanted) == (READ_MAX, WORKS_MAX, WANTED)
    # All messages of a pass have begun in time where each takes a second.
    assert WORKS_MAX / CONCURRENT_MAX <= START_S < PASS_S


@pytest.mark.parametrize(
    ("event", "is_wanted"),
    [
        (decided("HELD"), True),
        (decided("APPROVED", "OK"), False),
        (decided("REJECTED", "HOLD_EXPIRED"), True),
        (ALARMING, True),
        (decided("REJECTED", "TXN_LIMIT_EXCEEDED"), False),
        (RELEASED, True),
        (timer("hold_reminder"), True),
        (timer("hold_escalation"), True),
        (timer("hold_expiry"), False),
        (counted(), True),
        (refused(), True),
        (BYPASSED, True),
        (ASIDE, True),
        (MISMATCH, True),
        (SENT, False),
    ],
)
def test_entries_that_concern_nobody_are_not_decoded(event: Event, is_wanted: bool) -> None:
    assert bool(re.search(WANTED, encode_events([event]))) is is_wanted
