"""Notification: tells people. The log is the outbox: an entry is acknowledged when somebody was told of it.

Slack takes a message a second, and an agent may have any number of payouts held: what is about holds waits in the slow
lane for its turn, while alerts and private answers are sent (ADR 33).

Messages are sent at least once. Slack and ntfy have no idempotency, so if a worker dies between a message and its
commit it is sent again; both messages have the same buttons, and the one that the log knows is updated later. If a hold
is answered while its message is on the way, the payout has changed and the commit is refused; the message is then
closed at once, by another pass (`Group.looks_again`).
"""

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from functools import partial

from consumers.channels import (
    Channels,
    Undeliverable,
    alert_message,
    close_messages,
    deliver,
    has_open_messages,
    hold_message,
    show_progress,
)
from consumers.concurrency import run_bounded
from consumers.inputs import NOTIFICATION
from streamproc.domain.alerts import ALERTED, Alarm, alarm_of
from streamproc.domain.budget import US
from streamproc.domain.events import (
    EntrySetAside,
    Event,
    Fact,
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
from streamproc.domain.notified import Channel, NoticeKind
from streamproc.domain.wire import decode_meta
from streamproc.errors import TryAgain
from streamproc.log.digests import Alert, Digests
from streamproc.log.work import BatchContext, Group, Item, LeaveToSlowLane, Stage, Work, written_ms

CONCURRENT_MAX = 4
"""Messages of one worker under way at once. Slack takes one a second in a channel; with these waiting, and a digest
or a private answer beside them, none waits as long as the clients' limit."""
READ_MAX = WORKS_MAX = 32
"""Entries read at once, and in one pass. The next ones are read meanwhile and may wait for two passes, this one and one
of retries: they are late, but not told twice, since their claims are renewed (log/claims.py)."""
START_S = 10.0
"""A message that has not begun to be sent by then is deferred."""
PASS_S = 23.0
"""A message that has begun may take until then, within a batch's time: one that is cut off may have been sent."""
ALERT_OLD_S = 3_600.0
"""An alert or an outcome that nobody could be told of for so long is given up; it stays in the audit."""
PRIVATE_OLD_S = 120.0
"""A private answer to a click is given up after this."""
AGAIN_S = 60.0
"""Delay until a message that could not be closed in the pass that sent it is looked at again."""

CONSUMES: frozenset[type[Fact]] = frozenset(
    {
        *(PayoutDecided, PayoutSettled, ReviewCounted, ReviewRefused, TimerFired),
        *(GovernanceBypassed, EntrySetAside, ReconcileMismatch),
    }
)
WANTED = (
    rb'"type":"(?:governance\.bypassed|entry\.set_aside|reconcile\.mismatch|review\.counted|review\.refused)"'
    rb'|"decision":"HELD"|"decision":"REJECTED","reason":"(?:HOLD_EXPIRED|'
    + "|".join(sorted(ALERTED)).encode()
    + rb')"|"settlement":"released"|"timer":"hold_(?:reminder|escalation)"'
)
"""A pattern over an entry's bytes: entries that concern nobody, such as approvals that no person gave, are not
decoded."""


Once = Callable[[int, str, Event], Awaitable[None]]
"""Records an event in a partition's log, unless one with this key was."""
NoteUntold = Callable[[int, Sequence[tuple[str, int]]], Awaitable[None]]
"""Notes held payouts that nobody could be told of, each with when it was held (µs)."""


class Notifier:
    """The notification stage and what it works with."""

    def __init__(self, channels: Channels, counter: Digests, once: Once, note_untold: NoteUntold) -> None:
        self.channels, self.counter, self.once, self.note_untold = channels, counter, once, note_untold

    async def handle(self, items: Sequence[Item], ctx: BatchContext) -> None:
        """Tell people of a batch, and leave to the slow lane what may wait."""
        works: dict[Work, list[Event]] = {}
        for work, event in items:
            works.setdefault(work, []).append(event)
        now = await self._first_alarms(works, ctx)
        at_once: dict[Work, list[Event]] = {}
        for work, events in works.items():
            if ctx.may_wait and self._may_wait(work, events):
                # How a hold ended is shown before others are asked about: whoever decided it looks at its message.
                work.fail(LeaveToSlowLane(soon=work.known().state != "held"))
            else:
                at_once[work] = events
        # Alerts first here too, before what is looked at once more.
        ordered = sorted(at_once.items(), key=lambda item: item[0] not in now)
        jobs = [
            (work, partial(self._handle_one, work, events, now.get(work, []), ctx))
            for work, events in ordered
        ]
        await run_bounded(
            jobs, at_once=CONCURRENT_MAX, start_s=START_S, pass_s=PASS_S, waits_for="its turn to be told"
        )

    def _may_wait(self, work: Work, events: Sequence[Event]) -> bool:
        """Whether a message is sent for this work that nobody waits for but the people who decide holds.

        An alert never waits, not even one for a digest: handled again after that was sent, it would be counted twice.
        """
        record = work.record
        if record is None or work.out or not self.channels.any:
            return False
        if any(type(event) is ReviewRefused or alarm_of(event, "") is not None for event in events):
            return False
        return record.state == "held" or has_open_messages(record)

    async def _first_alarms(
        self, works: dict[Work, list[Event]], ctx: BatchContext
    ) -> dict[Work, list[Alarm]]:
        """The alarms that are told now; the others are counted. Another look at the same work counts none: the first
        one did."""
        found = [
            (work, alarm)
            for work, events in works.items()
            if not work.stale_times
            for event in events
            if (alarm := alarm_of(event, f"{ctx.partition}:{work.entry.decode()}")) is not None
        ]
        if not found or not self.channels.any:
            return {}
        alerts = [
            Alert(
                kind="\0".join((alarm.code, alarm.agent, alarm.account)),
                about=alert_about(alarm.code, alarm.agent, alarm.account),
                subject=alarm.subject,
                paise=alarm.amount,
            )
            for _, alarm in found
        ]
        now: dict[Work, list[Alarm]] = {}
        answers = await self.counter.count(ctx.partition, alerts)
        for (work, alarm), first in zip(found, answers, strict=True):
            if first:
                now.setdefault(work, []).append(alarm)
        return now

    async def _handle_one(
        self, work: Work, events: Sequence[Event], alarms: Sequence[Alarm], ctx: BatchContext
    ) -> None:
        for event in events:
            if type(event) is PayoutDecided:
                if event.decision == "HELD":
                    await self._hold(work, event, ctx)
                else:
                    await self._outcome(work, ctx, alarming=bool(alarms))
            elif type(event) is PayoutSettled or type(event) is GovernanceBypassed:
                # The bank may end a hold without our decision.
                await self._outcome(work, ctx, alarming=bool(alarms))
            elif type(event) is TimerFired:
                await self._remind(work, event, ctx)
            elif type(event) is ReviewCounted and event.needed:
                await self._progress(work, ctx)
            elif type(event) is ReviewRefused and event.channel == "slack":
                await self._private(work, event, ctx)
            if work.problem is not None:
                return
        for alarm in alarms:
            await self._alert(work, alarm, ctx)

    # ---- holds --------------------------------------------------------------------------

    async def _hold(self, work: Work, event: PayoutDecided, ctx: BatchContext) -> None:
        record = work.record
        if record is None:  # it is over, and left Redis after the retention time: a held payout never does
            return
        if work.stale_times and _has_sent(work):
            await self._look_again(work, ctx)
        elif record.state != "held" or record.decided_at != event.at:
            if work.taken and not record.told and self.channels.any:
                self._given_up(work, ctx, "hold", "it was over before anybody could be told")
        elif not record.told:
            await self._ask(work, "hold", ctx, shown_in=decode_meta(work.m).cause)

    async def _look_again(self, work: Work, ctx: BatchContext) -> None:
        """The payout changed while its message was on the way: bring the message up to date. That it was sent stays
        recorded."""
        try:
            if work.known().state == "held":
                await show_progress(self.channels, work, ctx)
            else:
                await close_messages(self.channels, work, ctx)
        except Undeliverable:
            if work.known().state != "held":  # if it is held, the next review brings the message up to date
                self._close_later(work, ctx)

    def _close_later(self, work: Work, ctx: BatchContext) -> None:
        at = ctx.now_us + int(AGAIN_S * US)
        work.set_timer(TimerFired(at=at, payout=work.payout, timer="hold_reminder"))

    async def _remind(self, work: Work, event: TimerFired, ctx: BatchContext) -> None:
        record = work.record
        if event.timer == "hold_expiry" or record is None:
            return
        if work.stale_times and _has_sent(work):
            await self._look_again(work, ctx)
            return
        if record.state != "held":
            await self._outcome(work, ctx)
            return
        kind: NoticeKind = "reminder" if event.timer == "hold_reminder" else "escalation"
        if not record.told:
            await self._ask(work, "hold", ctx)
        elif not any(
            notice.kind == kind or (kind == "reminder" and notice.at >= event.at) for notice in record.notices
        ):
            await self._ask(work, kind, ctx)

    async def _ask(self, work: Work, kind: NoticeKind, ctx: BatchContext, *, shown_in: str = "") -> None:
        record = work.known()
        try:
            message = await hold_message(self.channels, record, kind, ctx, shown_in)
            sent = await deliver(message)
        except Undeliverable as problem:
            if not record.told:
                await self.note_untold(ctx.partition, [(record.payout, record.decided_at)])
            if self.channels.any:
                await self._defer(work, ctx, kind, problem, record.payout)
            return
        _emit_sent(work, ctx, kind, *sent, shown_in=shown_in)

    async def _outcome(self, work: Work, ctx: BatchContext, *, alarming: bool = False) -> None:
        """Say in a hold's open messages how it ended; nothing where none is open. `alarming`: the entry is an alert
        too, which must not wait until that succeeds."""
        if work.record is None or work.record.state == "held":
            return
        async with self._until_old(work, ctx, "outcome", work.payout):
            try:
                await close_messages(self.channels, work, ctx)
            except Undeliverable:
                if not alarming:
                    raise
                self._close_later(work, ctx)

    async def _progress(self, work: Work, ctx: BatchContext) -> None:
        """Show who has approved. If this update arrives after another worker's that showed the end, it brings the
        buttons back; the commit is refused then, and the end is shown once more."""
        if work.record is None:
            return
        async with self._until_old(work, ctx, "outcome", work.payout):
            if work.record.state == "held":
                work.looked_at = True
                await show_progress(self.channels, work, ctx)
            elif work.taken or work.stale_times:
                await close_messages(self.channels, work, ctx, again=True)

    # ---- alerts, and answers to one person ----------------------------------------------

    async def _alert(self, work: Work, alarm: Alarm, ctx: BatchContext) -> None:
        async with self._until_old(work, ctx, "alert", alarm.subject):
            sent = await deliver(alert_message(self.channels, alarm))
            _emit_sent(work, ctx, "alert", *sent, about=alert_about(alarm.code, alarm.agent, alarm.account))

    async def _private(self, work: Work, event: ReviewRefused, ctx: BatchContext) -> None:
        named = event.by.startswith("slack:")
        user = event.by.removeprefix("slack:") if named else ctx.book.reviewers.get(event.by, "")
        if not user or self.channels.slack is None or _has_sent(work):
            return
        text = f"Your {event.action} of {event.payout} does not count: {event.problem}"
        subject = f"{ctx.partition}:{work.entry.decode()}"
        async with self._until_old(work, ctx, "private", subject, PRIVATE_OLD_S):
            try:
                ref = await self.channels.slack.answer(user, text)
            except TryAgain as problem:
                raise Undeliverable(f"slack: {problem}", after_s=problem.after_s) from problem
            _emit_sent(work, ctx, "private", "slack", ref)

    # ---- nobody could be told -----------------------------------------------------------

    @asynccontextmanager
    async def _until_old(
        self, work: Work, ctx: BatchContext, kind: NoticeKind, subject: str, old_s: float = ALERT_OLD_S
    ) -> AsyncIterator[None]:
        """Where what is within is Undeliverable, defer the entry, unless it is so old that it is given up."""
        try:
            yield
        except Undeliverable as problem:
            written_us = written_ms(work.entry) * 1_000
            if ctx.now_us - written_us > old_s * US:
                self._given_up(work, ctx, kind, str(problem))
            else:
                await self._defer(work, ctx, kind, problem, subject)

    async def _defer(
        self, work: Work, ctx: BatchContext, kind: NoticeKind, problem: Undeliverable, subject: str
    ) -> None:
        event = NotificationFailed(at=ctx.now_us, payout=work.payout, kind=kind, problem=str(problem))
        await self.once(ctx.partition, f"untold:{subject}:{kind}", event)
        work.fail(TryAgain(f"nobody could be told ({kind}): {problem}", after_s=problem.after_s))

    def _given_up(self, work: Work, ctx: BatchContext, kind: NoticeKind, problem: str) -> None:
        # A pass before may have recorded it.
        if not any(type(event) is NotificationFailed for event in work.out):
            work.emit(
                NotificationFailed(
                    at=ctx.now_us, payout=work.payout, kind=kind, problem=problem, given_up=True
                )
            )


def notification(channels: Channels, counter: Digests, once: Once, note_untold: NoteUntold) -> Group:
    """The group that tells people."""
    notifier = Notifier(channels, counter, once, note_untold)
    stage = Stage(name="notify", consumes=CONSUMES, handle=notifier.handle)
    return Group(
        name=NOTIFICATION,
        stages=(stage,),
        outputs_are_facts=True,
        looks_again=True,
        slow_lane=channels.any,
        read_max=READ_MAX,
        works_max=WORKS_MAX,
        wanted=WANTED,
    )


def _has_sent(work: Work) -> bool:
    """Whether an earlier pass over this work sent a message; its outputs are kept."""
    return any(type(event) is NotificationSent for event in work.out)


def _emit_sent(
    work: Work,
    ctx: BatchContext,
    kind: NoticeKind,
    channel: Channel,
    ref: str,
    *,
    about: str = "",
    shown_in: str = "",
) -> None:
    work.emit(
        NotificationSent(
            at=ctx.now_us,
            payout=work.payout,
            kind=kind,
            channel=channel,
            ref=ref,
            about=about,
            shown_in=shown_in,
        )
    )
