"""From archived entries to steps: each event at its place, with its payout's record before and after it. Pure.

All views fold the same steps, so they cannot disagree on what a payout was when something happened to it.
"""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Protocol

import msgspec
from msgspec import Struct

from streamproc.archive.text import text_key
from streamproc.domain.events import Event
from streamproc.domain.payouts import PayoutRecord, evolve
from streamproc.domain.wire import decode_events, payout_of
from streamproc.errors import LogBroken, Unprocessable

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


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


class Meta(Struct, frozen=True):
    """What the views use of an entry's metadata."""

    by: str = ""
    actor: str = ""


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

    `before` and `after` are its payout's record; None while the payout is unknown, or where there is none.
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


_decode_meta = msgspec.json.Decoder(Meta).decode


def decode(partition: int, entry: Archived) -> Decoded:
    """The entry's events. Raises LogBroken, naming the entry, for anything unknown: no fact is skipped."""
    try:
        events = decode_events(entry.e)
        meta = _decode_meta(entry.m)
    except (Unprocessable, msgspec.DecodeError) as problem:
        raise LogBroken(f"entry {partition}:{entry.id}: {problem}") from problem
    payout = ""
    for event in events:
        found = payout_of(event)
        if found and found != payout:
            if payout:
                raise LogBroken(f"entry {partition}:{entry.id} is about several payouts; one is the limit")
            payout = found
    return Decoded(entry.seq, entry.id, text_key(payout), meta.actor or meta.by, events)


def steps_of(
    partition: int, entries: Sequence[Decoded], records: Mapping[str, PayoutRecord | None]
) -> list[Step]:
    """The steps of `entries` in order, starting from the payouts' `records`, which are left as they are.

    Raises LogBroken, naming the event, where an event cannot follow what is known of its payout.
    """
    now: dict[str, PayoutRecord | None] = {}
    steps: list[Step] = []
    for found in entries:
        owner = found.payout
        record = now[owner] if owner in now else records.get(owner) if owner else None
        for place, event in enumerate(found.events):
            # A set-aside entry may name no payout; then it is about none.
            payout = owner if owner and getattr(event, "payout", "") else ""
            before = record if payout else None
            try:
                after = evolve(before, event)
            except ValueError as problem:
                raise LogBroken(f"event {partition}:{found.id}:{place}: {problem}") from problem
            if payout:
                record = after
            steps.append(Step(partition, found.seq, found.id, place, found.by, payout, event, before, after))
        if owner:
            now[owner] = record
    return steps


def moment(at_us: int) -> datetime:
    """µs since 1970 as an aware datetime, exactly: a float of seconds would round."""
    return EPOCH + timedelta(microseconds=at_us)
