"""What Redis must hold of a payout, and which groups have not handled which entries, by archived entries alone.
Pure."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TypeAlias

from msgspec import Struct

from streamproc.domain.asks import slot_of
from streamproc.domain.budget import US, Admission, BudgetAnswer, Window, window_end_s
from streamproc.domain.events import (
    DeadLetterClosed,
    Event,
    Fact,
    PayoutObserved,
    TimerFired,
    VelocityChecked,
)
from streamproc.domain.payouts import PayoutRecord, fold, is_terminal, settlement_due
from streamproc.domain.record import Reservation
from streamproc.domain.reminders import hold_timers
from streamproc.domain.states import MOVING_STATUSES, OPEN_STATUSES
from streamproc.domain.wire import Meta

SLOTS_SPARE = 256
"""Rate slots kept of an agent beyond its limit, since commits come in another order than admissions."""

Inputs: TypeAlias = Mapping[str, frozenset[type[Fact]]]
"""Group -> the events that others write for it."""


class Stored(Struct, frozen=True):
    """An archived entry, decoded."""

    id: str
    meta: Meta
    events: list[Event]


class Rebuilt(Struct, frozen=True):
    """What Redis must hold of a payout. `pending`: group -> entries that it may not have handled, in order."""

    record: PayoutRecord | None
    admission: Admission
    timers: list[TimerFired]
    pending: dict[str, list[str]]


class Unhandled:
    """Follows a log and keeps the entries that each group has not answered."""

    def __init__(self, inputs: Inputs, counts: Callable[[Event], bool] = lambda _: True) -> None:
        """`counts`: whether an input is followed."""
        self._inputs = inputs
        self._counts = counts
        self._open: dict[tuple[str, str], None] = {}

    def see(self, entry: Stored) -> None:
        """Take in the next entry."""
        writer, cause = entry.meta.by, entry.meta.cause
        if cause:
            self._open.pop((writer, cause), None)
        for event in entry.events:
            if type(event) is DeadLetterClosed:
                if event.action == "redrive":
                    self._open[event.group, event.entry] = None
                continue
            for group, kinds in self._inputs.items():
                if group != writer and type(event) in kinds and self._counts(event):
                    self._open[group, entry.id] = None

    def by_group(self) -> dict[str, list[str]]:
        """Group -> unanswered entries, in the order of the log."""
        found: dict[str, list[str]] = {}
        for group, entry in self._open:
            found.setdefault(group, []).append(entry)
        return found


def rebuild(
    history: Sequence[Stored],
    inputs: Inputs,
    observers: str,
    counts: Callable[[Event], bool] = lambda _: True,
) -> Rebuilt:
    """What Redis must hold of a payout, by all its archived entries in order.

    `observers`: the group that folds what the bank shows; `counts`: whether an unanswered input is to be handled again.
    """
    unhandled = Unhandled(inputs, counts)
    for entry in history:
        unhandled.see(entry)
    pending = unhandled.by_group()
    record = _record(history, frozenset(pending.get(observers, ())))
    fired = {event.at for entry in history for event in entry.events if type(event) is TimerFired}
    return Rebuilt(record, admission_in(history, record), timers_of(record, fired), pending)


def _record(history: Sequence[Stored], pending: frozenset[str]) -> PayoutRecord | None:
    """The record, without pending observations where these make a difference to how they are handled.

    Observations commute, so it does no harm that a pending one is folded already, with two exceptions: the first look
    at an open payout decides it, and a rejected payout that becomes queued is cancelled by whoever sees it become so.
    """
    whole = fold(event for entry in history for event in entry.events)
    shown = [event.facts.status for entry in history if entry.id in pending for event in _observed(entry)]
    if whole is None or not shown:
        return whole
    undecided = whole.decision is None and not whole.bypassed
    if undecided and OPEN_STATUSES.isdisjoint(shown):
        return whole
    left_out = {
        id(event)
        for entry in history
        if entry.id in pending
        for event in _observed(entry)
        if undecided or event.facts.status == "queued"
    }
    try:
        return fold(event for entry in history for event in entry.events if id(event) not in left_out)
    except ValueError:  # an event follows that needs one of them, so that one was handled
        return whole


def _observed(entry: Stored) -> Iterator[PayoutObserved]:
    return (event for event in entry.events if type(event) is PayoutObserved)


def admission_in(history: Sequence[Stored], record: PayoutRecord | None) -> Admission:
    """The counters' answer to a payout, as far as the log tells it."""
    rate = None
    for entry in history:
        for event in entry.events:
            if type(event) is VelocityChecked and event.number:
                rate = slot_of(event)
    return Admission(rate, budget_answer(record.reservation) if record and record.reservation else None)


def budget_answer(reservation: Reservation) -> BudgetAnswer:
    """The answer that granted a reservation. The windows' ends are not in the log; those used here are never too
    early."""
    windows = tuple(
        Window(use.scope, use.window, use.limit, window_end_s(use.window)) for use in reservation.windows
    )
    before = tuple((use.reserved, use.committed) for use in reservation.windows)
    return BudgetAnswer(reservation.number, reservation.amount, -1, windows, before)


def timers_of(
    record: PayoutRecord | None, fired: frozenset[int] | set[int] = frozenset()
) -> list[TimerFired]:
    """The timers of an open hold that have not fired (`fired`: their times, µs)."""
    if record is None or record.state != "held" or not record.hold_expires_at:
        return []
    timers = hold_timers(record.payout, record.decided_at, record.hold_expires_at)
    return [timer for timer in timers if timer.at not in fired]


class _Slots(Struct):
    """One agent's latest rate slots, in the order of their admission numbers."""

    taken: list[tuple[int, str, int]] = []
    """(number, payout, time received in µs)."""
    newest: int = 0
    """The newest time of those that are not kept any more."""
    window_us: int = 0
    limit: int = 0
    last_ms: int = 0


class Rates:
    """Rate slots by the log, counted as admit.lua does: a late payout counts at the newest slot's time."""

    def __init__(self) -> None:
        self._agents: dict[str, _Slots] = {}

    def add(self, agent: str, event: VelocityChecked, received_at: int, entry_ms: int) -> None:
        """Take in a checked payout of `agent`. It took a slot unless there was none, or no limit."""
        if not event.number or not event.limit or slot_of(event).limited:
            return
        slots = self._agents.setdefault(agent, _Slots())
        slots.taken.append((event.number, event.payout, received_at))
        slots.window_us, slots.limit = event.window_s * US, event.limit
        slots.last_ms = max(slots.last_ms, entry_ms)
        if len(slots.taken) > 2 * (slots.limit + SLOTS_SPARE):
            self._forget(slots)

    def _forget(self, slots: _Slots) -> None:
        """Drop slots that cannot count any more: no window holds more than the limit."""
        slots.taken.sort()
        gone, slots.taken = (
            slots.taken[: -slots.limit - SLOTS_SPARE],
            slots.taken[-slots.limit - SLOTS_SPARE :],
        )
        slots.newest = max(slots.newest, *(at for _, _, at in gone))

    def agents(self) -> Iterator[tuple[str, dict[str, int], int, int]]:
        """For each agent its slots (payout -> time counted, µs), the window (µs), and when the last one was recorded
        (ms)."""
        for agent, slots in self._agents.items():
            newest, counted = slots.newest, dict[str, int]()
            for _, payout, received_at in sorted(slots.taken):
                newest = max(newest, received_at)
                counted[payout] = newest
            live = {payout: at for payout, at in counted.items() if at > newest - slots.window_us}
            yield agent, live, slots.window_us, slots.last_ms


def is_over(record: PayoutRecord) -> bool:
    """Whether nothing is left to do for a payout, whichever of its entries were handled: it ended as decided and is
    settled."""
    if not is_terminal(record) or settlement_due(record) is not None:
        return False
    if record.bypassed or record.decision == "APPROVED":
        return True
    # If so, it may still have to be recorded as bypassed.
    moved = record.bank_status in MOVING_STATUSES | {
        "failed",
        "reversed",
    }
    return record.decision is not None and not moved
