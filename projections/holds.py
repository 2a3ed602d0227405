"""View `holds`: every payout that a person was asked about, and the outcome."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

import asyncpg

from projections.fold import Buffered, Step, moment
from streamproc.archive.sql import statements
from streamproc.archive.text import text, text_key
from streamproc.domain import events as e
from streamproc.domain.payouts import CHANGING, PayoutRecord

NAME = "holds"
VERSION = 1
READS = CHANGING
COLUMNS = (
    *("payout", "partition", "account", "agent", "amount", "reason", "reasons", "held_at", "expires_at"),
    *("state", "decided_at", "decided_by", "approvals"),
)

State: TypeAlias = Literal["open", "approved", "rejected", "expired", "over"]

_SQL = statements("projections", "holds.sql")


@dataclass(slots=True)
class Hold:
    """A hold after some steps. `opened` is the step that held the payout, None if that was earlier."""

    opened: Step | None
    state: State = "open"
    decided_at: int | None = None
    decided_by: str = ""
    approvals: int = 0


def holds_of(steps: Iterable[Step]) -> dict[str, Hold]:
    """The holds that the steps opened or changed, by payout."""
    found: dict[str, Hold] = {}
    for step in steps:
        before, after = step.before, step.after
        if after is None or after is before:
            continue
        if before is not None and before.decision == "HELD":
            hold = found.get(step.payout)
            if hold is None:
                hold = found[step.payout] = Hold(None, _state(before))
            _follow(hold, after, getattr(step.event, "by", ""), step.event.at)
        elif after.decision == "HELD":
            found[step.payout] = hold = Hold(step)
            _follow(hold, after, "", step.event.at)
    return found


def _follow(hold: Hold, record: PayoutRecord, by: str, at: int) -> None:
    hold.approvals = sum(review.action == "approve" for review in record.reviews)
    state = _state(record)
    if state != hold.state:
        hold.state, hold.decided_at, hold.decided_by = state, at, by


def _state(record: PayoutRecord) -> State:
    match record.decision, record.reason:
        case "APPROVED", _:
            return "approved"
        case "REJECTED", "HOLD_EXPIRED":
            return "expired"
        case "REJECTED", _:
            return "rejected"
    return "open" if record.state == "held" else "over"


async def write(db: asyncpg.Connection, steps: Sequence[Step]) -> None:
    """Bring the view up to date with `steps`."""
    found = sorted(holds_of(steps).items())
    new = [_row(payout, hold, hold.opened) for payout, hold in found if hold.opened is not None]
    old = [(payout, *_outcome(hold)) for payout, hold in found if hold.opened is None]
    if new:
        await db.copy_records_to_table(NAME, records=new, columns=COLUMNS)
    if old:
        await db.execute(_SQL["update"], steps[0].partition, *map(list, zip(*old, strict=True)))


class Held(Buffered):
    """Keeps only the steps of a segment that are about held payouts: the view reads nearly all events."""

    def __init__(self) -> None:
        super().__init__(write)

    def add(self, steps: Sequence[Step]) -> None:
        """As `fold.Accumulator`."""
        super().add([step for step in steps if _is_about_hold(step)])


begin = Held


def _is_about_hold(step: Step) -> bool:
    before, after = step.before, step.after
    if after is None or after is before:
        return False
    return after.decision == "HELD" or (before is not None and before.decision == "HELD")


def _outcome(hold: Hold) -> tuple[object, ...]:
    decided_at = None if hold.decided_at is None else moment(hold.decided_at)
    return (hold.state, decided_at, text(hold.decided_by), hold.approvals)


def _row(payout: str, hold: Hold, opened: Step) -> tuple[object, ...]:
    event = opened.event
    assert type(event) is e.PayoutDecided
    return (
        payout,
        opened.partition,
        text(event.account),
        text_key(event.agent),
        event.amount,
        event.reason,
        event.codes,
        moment(event.at),
        moment(event.hold_expires_at),
        *_outcome(hold),
    )
