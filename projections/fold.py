"""From log entries to steps: each event at its place, with its payout's record before and after it. Pure.

All views fold the same steps, so they cannot disagree on what a payout was when something happened to it.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import msgspec
from msgspec import Struct

from streamproc.archive.store import Entry
from streamproc.domain.events import Event
from streamproc.domain.payouts import PayoutRecord, evolve
from streamproc.domain.wire import decode_events, payout_of
from streamproc.errors import LogBroken, Unprocessable

KEY_CHARS_MAX = 512
"""Ids come from outside; four bytes each still fit into a Postgres index row (2,704 bytes)."""


class Meta(Struct, frozen=True):
    """What the views use of an entry's metadata."""

    by: str = ""
    actor: str = ""


class Decoded(NamedTuple):
    """An entry that was understood. `payout` is empty where it is about none."""

    id: str
    payout: str
    by: str
    events: list[Event]


class Step(NamedTuple):
    """One event of the log, at its `place` in its entry.

    `before` and `after` are its payout's record; None while the payout is unknown, or where there is none.
    """

    partition: int
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


def decode(partition: int, entry: Entry) -> Decoded:
    """The entry's events. Raises LogBroken, naming the entry, for anything unknown: no fact is skipped."""
    try:
        events = decode_events(entry.e)
        meta = _decode_meta(entry.m)
    except (Unprocessable, msgspec.DecodeError) as problem:
        raise LogBroken(f"entry {partition}:{entry.id}: {problem}") from problem
    payouts = {text_key(payout) for event in events if (payout := payout_of(event))}
    if len(payouts) > 1:
        raise LogBroken(f"entry {partition}:{entry.id} is about {len(payouts)} payouts; one is the limit")
    return Decoded(entry.id, payouts.pop() if payouts else "", meta.actor or meta.by, events)


def steps_of(partition: int, entries: Sequence[Decoded], records: Mapping[str, PayoutRecord]) -> list[Step]:
    """The steps of `entries` in order, starting from the payouts' `records`, which are left as they are.

    Raises LogBroken, naming the event, where an event cannot follow what is known of its payout.
    """
    now: dict[str, PayoutRecord | None] = dict(records)
    steps: list[Step] = []
    for entry in entries:
        for place, event in enumerate(entry.events):
            # A set-aside entry may name no payout; then it is about none.
            payout = entry.payout if payout_of(event) else ""
            before = now.get(payout)
            try:
                after = evolve(before, event)
            except ValueError as problem:
                raise LogBroken(f"event {partition}:{entry.id}:{place}: {problem}") from problem
            if payout:
                now[payout] = after
            steps.append(Step(partition, entry.id, place, entry.by, payout, event, before, after))
    return steps


def text(value: str) -> str:
    """`value` as Postgres can hold it: it refuses U+0000, and one such byte from outside must not stop the log."""
    return value.replace("\0", "\ufffd") if "\0" in value else value


def text_key(value: str) -> str:
    """`text`, short enough to be indexed."""
    return text(value[:KEY_CHARS_MAX])
