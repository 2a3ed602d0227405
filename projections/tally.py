"""Tallies of an agent or vendor: how much was asked for, and what came of it. They are sums, so they can be added."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, fields

import asyncpg

from projections.fold import Step, moment
from streamproc.archive.text import text_key
from streamproc.domain import events as e
from streamproc.domain.payouts import ASKED, PayoutRecord


@dataclass(slots=True)
class Tally:
    """What steps add to one agent or vendor. Amounts in paise, times in µs (0: none yet)."""

    payouts: int = 0
    amount: int = 0
    approved: int = 0
    approved_amount: int = 0
    rejected: int = 0
    held: int = 0
    bypassed: int = 0
    processed_amount: int = 0
    threats: int = 0
    first_at: int = 0
    last_at: int = 0


def tallies(
    steps: Iterable[Step], name_of: Callable[[PayoutRecord], str], found: dict[str, Tally] | None = None
) -> dict[str, Tally]:
    """`found` with what the steps add, by the name that `name_of` gives; steps with an empty name are left out."""
    found = {} if found is None else found
    for step in steps:
        record = step.after
        if record is None or (step.before is not None and type(step.event) not in _LATER):
            continue
        name = name_of(record)
        tally = found.get(name)
        if tally is None:
            tally = found[name] = Tally()
        _add(tally, step, record)
    found.pop("", None)
    return found


class Tallies:
    """The tallies of a segment."""

    def __init__(self, name_of: Callable[[PayoutRecord], str], statement: str) -> None:
        self._name_of, self._statement = name_of, statement
        self._found: dict[str, Tally] = {}

    def add(self, steps: Sequence[Step]) -> None:
        """As `fold.Accumulator`."""
        tallies(steps, self._name_of, self._found)

    async def write(self, db: asyncpg.Connection, partition: int) -> None:
        """As `fold.Accumulator`."""
        found, self._found = self._found, {}
        await add(db, self._statement, partition, found)


_LATER: frozenset[type[e.Fact]] = frozenset({e.PayoutDecided, e.GovernanceBypassed, e.PayoutSettled})
"""Events that change a tally besides the first one of a payout."""
COUNTED = ASKED | _LATER
"""Events that may change a tally."""


def _add(tally: Tally, step: Step, record: PayoutRecord) -> None:
    event = step.event
    if step.before is None:
        tally.payouts += 1
        tally.amount += record.amount
    elif type(event) is e.PayoutDecided:
        _add_decision(tally, event)
    elif type(event) is e.GovernanceBypassed:
        tally.bypassed += 1
    elif type(event) is e.PayoutSettled:
        _add_settlement(tally, step, event)
    at = event.at
    if at < tally.first_at or not tally.first_at:
        tally.first_at = at
    if at > tally.last_at:
        tally.last_at = at


def _add_decision(tally: Tally, event: e.PayoutDecided) -> None:
    if event.decision == "APPROVED":
        tally.approved += 1
        tally.approved_amount += event.amount
    elif event.decision == "REJECTED":
        tally.rejected += 1
        tally.threats += event.reason == "RISK_HIGH"
    else:
        tally.held += 1


def _add_settlement(tally: Tally, step: Step, event: e.PayoutSettled) -> None:
    held = step.before.reservation.state if step.before and step.before.reservation else ""
    if event.settlement == "committed":
        tally.processed_amount += event.amount if held == "reserved" else 0  # else it is fees that came later
    elif held == "committed":
        tally.processed_amount -= event.amount  # reversed after it was processed


async def add(db: asyncpg.Connection, statement: str, partition: int, found: dict[str, Tally]) -> None:
    """Add the tallies to their rows by `statement`."""
    rows: Sequence[tuple[object, ...]] = [_row(name, tally) for name, tally in _cut(found)]
    if rows:
        await db.execute(statement, partition, *map(list, zip(*rows, strict=True)))


def _cut(found: dict[str, Tally]) -> list[tuple[str, Tally]]:
    """Tallies by stored names: these are cut for the index, so two long names may become one."""
    stored: dict[str, Tally] = {}
    for name, tally in found.items():
        key = text_key(name)
        stored[key] = _sum(stored[key], tally) if key in stored else tally
    return sorted(stored.items())


def _sum(tally: Tally, other: Tally) -> Tally:
    counts = {f.name: getattr(tally, f.name) + getattr(other, f.name) for f in fields(Tally)}
    counts |= {"first_at": min(tally.first_at, other.first_at), "last_at": max(tally.last_at, other.last_at)}
    return Tally(**counts)


def _row(name: str, tally: Tally) -> tuple[object, ...]:
    # Sums of amounts go as text: they may outgrow 64 bits, which is why the columns are numeric.
    return (
        name,
        tally.payouts,
        str(tally.amount),
        tally.approved,
        str(tally.approved_amount),
        tally.rejected,
        tally.held,
        tally.bypassed,
        str(tally.processed_amount),
        tally.threats,
        moment(tally.first_at),
        moment(tally.last_at),
    )
