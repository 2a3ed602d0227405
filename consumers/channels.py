"""How people are told: by which channel first, by which one instead, and in which messages.

Holds go to Slack, which has buttons; alerts to ntfy, which rings. If one is not configured or does not take a message,
the other one gets it.
"""

from collections.abc import Awaitable, Callable, Sequence
from typing import TypeAlias

from msgspec import Struct

from streamproc.clients.limiter import NotItsTurn
from streamproc.clients.ntfy import PRIORITY_DEFAULT, PRIORITY_HIGH, PRIORITY_MAX, Ntfy, Push
from streamproc.clients.slack_room import SlackRoom
from streamproc.domain.alerts import Alarm
from streamproc.domain.console import link_to
from streamproc.domain.events import NotificationSent, PayoutObserved
from streamproc.domain.notice import (
    HoldNotice,
    Notice,
    alert_about,
    alert_notice,
    amount_text,
    hold_notice,
    outcome_of,
    payout_id,
)
from streamproc.domain.notified import ASKING, Channel, NoticeKind
from streamproc.domain.payouts import PayoutRecord
from streamproc.domain.record import HoldMessage
from streamproc.domain.review import approvals_given, approvals_wanted
from streamproc.domain.shown import moment
from streamproc.errors import StreamprocError, TryAgain
from streamproc.log.work import BatchContext, Work

PRIORITY_LOW = 2
"""Nobody has to do anything about an outcome."""
HOLDS: tuple[Channel, ...] = ("slack", "ntfy")
"""The order in which channels are tried for a hold: the one with buttons first."""
ALERTS: tuple[Channel, ...] = ("ntfy", "slack")
"""And for an alert: the one that rings first."""
HEADINGS = {"hold": "Approve", "reminder": "Reminder: approve", "escalation": "Nobody has decided: approve"}
UNDELIVERABLE_AFTER_S_MAX = 60.0
"""A channel that asks for a longer pause is tried again after this all the same: a payout waits, and a call is
cheap."""


class Undeliverable(StreamprocError):
    """No channel took the message; the text has what each one said. `after_s` is the least delay in seconds."""

    def __init__(self, problem: str, *, after_s: float = 1.0) -> None:
        super().__init__(problem)
        self.after_s = min(after_s, UNDELIVERABLE_AFTER_S_MAX)


class Channels(Struct, frozen=True, kw_only=True):
    """The configured channels. `public_url` is where people reach our API, or empty."""

    slack: SlackRoom | None = None
    ntfy: Ntfy | None = None
    public_url: str = ""

    @property
    def any(self) -> bool:
        """Whether a channel is configured, so that people can be told at all."""
        return self.slack is not None or self.ntfy is not None

    def link(self, payout: str) -> str:
        """The URL at which people see a payout; empty without `public_url` or a payout."""
        return link_to(self.public_url, payout)


Send: TypeAlias = Callable[[], Awaitable[str]]


class Message(Struct, frozen=True):
    """A message as each channel would send it, in the order in which they are tried. Sending returns the message's
    ref there. `waits` for its turn at the first channel, however long the queue there is."""

    ways: tuple[tuple[Channel, Send], ...]
    waits: bool = False


async def deliver(message: Message) -> tuple[Channel, str]:
    """Send by the first channel that takes it: that channel, and the message's ref there. Raises Undeliverable, and
    NotItsTurn for a message that waits: the channel works, and is busy with others."""
    problems: list[TryAgain] = []
    for channel, send in message.ways:
        try:
            return channel, await send()
        except TryAgain as problem:
            if message.waits and not problems and isinstance(problem, NotItsTurn):
                raise
            problems.append(problem)
    if not problems:
        raise Undeliverable("no channel is configured")
    wait_s = min(problem.after_s for problem in problems)
    raise Undeliverable("; ".join(str(problem) for problem in problems), after_s=wait_s)


async def hold_message(
    channels: Channels, record: PayoutRecord, kind: NoticeKind, ctx: BatchContext, shown_in: str
) -> Message:
    """A message that asks for a decision. A reminder goes first to the channel that was used before, an escalation
    to the other."""
    notice = await notice_of(channels, record, ctx, shown_in)
    first = next((n.channel for n in record.notices if n.kind in ASKING), HOLDS[0])
    others = [channel for channel in HOLDS if channel != first]
    order = (*others, first) if kind == "escalation" else (first, *others)
    thread = next((n.ref for n in record.notices if n.channel == "slack" and n.kind in ASKING), "")
    heading = HEADINGS[kind]
    room, topic = channels.slack, channels.ntfy
    ways: dict[Channel, Send] = {}
    if room is not None:
        ways["slack"] = lambda: room.ask(notice, heading=heading, thread=thread)
    if topic is not None:
        priority = PRIORITY_MAX if kind == "escalation" else PRIORITY_HIGH
        push = _hold_push(notice, heading, priority, record)
        ways["ntfy"] = lambda: topic.publish(push)
    return _ordered(ways, order, waits=True)


def alert_message(channels: Channels, alarm: Alarm) -> Message:
    """The message for one alert: its reason, amount, and a link to the payout if it is about one."""
    facts = list(alarm.facts)
    if alarm.amount:
        facts.insert(1, ("amount", amount_text(alarm.amount, "")))
    about = alert_about(alarm.code, alarm.agent, alarm.account)
    return notice_message(channels, alert_notice(about, alarm.code, facts, link=channels.link(alarm.payout)))


def notice_message(channels: Channels, notice: Notice) -> Message:
    """The message for an alert or a digest. ntfy is tried first, then Slack, as far as they are configured."""
    room, topic = channels.slack, channels.ntfy
    ways: dict[Channel, Send] = {}
    if topic is not None:
        push = Push(
            title=notice.title,
            message="\n".join(notice.lines),
            priority=PRIORITY_HIGH if notice.urgent else PRIORITY_DEFAULT,
            tags=("rotating_light",) if notice.urgent else ("warning",),
            click=notice.link,
            overtakes=True,
        )
        ways["ntfy"] = lambda: topic.publish(push)
    if room is not None:
        ways["slack"] = lambda: room.tell(notice)
    return _ordered(ways, ALERTS)


async def notice_of(
    channels: Channels, record: PayoutRecord, ctx: BatchContext, shown_in: str = ""
) -> HoldNotice:
    """What a hold's message says as of now. `shown_in`: the entry in which the payout was seen; if it is not given,
    the one that an earlier message of the hold names."""
    entry = shown_in or next((notice.shown_in for notice in record.notices if notice.shown_in), "")
    events = await ctx.entry(entry) if entry else []
    shown = next((event.facts for event in events if type(event) is PayoutObserved), None)
    wanted = approvals_wanted(record.amount, ctx.book.agent(record.agent))
    given = [review.by for review in approvals_given(record, ctx.book.people)]
    return hold_notice(record, wanted=wanted, given=given, link=channels.link(record.payout), shown=shown)


async def show_progress(channels: Channels, work: Work, ctx: BatchContext) -> None:
    """Update the hold's open messages in Slack: somebody has approved, and more must. Raises Undeliverable."""
    record = work.known()
    if channels.slack is None:
        return
    notice = await notice_of(channels, record, ctx)
    for message in _open_messages(record, "slack"):
        try:
            await channels.slack.progress(message.ref, notice, heading=HEADINGS[message.kind])
        except TryAgain as problem:
            raise Undeliverable(f"slack: {problem}", after_s=problem.after_s) from problem


async def close_messages(channels: Channels, work: Work, ctx: BatchContext, *, again: bool = False) -> None:
    """Say in the hold's open messages how it ended, and record each as closed. ntfy cannot change a message, so a
    last one is sent there. `again`: also in Slack messages that are closed already. Raises Undeliverable."""
    record = work.known()
    open_messages, pushed = _open_messages(record, "slack"), _open_messages(record, "ntfy")
    if not (open_messages or again or pushed):
        return
    notice, outcome = await notice_of(channels, record, ctx), outcome_of(record)
    try:
        for message in _asking(record, "slack") if again else open_messages:
            if channels.slack is not None:
                await channels.slack.close(message.ref, notice, outcome)
                if message in open_messages:
                    _closed(work, ctx, "slack", message.ref)
        if channels.ntfy is not None and pushed:
            title = f"{outcome.decision}: {notice.amount} for {notice.agent}"
            push = Push(title=title, message=f"{record.payout}: {outcome.text}", priority=PRIORITY_LOW)
            await channels.ntfy.publish(push)
            for message in pushed:
                _closed(work, ctx, "ntfy", message.ref)
    except TryAgain as problem:
        raise Undeliverable(str(problem), after_s=problem.after_s) from problem


def has_open_messages(record: PayoutRecord) -> bool:
    """Whether a message of the hold, on any channel, does not say yet how it ended."""
    return any(_open_messages(record, channel) for channel in HOLDS)


def _open_messages(record: PayoutRecord, channel: Channel) -> Sequence[HoldMessage]:
    closed = {n.ref for n in record.notices if n.channel == channel and n.kind == "outcome"}
    return [message for message in _asking(record, channel) if message.ref not in closed]


def _asking(record: PayoutRecord, channel: Channel) -> Sequence[HoldMessage]:
    return [n for n in record.notices if n.channel == channel and n.kind in ASKING]


def _closed(work: Work, ctx: BatchContext, channel: Channel, ref: str) -> None:
    work.emit(NotificationSent(at=ctx.now_us, payout=work.payout, kind="outcome", channel=channel, ref=ref))


def _ordered(ways: dict[Channel, Send], order: Sequence[Channel], *, waits: bool = False) -> Message:
    return Message(tuple((channel, ways[channel]) for channel in order if channel in ways), waits)


def _hold_push(notice: HoldNotice, heading: str, priority: int, record: PayoutRecord) -> Push:
    """No text of strangers except names: phones turn what looks like a link into one."""
    reasons = [f"- {code}{': ' if meaning else ''}{meaning}" for code, meaning in notice.reasons]
    lines = [
        f"{notice.amount} for agent {notice.agent} ({notice.identity})",
        f"vendor host {notice.host or 'none'}, to {notice.payee or '-'}",
        *reasons,
        f"expires {moment(notice.expires_at)}",
        *([notice.approvals] if notice.approvals else []),
        f"streamproc hold approve {payout_id(record.payout)} --by NAME --reason TEXT",
        f"streamproc hold reject {payout_id(record.payout)} --by NAME --reason TEXT",
    ]
    return Push(
        title=f"{heading} {notice.amount} for {notice.agent}?",
        message="\n".join(lines),
        priority=priority,
        tags=("hourglass",),
        click=notice.link,
    )
