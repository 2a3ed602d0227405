"""View `audit`: a line per decision, review, bank command, confirmation, settlement, policy change and alert.

Lines are only ever added, each under its event's id, so the view is written by COPY. A line says who, what and why;
the event with its evidence is in the archive, at the line's `seq` and `place`.
"""

from collections.abc import Iterable, Sequence
from typing import Literal, NamedTuple, TypeAlias

import asyncpg

from projections.fold import Step, moment
from streamproc.archive.text import text, text_key
from streamproc.domain import events as e
from streamproc.domain.domains import vendor_name

Kind: TypeAlias = Literal["decision", "review", "command", "confirmation", "settlement", "policy", "alert"]

NAME = "audit"
VERSION = 1
COLUMNS = (
    *("id", "partition", "seq", "place", "payout", "agent", "vendor"),
    *("at", "kind", "decision", "reason", "actor", "amount"),
)
SILENT: frozenset[type[e.Fact]] = frozenset(
    {
        e.BankEventIgnored,
        e.BankDowntimeReported,
        e.ReviewSubmitted,  # what came of it is a line
        e.TimerFired,
        e.PayoutScreened,
        e.VelocityChecked,
        e.ReputationChecked,
        e.BudgetReserved,
    }
)
"""Events that are steps on the way to a line. Listed, so that a new event is not left out unseen."""


class Said(NamedTuple):
    """What a line says beyond its event: who, why, and in which decision."""

    kind: Kind
    reason: str
    actor: str
    decision: str | None = None


def said(step: Step) -> Said | None:
    """The line that a step gives, or None. Raises TypeError for an event that nobody placed."""
    kind = type(step.event)
    if kind in SILENT:
        return None
    # The frequent ones by exact type: a class pattern asks a Struct's metaclass.
    if kind is e.PayoutObserved:
        return _confirmation(step, step.event)  # type: ignore[arg-type]
    match step.event:
        case e.PayoutDecided() as event:
            return Said("decision", event.reason, event.by or step.by, event.decision)
        case e.BankCommandAnswered() as event:
            return Said("command", f"{event.command}: {event.outcome}", step.by)
        case e.PayoutSettled() as event:
            return Said("settlement", event.settlement, step.by)
        case e.ReviewCounted() as event:
            return Said("review", f"{event.action}: {event.why}", event.by)
        case e.ReviewRefused() as event:
            return Said("review", f"{event.action} refused: {event.problem}", event.by)
        case e.PolicyChanged() as event:
            return Said("policy", event.why, event.by)
        case e.GovernanceBypassed() as event:
            return Said("alert", f"governance bypassed: {event.status}", step.by)
        case e.PayoutMalformed() | e.EntrySetAside() as event:
            return Said("alert", event.problem, step.by)
        case e.CancelRequested() as event:
            return Said("alert", f"cancel requested: {event.why}", step.by)
        case e.DeadLetterClosed() as event:
            return Said("alert", f"dead letter {event.letter}: {event.action}", event.by)
    raise TypeError(f"the audit has no place for {kind.__name__}")


def _confirmation(step: Step, event: e.PayoutObserved) -> Said | None:
    """A known payout's new status at the bank; what is seen again, late or first is no confirmation."""
    if step.before is None or step.after is None or step.after.bank_status == step.before.bank_status:
        return None
    return Said("confirmation", step.after.bank_status, event.source)


def lines(steps: Iterable[Step]) -> list[tuple[object, ...]]:
    """The rows that the steps add, in the order of COLUMNS."""
    return [_row(step, what) for step in steps if (what := said(step)) is not None]


async def write(db: asyncpg.Connection, steps: Sequence[Step]) -> None:
    """Add the steps' lines."""
    rows = lines(steps)
    if rows:
        await db.copy_records_to_table(NAME, records=rows, columns=COLUMNS)


def _row(step: Step, what: Said) -> tuple[object, ...]:
    record = step.after
    agent: str = getattr(step.event, "agent", "") or (record.agent if record else _policy_agent(step.event))
    amount: int | None = getattr(step.event, "amount", None)
    return (
        step.id,
        step.partition,
        step.seq,
        step.place,
        step.payout or None,
        text_key(agent),
        text_key(vendor_name(record.vendor_url, record.fund_account)) if record else "",
        moment(step.event.at),
        what.kind,
        what.decision,
        text(what.reason),
        text(what.actor),
        record.amount if amount is None and record else amount,
    )


def _policy_agent(event: e.Event) -> str:
    if isinstance(event, e.PolicyChanged) and event.scope.startswith("agent:"):
        return event.scope.removeprefix("agent:")
    return ""
