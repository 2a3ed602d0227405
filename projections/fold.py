"""From archived entries to steps: each event with its payout's record before and after it. Pure.

All views fold the same steps, so they cannot disagree on a payout's state when something happened to it.
"""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Protocol

import asyncpg
from msgspec import Struct

from streamproc.archive.rows import Row
from streamproc.archive.text import text_key
from streamproc.domain import events as e
from streamproc.domain.approval import approved
from streamproc.domain.events import Event
from streamproc.domain.payouts import PayoutRecord, evolve
from streamproc.domain.wire import EVENT_KINDS, read_entry
from streamproc.errors import LogBroken, Unprocessable

POSTGRES_EPOCH_US = 946_684_800_000_000
"""2000-01-01, in µs since 1970."""


class Decoded(Struct, gc=False):
    """An entry that could be read. `payout` is empty if it is about none."""

    seq: int
    id: str
    payout: str
    by: str
    events: list[Event]


# gc=False: a rebuild makes millions, and nothing that they hold can refer back to them.
class Step(Struct, gc=False):
    """One event of the log: number `place` in the entry `entry`, which is the archive's row `seq`.

    `before` and `after` are its payout's record; None if the payout is not known yet, or there is none. Where an entry
    approves a payout at first sight, the whole change of the record is on the decision's step.
    """

    partition: int
    seq: int
    entry: str
    place: int
    by: str
    payout: str
    event: Event
    before: PayoutRecord | None
    after: PayoutRecord | None

    @property
    def id(self) -> str:
        """The event's id, `partition:entry:index`."""
        return f"{self.partition}:{self.entry}:{self.place}"


def having(field: str) -> frozenset[type[e.Fact]]:
    """The events that have this field."""
    return frozenset(kind for kind in EVENT_KINDS if field in kind.__struct_fields__)


ALL: frozenset[type[e.Fact]] = frozenset(EVENT_KINDS)
OF_PAYOUT = having("payout")


class Accumulator(Protocol):
    """What a view makes of the steps of a segment, of one partition and in order."""

    def add(self, steps: Sequence[Step]) -> None:
        """Add steps that the view reads. The caller may change the list afterwards."""
        ...

    async def write(self, db: asyncpg.Connection, partition: int) -> None:
        """Write what was added and begin anew. Must run in a transaction."""
        ...


class Unreadable(LogBroken):
    """An entry that cannot be read here. It may be passed over only if a person disowned it (ADR 32)."""


def decode(partition: int, entry: Row, is_disowned: Callable[[Row], bool] | None = None) -> Decoded:
    """The entry's events; none if it cannot be read and a person disowned it.

    Raises Unreadable, naming the entry, if it cannot be read otherwise, since no fact is skipped, and LogBroken for an
    entry about several payouts.
    """
    try:
        meta, events = read_entry(entry.e, entry.m)
    except Unprocessable as problem:
        if is_disowned is not None and is_disowned(entry):
            return Decoded(entry.seq, entry.id, "", "", [])
        raise Unreadable(
            f"entry {partition}:{entry.id}: {problem}. Where no version of streamproc wrote it, `streamproc log disown"
            f" {partition}:{entry.id}` lets everybody pass over it (in a recovery `recover --disown`)"
        ) from problem
    payout = ""
    for event in events:
        if type(event) in OF_PAYOUT and (found := event.payout) != payout and found:  # type: ignore[union-attr]
            if payout:
                raise LogBroken(f"entry {partition}:{entry.id} is about several payouts; one is the limit")
            payout = found
    return Decoded(entry.seq, entry.id, text_key(payout), meta.actor or meta.by, events)


def steps_of(
    partition: int,
    entries: Sequence[Decoded],
    records: Mapping[str, PayoutRecord | None],
    now: dict[str, PayoutRecord | None] | None = None,
    reads: frozenset[type[e.Fact]] = ALL,
) -> list[Step]:
    """The steps of `entries` in order, starting from the payouts' `records`, which are not changed.

    `now` has the records after earlier entries, and after this call those after these entries. A step that changes no
    record is left out if its event is not in `reads`. Raises LogBroken, naming the event, if it cannot follow what is
    known of its payout.
    """
    now = {} if now is None else now
    steps: list[Step] = []
    for entry in entries:
        payout = entry.payout
        if not payout:
            _add_steps(steps, partition, entry, None, reads)
            continue
        record = now[payout] if payout in now else records.get(payout)
        now[payout] = _add_steps(steps, partition, entry, record, reads)
    return steps


def _add_steps(
    steps: list[Step],
    partition: int,
    decoded: Decoded,
    record: PayoutRecord | None,
    reads: frozenset[type[e.Fact]],
) -> PayoutRecord | None:
    """Add the steps of one entry, whose payout has this record before it; the record after it."""
    seq, entry, by, owner, events = decoded.seq, decoded.id, decoded.by, decoded.payout, decoded.events
    place = 0
    try:
        after = _approved_at_sight(record, events) if len(events) > DECISION else None
        if after is not None:
            for event in events[:DECISION]:
                if type(event) in reads:
                    steps.append(Step(partition, seq, entry, place, by, owner, event, record, record))
                place += 1
            steps.append(Step(partition, seq, entry, place, by, owner, events[place], record, after))
            record, place = after, place + 1
            events = events[place:]
        for event in events:
            # `entry.set_aside` may name no payout; then it is about none.
            if owner and type(event) in OF_PAYOUT and event.payout:  # type: ignore[union-attr]
                before, record = record, evolve(record, event)
                if record is not before or type(event) in reads:
                    steps.append(Step(partition, seq, entry, place, by, owner, event, before, record))
            else:
                after = evolve(None, event)
                steps.append(Step(partition, seq, entry, place, by, "", event, None, after))
            place += 1
    except ValueError as problem:
        raise LogBroken(f"event {partition}:{entry}:{place}: {problem}") from problem
    return record


DECISION = 4
"""Index of the decision among the events of an approval at first sight."""


def _approved_at_sight(record: PayoutRecord | None, events: Sequence[Event]) -> PayoutRecord | None:
    """The record after an entry's first DECISION + 1 events, if they approve its payout at first sight; else None.

    The same as `evolve` gives, in one copy of the record instead of four: most payouts come this way.
    """
    screened, slot, vetted, reserved, decided = events[: DECISION + 1]
    if record is None or not (
        type(decided) is e.PayoutDecided
        and type(screened) is e.PayoutScreened
        and type(slot) is e.VelocityChecked
        and type(vetted) is e.ReputationChecked
        and type(reserved) is e.BudgetReserved
    ):
        return None
    fit_together = (
        screened.at == slot.at == vetted.at == reserved.at == decided.at
        and screened.payout == slot.payout == vetted.payout == reserved.payout == decided.payout != ""
        and screened.agent == decided.agent
        and screened.policy_version == decided.policy_version
        and decided.identity in ("unknown", screened.identity)
    )
    return approved(record, screened, vetted, reserved, decided) if fit_together else None


def moment(at_us: int) -> tuple[int]:
    """µs since 1970 as Postgres stores a timestamptz, µs since 2000, for a connection after `heads.speak_micros`.

    An aware datetime costs ten times as much to make and to encode.
    """
    return (at_us - POSTGRES_EPOCH_US,)


class Buffered:
    """The accumulator of a view with few events: it keeps the steps and writes them all at the end."""

    def __init__(self, write: Callable[[asyncpg.Connection, Sequence[Step]], Awaitable[None]]) -> None:
        self._write = write
        self._steps: list[Step] = []

    def add(self, steps: Sequence[Step]) -> None:
        """Keep the steps."""
        self._steps += steps

    async def write(self, db: asyncpg.Connection, partition: int) -> None:
        """Write the steps kept."""
        steps, self._steps = self._steps, []
        if steps:
            await self._write(db, steps)
