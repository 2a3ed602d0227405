"""From archived entries to steps: each event at its place, with its payout's record before and after it. Pure.

All views fold the same steps, so they cannot disagree on what a payout was when something happened to it.
"""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Protocol

import asyncpg
from msgspec import Struct

from streamproc.archive.text import text_key
from streamproc.domain import events as e
from streamproc.domain.approval import approved
from streamproc.domain.events import Event
from streamproc.domain.payouts import PayoutRecord, evolve
from streamproc.domain.wire import EVENT_KINDS, read_entry
from streamproc.errors import LogBroken, Unprocessable

POSTGRES_EPOCH_US = 946_684_800_000_000
"""2000-01-01, in µs since 1970."""


class Archived(Protocol):
    """A row of the archive, as far as folds go."""

    @property
    def seq(self) -> int: ...
    @property
    def id(self) -> str: ...
    @property
    def e(self) -> bytes: ...
    @property
    def m(self) -> bytes: ...


class Decoded(Struct, gc=False):
    """An entry that was understood. `payout` is empty where it is about none."""

    seq: int
    id: str
    payout: str
    by: str
    events: list[Event]


# Millions are made in a rebuild, and nothing they hold can point back at them: the collector need not know them.
class Step(Struct, gc=False):
    """One event of the log, at its `place` in the entry `entry`, which is the archive's number `seq`.

    `before` and `after` are its payout's record; None while the payout is unknown, or where there is none. Where an
    entry approves a payout at first sight, the record changes with the decision, not step by step before it.
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


class Sum(Protocol):
    """What a view makes of the steps of a segment of any length. One partition's, in order."""

    def add(self, steps: Sequence[Step]) -> None:
        """Take in steps that the view reads; the list is the caller's again afterwards."""
        ...

    async def write(self, db: asyncpg.Connection, partition: int) -> None:
        """Write it, and be empty. Must run in a transaction."""
        ...


class Unreadable(LogBroken):
    """An entry that cannot be read here. Only where a person disowned it may it be passed over (ADR 32)."""


def decode(partition: int, entry: Archived, is_disowned: Callable[[Archived], bool] | None = None) -> Decoded:
    """The entry's events; none, where it cannot be read and a person disowned it.

    Raises Unreadable, naming the entry, for anything else that is unknown, since no fact is skipped, and LogBroken for
    an entry about several payouts.
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
    told: frozenset[type[e.Fact]] = ALL,
) -> list[Step]:
    """The steps of `entries` in order, starting from the payouts' `records`, which are left as they are.

    `now` is what they became, by entries before and then by these. A step that changes no record is left out where its
    event is not in `told`.
    Raises LogBroken, naming the event, where an event cannot follow what is known of its payout.
    """
    now = {} if now is None else now
    steps: list[Step] = []
    for found in entries:
        owner, seq, entry, by = found.payout, found.seq, found.id, found.by
        record = now[owner] if owner in now else records.get(owner) if owner else None
        events, place = found.events, 0
        try:
            if (
                len(events) > DECISION
                and record is not None
                and (after := _approved_at_sight(record, events)) is not None
            ):
                for event in events[:DECISION]:
                    if type(event) in told:
                        steps.append(Step(partition, seq, entry, place, by, owner, event, record, record))
                    place += 1
                steps.append(Step(partition, seq, entry, place, by, owner, events[place], record, after))
                record, place = after, place + 1
                events = events[place:]
            for event in events:
                # A set-aside entry may name no payout; then it is about none.
                if owner and type(event) in OF_PAYOUT and event.payout:  # type: ignore[union-attr]
                    before, record = record, evolve(record, event)
                    if record is not before or type(event) in told:
                        steps.append(Step(partition, seq, entry, place, by, owner, event, before, record))
                else:
                    after = evolve(None, event)
                    steps.append(Step(partition, seq, entry, place, by, "", event, None, after))
                place += 1
        except ValueError as problem:
            raise LogBroken(f"event {partition}:{entry}:{place}: {problem}") from problem
        if owner:
            now[owner] = record
    return steps


DECISION = 4
"""Where the decision is among the events of an approval at first sight."""


def _approved_at_sight(record: PayoutRecord, events: Sequence[Event]) -> PayoutRecord | None:
    """The record after an entry's first events, of more than DECISION, where they approve its payout at first sight;
    None where they do not.

    What `evolve` makes of them, one after the other, in one copy instead of four: most payouts come this way.
    """
    screened, slot, vetted, reserved, decided = events[: DECISION + 1]
    if not (
        type(decided) is e.PayoutDecided
        and type(screened) is e.PayoutScreened
        and type(slot) is e.VelocityChecked
        and type(vetted) is e.ReputationChecked
        and type(reserved) is e.BudgetReserved
    ):
        return None
    plain = (
        screened.at == slot.at == vetted.at == reserved.at == decided.at
        and screened.payout == slot.payout == vetted.payout == reserved.payout == decided.payout != ""
        and screened.agent == decided.agent
        and screened.policy_version == decided.policy_version
        and decided.identity in ("unknown", screened.identity)
    )
    return approved(record, screened, vetted, reserved, decided) if plain else None


def moment(at_us: int) -> tuple[int]:
    """µs since 1970 as Postgres keeps a timestamptz, µs since 2000, for a connection that `run.speak_micros`.

    An aware datetime costs ten times as much to make and to encode.
    """
    return (at_us - POSTGRES_EPOCH_US,)


class Few:
    """The sum of a view whose events are few: its steps, written as the live view writes them."""

    def __init__(self, write: Callable[[asyncpg.Connection, Sequence[Step]], Awaitable[None]]) -> None:
        self._write = write
        self._steps: list[Step] = []

    def add(self, steps: Sequence[Step]) -> None:
        """Keep them."""
        self._steps += steps

    async def write(self, db: asyncpg.Connection, partition: int) -> None:
        """Write them."""
        steps, self._steps = self._steps, []
        if steps:
            await self._write(db, steps)
