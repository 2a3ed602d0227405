"""What Redis must hold of a payout, and who has not handled what, from the archived entries alone. Pure."""

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
from streamproc.domain.payouts import (
    MOVING_STATUSES,
    OPEN_STATUSES,
    PayoutRecord,
    Reservation,
    fold,
    is_terminal,
    settlement_due,
)
from streamproc.domain.reminders import hold_timers
from streamproc.domain.wire import Meta

SLOTS_SPARE = 256
"""Rate slots that are kept of an agent beyond its limit: commits come in another order than admissions."""

Inputs: TypeAlias = Mapping[str, frozenset[type[Fact]]]
"""Group -> what it is given by others."""


class Stored(Struct, frozen=True):
    """An archived entry, understood."""

    id: str
    meta: Meta
    events: list[Event]


class Rebuilt(Struct, frozen=True):
    """A payout as Redis must have it. `pending`: per group the entries that it may not have handled, in order."""

    record: PayoutRecord | None
    admission: Admission
    timers: list[TimerFired]
    pending: dict[str, list[str]]


class Unhandled:
    """Follows a log and keeps, per group, the entries that it has not answered."""

    def __init__(self, inputs: Inputs, counts: Callable[[Event], bool] = lambda _: True) -> None:
        """`counts`: which inputs are followed."""
        self._inputs = inputs
        self._counts = counts
        self._open: dict[tuple[str, str], None] = {}

    def see(self, entry: Stored) -> None:
        """The next entry."""
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
        """What is open, by group, in the order of the log."""
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
    """A payout from all its archived entries, in order.

    `observers` is the group that folds what the bank shows; `counts`: which inputs come again where nobody answered.
    """
    unhandled = Unhandled(inputs, counts)
    for entry in history:
        unhandled.see(entry)
    pending = unhandled.by_group()
    record = _record(history, frozenset(pending.get(observers, ())))
    fired = {event.at for entry in history for event in entry.events if type(event) is TimerFired}
    return Rebuilt(record, admission_in(history, record), timers_of(record, fired), pending)


def _record(history: Sequence[Stored], pending: frozenset[str]) -> PayoutRecord | None:
    """The record as it was before what is pending was handled, where that makes a difference.

    Observations commute, so one too many is harmless, but for two: the first look at a payout that is open decides
    it, and a payout that is rejected and then queued is cancelled by whoever sees it become queued.
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
    except ValueError:  # something was recorded before any other observation: so that one was handled
        return whole


def _observed(entry: Stored) -> Iterator[PayoutObserved]:
    return (event for event in entry.events if type(event) is PayoutObserved)


def admission_in(history: Sequence[Stored], record: PayoutRecord | None) -> Admission:
    """What was answered to a payout, as far as the log tells it."""
    rate = None
    for entry in history:
        for event in entry.events:
            if type(event) is VelocityChecked and event.number:
                rate = slot_of(event)
    return Admission(rate, budget_answer(record.reservation) if record and record.reservation else None)


def budget_answer(reservation: Reservation) -> BudgetAnswer:
    """The reservation as it was granted. The windows' ends are not in the log: those here are never too early."""
    windows = tuple(
        Window(use.scope, use.window, use.limit, window_end_s(use.window)) for use in reservation.windows
    )
    before = tuple((use.reserved, use.committed) for use in reservation.windows)
    return BudgetAnswer(reservation.number, reservation.amount, -1, windows, before)


def timers_of(
    record: PayoutRecord | None, fired: frozenset[int] | set[int] = frozenset()
) -> list[TimerFired]:
    """What must still happen later of a hold that is open: reminders and expiry that have not come (`fired`: µs)."""
    if record is None or record.state != "held" or not record.hold_expires_at:
        return []
    timers = hold_timers(record.payout, record.decided_at, record.hold_expires_at)
    return [timer for timer in timers if timer.at not in fired]


class _Slots(Struct):
    """One agent's rate slots of late, in the order of their admission numbers."""

    taken: list[tuple[int, str, int]] = []
    """Number, payout, time received (µs)."""
    newest: int = 0
    """The newest time counted among those that are no longer kept."""
    window_us: int = 0
    limit: int = 0
    last_ms: int = 0


class Rates:
    """Rate slots from the log, as admit.lua counts them: a late payout counts as of the newest before it."""

    def __init__(self) -> None:
        self._agents: dict[str, _Slots] = {}

    def add(self, agent: str, event: VelocityChecked, received_at: int, entry_ms: int) -> None:
        """A payout of `agent` that was checked; it has taken a slot unless there was none, or no limit."""
        if not event.number or not event.limit or slot_of(event).limited:
            return
        slots = self._agents.setdefault(agent, _Slots())
        slots.taken.append((event.number, event.payout, received_at))
        slots.window_us, slots.limit = event.window_s * US, event.limit
        slots.last_ms = max(slots.last_ms, entry_ms)
        if len(slots.taken) > 2 * (slots.limit + SLOTS_SPARE):
            self._forget(slots)

    def _forget(self, slots: _Slots) -> None:
        """No window holds more than its limit, so older ones than that many no longer count."""
        slots.taken.sort()
        gone, slots.taken = (
            slots.taken[: -slots.limit - SLOTS_SPARE],
            slots.taken[-slots.limit - SLOTS_SPARE :],
        )
        slots.newest = max(slots.newest, *(at for _, _, at in gone))

    def agents(self) -> Iterator[tuple[str, dict[str, int], int, int]]:
        """Each agent, its slots (payout -> time counted, µs), the window (µs), and when the last was recorded (ms)."""
        for agent, slots in self._agents.items():
            newest, counted = slots.newest, dict[str, int]()
            for _, payout, received_at in sorted(slots.taken):
                newest = max(newest, received_at)
                counted[payout] = newest
            live = {payout: at for payout, at in counted.items() if at > newest - slots.window_us}
            yield agent, live, slots.window_us, slots.last_ms


def is_over(record: PayoutRecord) -> bool:
    """Nothing is left to do for a payout, whatever of its entries was handled: it ended, as decided, and is settled."""
    if not is_terminal(record) or settlement_due(record) is not None:
        return False
    if record.bypassed or record.decision == "APPROVED":
        return True
    moved = record.bank_status in MOVING_STATUSES | {
        "failed",
        "reversed",
    }  # then a bypass may not be recorded yet
    return record.decision is not None and not moved
