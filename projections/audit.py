"""View `audit`: a line per decision, review, bank command, confirmation, settlement, policy change and alert.

Lines are only ever added, each under its event's id, so the view is written by COPY. A line says who, what and why;
the event with its evidence is in the archive, at the line's `seq` and `place`.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import lru_cache
from typing import Any, Literal, TypeAlias

import asyncpg
from msgspec import Struct

from projections.fold import POSTGRES_EPOCH_US, Step, having
from streamproc.archive.text import text, text_key
from streamproc.domain import events as e
from streamproc.domain.attribution import named
from streamproc.domain.domains import vendor_name
from streamproc.domain.plain import listed
from streamproc.domain.policy_events import headline
from streamproc.domain.traces import trace_id
from streamproc.domain.wire import EVENT_KINDS

Kind: TypeAlias = Literal["decision", "review", "command", "confirmation", "settlement", "policy", "alert"]

NAME = "audit"
VERSION = 4
COLUMNS = (
    *("id", "partition", "seq", "place", "payout", "agent", "vendor"),
    *("at", "kind", "decision", "reason", "actor", "amount", "trace_id"),
)
SCOPES_NAMED_MAX = 5
"""Scopes that the line of a proposal names: a policy file may change thousands, and `policy proposals` has them all."""
SILENT: frozenset[type[e.Fact]] = frozenset(
    {
        e.BankEventIgnored,
        e.BankDowntimeReported,
        e.PayoutRequested,
        e.ReviewSubmitted,  # its outcome is a line
        e.TimerFired,
        e.PayoutScreened,
        e.VelocityChecked,
        e.ReputationChecked,
        e.BudgetReserved,
        e.BeneficiaryNoted,
        e.ReconcileDone,  # its mismatches are lines
        e.NotificationSent,
    }
)
"""Events without a line of their own. They are listed, so that a new event cannot be left out by accident."""


class Said(Struct, frozen=True, gc=False):
    """What a line adds to its event: who, why, and in which decision."""

    kind: Kind
    reason: str
    actor: str
    decision: str | None = None


def said(step: Step) -> Said | None:
    """The line for a step, or None. Raises TypeError for an event that has neither a line nor a place in SILENT."""
    kind = type(step.event)
    if kind in SILENT:
        return None
    speak = _SAID.get(kind)
    if speak is None:
        raise TypeError(f"the audit has no place for {kind.__name__}")
    return speak(step, step.event)


def _problem(step: Step, event: e.PayoutMalformed | e.EntrySetAside) -> Said:
    return Said("alert", event.problem, step.by)


def _because(why: str) -> str:
    return f": {why}" if why else ""


def _through(channel: str) -> str:
    """By which channel somebody did it, if that is known; the line's actor is who."""
    return f" by {channel}" if channel else ""


def _bypass(step: Step, event: e.GovernanceBypassed) -> Said:
    which = f" ({event.bank_payout} at the bank)" if event.bank_payout else ""
    return Said("alert", f"governance bypassed: {event.status}{which}", step.by)


def _of_reviewer(event: e.TokenCreated) -> str:
    return f" of {event.reviewer}" if event.reviewer else ""


def _changed(event: e.PolicyChanged) -> str:
    """Scope, kind of change and version, by which channel, who confirmed it, and why: lines that say only why are all
    alike."""
    who = named(event.confirmed_by, event.confirmed_channel)
    confirmed = f", confirmed by {who}" if event.confirmed_by else ""
    proposal = f" ({event.proposal})" if event.proposal else ""
    return f"{headline(event)}{_through(event.channel)}{confirmed}{proposal}{_because(event.why)}"


def _of_scopes(scopes: Iterable[str]) -> str:
    """The scopes of a proposal, the first of them by name."""
    names = sorted(set(scopes))
    return f" of {listed(names, SCOPES_NAMED_MAX)}" if names else ""


def _proposed(event: e.PolicyProposed) -> str:
    scopes = _of_scopes(change.scope for change in event.changes)
    return f"proposed {event.proposal}{scopes}{_through(event.channel)}{_because(event.why)}"


def _confirmed(event: e.ProposalConfirmed) -> str:
    scopes = _of_scopes(scope for base in event.base for scope in base)
    return f"confirmed {event.proposal}{scopes}{_through(event.channel)}"


def _mismatch(event: e.ReconcileMismatch) -> str:
    subject = f" of {event.subject}" if event.subject else ""
    return (
        f"mismatch {event.kind}{subject}: ours {event.ours or 'nothing'}, theirs {event.theirs or 'nothing'}"
    )


def _refusal(event: e.AccessRefused) -> str:
    times = f" ({event.count} times)" if event.count > 1 else ""
    return f"refused by {event.channel}, {event.what}: {event.problem}{times}"


def _confirmation(step: Step, event: e.PayoutObserved) -> Said | None:
    """The line for a known payout's new status at the bank; none if it is seen for the first time, again, or late."""
    if step.before is None or step.after is None or step.after.bank_status == step.before.bank_status:
        return None
    return Said("confirmation", step.after.bank_status, event.source)


# A dict by class instead of `match`: a class pattern asks the Struct's metaclass, some 0.3 µs per case that fails.
_SAID: Mapping[type[e.Fact], Callable[[Step, Any], Said | None]] = {
    e.PayoutObserved: _confirmation,
    e.PayoutDecided: lambda step, event: Said("decision", event.reason, event.by or step.by, event.decision),
    e.BankCommandAnswered: lambda step, event: Said("command", f"{event.command}: {event.outcome}", step.by),
    e.PayoutSettled: lambda step, event: Said("settlement", event.settlement, step.by),
    e.ReviewCounted: lambda _, event: Said(
        "review", f"{event.action} by {event.via or event.channel}: {event.why}", event.by
    ),
    e.ReviewRefused: lambda _, event: Said(
        "review", f"{event.action} by {event.channel} refused: {event.problem}", event.by
    ),
    e.PolicyChanged: lambda _, event: Said("policy", _changed(event), event.by),
    e.PolicyProposed: lambda _, event: Said("policy", _proposed(event), event.by),
    e.ProposalConfirmed: lambda _, event: Said("policy", _confirmed(event), event.by),
    e.ProposalWithdrawn: lambda _, event: Said(
        "policy", f"withdrawn {event.proposal}{_through(event.channel)}{_because(event.why)}", event.by
    ),
    e.TokenCreated: lambda _, event: Said(
        "policy",
        f"token {event.name} created: {event.scope}{_of_reviewer(event)}{_through(event.channel)}",
        event.by,
    ),
    e.TokenRevoked: lambda _, event: Said(
        "policy", f"token {event.name} revoked{_through(event.channel)}", event.by
    ),
    e.GovernanceBypassed: _bypass,
    e.BankFeeRecorded: lambda step, _: Said("alert", "bank fee", step.by),
    e.ReconcileMismatch: lambda step, event: Said("alert", _mismatch(event), step.by),
    e.PayoutMalformed: _problem,
    e.NotificationFailed: lambda step, event: Said(
        "alert", f"nobody could be told ({event.kind}): {event.problem}", step.by
    ),
    e.EntrySetAside: _problem,
    e.PayoutStopped: lambda step, event: Said(
        "alert", f"{event.command} not sent: {event.finding.code}", step.by
    ),
    e.CancelRequested: lambda step, event: Said("alert", f"cancel requested: {event.why}", step.by),
    e.DeadLetterClosed: lambda _, event: Said(
        "alert",
        f"dead letter {event.letter}: {event.action}{_through(event.channel)}{_because(event.why)}",
        event.by,
    ),
    e.EntryDisowned: lambda _, event: Said(
        "alert", f"entry {event.entry} disowned{_through(event.channel)}: {event.why}", event.by
    ),
    e.AccessRefused: lambda step, event: Said("alert", _refusal(event), event.subject or step.by),
}

READS: frozenset[type[e.Fact]] = frozenset(EVENT_KINDS) - SILENT
"""Includes events that have no place yet, so that they raise instead of being left out."""


def lines(steps: Iterable[Step]) -> list[tuple[object, ...]]:
    """The rows that the steps add, in the order of COLUMNS."""
    return [_row(step, what) for step in steps if (what := said(step)) is not None]


class Lines:
    """The lines of a segment."""

    def __init__(self) -> None:
        self._rows: list[tuple[object, ...]] = []

    def add(self, steps: Sequence[Step]) -> None:
        """As `fold.Accumulator`."""
        self._rows += lines(steps)

    async def write(self, db: asyncpg.Connection, partition: int) -> None:
        """As `fold.Accumulator`."""
        rows, self._rows = self._rows, []
        if rows:
            await db.copy_records_to_table(NAME, records=rows, columns=COLUMNS)


begin = Lines


# If an event lacks a field, getattr looks through all its classes.
_OF_AGENT, _OF_AMOUNT = having("agent"), having("amount")
_KEYS_CACHED_MAX = 4_096
_key = lru_cache(maxsize=_KEYS_CACHED_MAX)(text_key)
"""Cached, since agents and vendors recur."""


def _row(step: Step, what: Said) -> tuple[object, ...]:
    event: Any = step.event
    record, payout = step.after, step.payout
    kind = type(event)
    agent: str = event.agent if kind in _OF_AGENT else ""
    amount: int | None = event.amount if kind in _OF_AMOUNT else None
    vendor = ""
    if record is not None:
        agent = agent or record.agent
        amount = record.amount if amount is None else amount
        vendor = vendor_name(record.vendor_url, record.fund_account)
    elif kind is e.PolicyChanged:
        scope: str = event.scope.removeprefix("freeze:")
        agent = scope.removeprefix("agent:") if scope.startswith("agent:") else ""
    elif kind is e.AccessRefused:
        payout = text_key(event.payout_named)
    return (
        f"{step.partition}:{step.entry}:{step.place}",
        step.partition,
        step.seq,
        step.place,
        payout or None,
        _key(agent),
        _key(vendor),
        (event.at - POSTGRES_EPOCH_US,),  # as `fold.moment`
        what.kind,
        what.decision,
        text(what.reason),
        text(what.actor),
        amount,
        trace_id(payout) if payout else None,
    )
