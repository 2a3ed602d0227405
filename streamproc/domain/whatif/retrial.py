"""Judges one partition's log again. Entries come in as the log has them and are judged in the order of their numbers.

Taken from the log: what came in, the vendors' reputations, reviewers' answers, what the bank did. The rules decide
again, on counters that hold what the candidate let pass, so a payout that it rejects leaves room for later ones. What
cannot be known is assumed, and counted. Under the policies that were in force nothing may change.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TypeAlias

from streamproc.domain.asks import slot_of
from streamproc.domain.events import (
    BudgetReserved,
    GovernanceBypassed,
    PayoutDecided,
    PayoutObserved,
    PayoutRequested,
    PayoutSettled,
    PayoutStopped,
    PolicyChanged,
    ReviewCounted,
    VelocityChecked,
)
from streamproc.domain.payouts import fold
from streamproc.domain.policy import PolicyBook, ScopeState, scopes_after
from streamproc.domain.states import OPEN_STATUSES
from streamproc.domain.whatif.comparison import Comparison
from streamproc.domain.whatif.fates import Fates
from streamproc.domain.whatif.judge import Assumptions, Judge
from streamproc.domain.whatif.order import InOrder
from streamproc.domain.whatif.trial import Books, DecodedEntry, Trial, trial_of

Scopes: TypeAlias = Mapping[str, ScopeState]
Overlay: TypeAlias = Callable[[Scopes], Scopes]
"""Puts the candidate's scopes over those that were in force."""

OBSERVED_MAX = 50_000
"""Observations kept for the decision that they cause, some 1 kB each; an older one is looked up."""
FORGET_EVERY = 5_000
"""Decisions between two clean-ups of what is no longer needed."""
KEPT_AFTER_END_S = 86_400
"""How long a reservation is kept after its last window ended, since a late payout may share that window."""

_WITHOUT_A_DECISION = frozenset({BudgetReserved, GovernanceBypassed, VelocityChecked})
"""Events that are read for themselves where their entry has no decision."""
MOVED = "moved at the bank without an approval here"
NOT_FOUND = "what the decision was made on is not in the archive"


class Retrial:
    """Feed it the entries of one partition in log order, then call `finish`.

    `overlay` None judges under the policies that were in force. Decisions before `since_us` are taken as they are.
    """

    def __init__(
        self, overlay: Overlay | None, assume: Assumptions, *, since_us: int = 0, first_number: int | None = 1
    ) -> None:
        self.found = Comparison()
        self._overlay = overlay
        self._since_us = since_us
        self._has_begun = False
        self._judge = Judge(assume, self.found, strict=overlay is None)
        self._fates = Fates(self._judge, assume, self.found)
        self._order: InOrder[tuple[int, Callable[[], None]]] = InOrder(first_number)
        """Steps to do, each with the time (ms) of its entry."""
        self._now_ms = 0
        """Time of the entry being read."""
        self._scopes: Scopes = {}
        self._books = self._books_of(self._scopes)
        self._observed: dict[str, PayoutObserved | PayoutRequested] = {}
        self._held: set[str] = set()
        """Held payouts whose hold's end was not read yet."""
        self._stopped: set[str] = set()
        """Payouts that execution found frozen, until the decision that follows."""
        self._decided = 0
        self.decided: frozenset[str] = frozenset()
        """Payouts that moved at the bank without an approval but were decided all the same, so they are judged."""

    def remember(self, entry: str, event: PayoutObserved | PayoutRequested) -> None:
        """Keep an observation or a request for the decision that it may cause. Only an open payout is decided."""
        if not isinstance(event, PayoutObserved) or event.facts.status in OPEN_STATUSES:
            self._observed[entry] = event
            if len(self._observed) > OBSERVED_MAX:
                for old in list(self._observed)[: OBSERVED_MAX // 10]:
                    del self._observed[old]

    def misses(self, entry: DecodedEntry) -> bool:
        """Whether the entry is a first decision whose cause is not kept and must be looked up."""
        return entry.cause not in self._observed and any(
            type(event) is PayoutDecided
            and not self._ends_hold(entry, event)
            and event.payout not in self._stopped
            for event in entry.events
        )

    def feed(self, entry: DecodedEntry) -> None:
        """Take the next entry, and judge whatever is in order then."""
        self._now_ms = entry.at_ms
        for payout in self._fates.expired(entry.at_ms * 1000):
            self._put(None, partial(self._fates.expire, payout))
        changes: list[PolicyChanged] = []
        for event in entry.events:
            if type(event) is PayoutObserved or type(event) is PayoutRequested:
                self.remember(entry.id, event)
            elif type(event) is PayoutStopped:
                self._stopped.add(event.payout)
            elif type(event) is PolicyChanged:
                changes.append(event)
        self._put_in_force(changes)
        kinds = {type(event) for event in entry.events}
        if PayoutDecided in kinds:
            self._read_decision(entry)
        elif ReviewCounted in kinds:
            self._read_answer(entry)
        elif not kinds.isdisjoint(_WITHOUT_A_DECISION):
            self._read_undecided(entry)
        if PayoutSettled in kinds:
            self._read_settlement(entry)
        for _, step in self._order.ready():
            step()
        if self._decided >= FORGET_EVERY:
            self._decided = 0
            self._forget()

    def finish(self) -> Comparison:
        """The result, after the whole log was fed."""
        for _, step in self._order.rest():
            step()
        self._fates.close_all()
        self.found.skipped_numbers = self._order.skipped
        return self.found

    def _forget(self) -> None:
        """Forget what no later payout can need."""
        # Items that wait for a number need the windows of their own time, however much was read since.
        oldest_ms = min((at_ms for at_ms, _ in self._order.waiting()), default=self._now_ms)
        cut_s = oldest_ms // 1000 - KEPT_AFTER_END_S
        self._fates.forget_before(cut_s)
        self._judge.forget_before(cut_s)

    # ---- reading: which step, at which number ---------------------------------------------

    def _put(self, number: int | None, step: Callable[[], None]) -> None:
        self._order.put(number, (self._now_ms, step))

    def _books_of(self, scopes: Scopes) -> Books:
        real = PolicyBook(scopes)
        if self._overlay is None or not self._has_begun:
            return Books(real, real)
        return Books(real, PolicyBook(self._overlay(scopes)))

    def _put_in_force(self, changes: Sequence[PolicyChanged]) -> None:
        """Put an entry's changes in force, and from `since_us` on the candidate over them."""
        begins = not self._has_begun and self._now_ms * 1000 >= self._since_us
        if begins or changes:
            self._has_begun = self._has_begun or begins
            self._scopes = scopes_after(self._scopes, *changes)
            self._books = self._books_of(self._scopes)

    def _read_decision(self, entry: DecodedEntry) -> None:
        decided = next(event for event in entry.events if type(event) is PayoutDecided)
        if self._ends_hold(entry, decided):
            self._held.discard(decided.payout)
            self._read_answer(entry)
            return
        if decided.payout in self._stopped:
            self._stopped.discard(decided.payout)
            self._put(entry.settled, partial(self._fates.stop, decided))
            return
        seen = self._observed.pop(entry.cause, None)
        if seen is None:
            if decided.at >= self._since_us:
                self.found.leave_out(NOT_FOUND, decided.amount)
            return
        self._decided += 1
        if decided.decision == "HELD":
            self._held.add(decided.payout)
        self._schedule(trial_of(entry.events, seen, self._books), entry)

    def _ends_hold(self, entry: DecodedEntry, decided: PayoutDecided) -> bool:
        """Whether the decision ends a hold, which may be older than all that is read."""
        return (
            decided.payout in self._held
            or decided.reason == "HOLD_EXPIRED"
            or any(type(event) is ReviewCounted for event in entry.events)
        )

    def _schedule(self, trial: Trial, entry: DecodedEntry) -> None:
        slot, room = trial.slot_number, trial.room_number
        if trial.stray:
            if trial.slot is not None:
                self._put(slot, partial(self._judge.take_recorded_slot, trial.slot, trial.record))
            if trial.room is not None:
                self._put(room, partial(self._judge.charge, trial.room))
            self._put(entry.settled, partial(self._judge_all, trial))
        elif slot is not None and room is not None and room != slot:
            self._put(slot, partial(self._begin, trial))
            self._put(room, partial(self._end, trial))
        else:
            self._put(room if slot is None else slot, partial(self._judge_all, trial))

    def _read_answer(self, entry: DecodedEntry) -> None:
        self._put(entry.settled, partial(self._fates.answer, entry, self._books))

    def _read_undecided(self, entry: DecodedEntry) -> None:
        """What was admitted and ended without a decision, or after one that did not know of it."""
        for event in entry.events:
            if type(event) is GovernanceBypassed:
                if event.at >= self._since_us and event.payout not in self.decided:
                    self.found.leave_out(MOVED, event.amount)
            elif type(event) is BudgetReserved:
                self._put(event.number, partial(self._take_bypassed, event))
            elif type(event) is VelocityChecked and event.number:
                seen = self._observed.get(entry.cause) or self._first_look(event.payout)
                record = fold([seen]) if seen is not None else None
                if record is not None:
                    take = partial(self._judge.take_recorded_slot, slot_of(event), record)
                    self._put(event.number, take)

    def _first_look(self, payout: str) -> PayoutObserved | PayoutRequested | None:
        """The earliest kept look at a payout."""
        return next((seen for seen in self._observed.values() if seen.payout == payout), None)

    def _read_settlement(self, entry: DecodedEntry) -> None:
        for event in entry.events:
            if type(event) is PayoutSettled:
                self._held.discard(event.payout)  # a hold that the bank ended gets no answer
                self._put(entry.settled, partial(self._fates.settle, event))

    # ---- the steps ------------------------------------------------------------------------

    def _judge_all(self, trial: Trial) -> None:
        self._begin(trial)
        self._end(trial)

    def _begin(self, trial: Trial) -> None:
        if trial.decided.at >= self._since_us:
            self._judge.begin(trial)
        elif trial.slot is not None and not trial.stray:
            self._judge.take_recorded_slot(trial.slot, trial.record)

    def _end(self, trial: Trial) -> None:
        if trial.decided.at >= self._since_us:
            self._fates.conclude(trial, self._judge.end(trial))
            return
        if trial.room is not None and not trial.stray:
            self._judge.charge(trial.room)
        self._fates.repeat(trial)

    def _take_bypassed(self, room: BudgetReserved) -> None:
        self._judge.charge(room)
        self._fates.bypass(room)
