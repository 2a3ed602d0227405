"""What happens to payouts after the rules, old and new side by side: reviewers' answers, ends of holds, the bank.

Reviewers answer as they did, if the candidate would have asked them; the bank does what it did to each payout.
"""

import heapq
from dataclasses import dataclass
from typing import Literal

from msgspec.structs import replace

from streamproc.domain.budget import US, Window
from streamproc.domain.case import NO_URL, Reputation, case_under
from streamproc.domain.domains import vendor_name
from streamproc.domain.events import (
    BudgetReserved,
    PayoutDecided,
    PayoutSettled,
    ReputationChecked,
    ReviewCounted,
)
from streamproc.domain.payouts import PayoutRecord
from streamproc.domain.policy import PolicyBook
from streamproc.domain.record import Review
from streamproc.domain.review import approvals_missing, recheck, reviewer_of, why_not_now, why_refused
from streamproc.domain.whatif.comparison import ChangedPayout, Comparison, Outcome
from streamproc.domain.whatif.judge import Assumptions, Judge, Judgement, recorded_windows
from streamproc.domain.whatif.trial import Books, DecodedEntry, Trial, reputation_of

NEW_HOLD = "held here only, nobody was asked then"
PAID = "approved here only: taken as paid, it stays in its budget windows"
REFUSED = "a reviewer's answer of then does not count under the candidate"


@dataclass(slots=True)
class Fate:
    """One payout, for as long as it can still change. `judged`: it is in the comparison."""

    payout: str
    agent: str
    vendor: str
    amount: int
    at: int
    judged: bool
    old_rules: Outcome
    old_end: Outcome
    new_rules: Outcome = ("", "")
    new_end: Outcome = ("", "")
    waits: bool = False
    """It was held, and the end of that hold was not read yet."""
    held_until: int = 0
    """When (µs) that hold ran out: an answer that counted then was given before."""
    hold: PayoutRecord | None = None
    """The record under the candidate, while it is held there."""
    reputation: Reputation = NO_URL
    windows: tuple[Window, ...] = ()
    charged: int = 0
    count_fees: bool = False
    fees: int = 0
    """Fees (paise) committed on top of what is charged."""
    money: Literal["", "reserved", "committed", "released"] = ""
    closed: bool = False
    timed: bool = False
    """The candidate's hold will expire by its own time to live."""
    settled: bool = False
    """The log settled it: nobody can stop it any more."""
    passed: bool = False
    """It did so while the candidate had another decision, so no settlement will follow."""

    def charge(self, windows: tuple[Window, ...], amount: int, *, count_fees: bool) -> None:
        """Note that it holds money in these windows."""
        self.windows, self.charged, self.money, self.count_fees = windows, amount, "reserved", count_fees

    @property
    def may_be_stopped(self) -> bool:
        """Whether it was approved and may still turn out to have been frozen before it was sent."""
        return self.judged and self.old_end[0] == "APPROVED" and not self.settled

    @property
    def ends_at(self) -> int:
        """When its last window ends (Unix s); without one, when it was decided."""
        return max((window.ends_at for window in self.windows), default=self.at // US)


class Fates:
    """The payouts of one partition that can still change."""

    def __init__(self, judge: Judge, assume: Assumptions, found: Comparison) -> None:
        self._judge, self._assume, self._found = judge, assume, found
        self._open: dict[str, Fate] = {}
        self._expiries: list[tuple[int, str]] = []
        """Ends (µs) of holds for which the log has no end: the candidate gives another time to live, or they outlive
        what ended them in the log."""

    # ---- the rules have spoken ----------------------------------------------------------

    def conclude(self, trial: Trial, judgement: Judgement) -> None:
        """Take in a trial's judgement."""
        fate = _fate_of(trial, judged=True)
        verdict = judgement.verdict
        fate.new_rules = fate.new_end = (verdict.decision, verdict.reason)
        fate.reputation = judgement.reputation
        if judgement.windows:
            fate.charge(judgement.windows, judgement.amount, count_fees=judgement.count_fees)
        if verdict.decision == "HELD":
            self._hold(fate, trial, judgement)
        self._keep(fate)

    def repeat(self, trial: Trial) -> None:
        """Take in a decision that is not judged again: it stays as it was."""
        fate = _fate_of(trial, judged=False)
        if trial.room is not None:
            room = trial.room
            fate.charge(recorded_windows(room), room.amount, count_fees=room.count_fees)
        self._keep(fate)

    def bypass(self, room: BudgetReserved) -> None:
        """Take in the reservation of a payout that was never decided."""
        nothing = ("", "")
        fate = Fate(room.payout, "", "", room.amount, room.at, False, nothing, nothing)
        fate.charge(recorded_windows(room), room.amount, count_fees=room.count_fees)
        self._keep(fate)

    def _hold(self, fate: Fate, trial: Trial, judgement: Judgement) -> None:
        if not fate.waits:
            self._found.assume(f"{NEW_HOLD}: {_NEW_HOLDS[self._assume.new_holds]}", fate.amount)
            if self._assume.new_holds == "approve":
                fate.new_end = ("APPROVED", "REVIEW_APPROVED")
                return
        agent = trial.books.candidate.agent(trial.record.agent)
        ttl_s = agent.policy.hold_ttl_s if agent is not None else 0
        verdict, held_at = judgement.verdict, trial.decided.at
        fate.hold = replace(
            trial.record,
            state="held",
            decision="HELD",
            decided_at=held_at,
            reason=verdict.reason,
            reasons=verdict.reasons,
            findings=list(verdict.findings),
            hold_expires_at=held_at + ttl_s * US,
        )
        if fate.waits and fate.hold.hold_expires_at != trial.decided.hold_expires_at:
            self._time(fate, fate.hold)

    def _time(self, fate: Fate, hold: PayoutRecord) -> None:
        if not fate.timed:
            fate.timed = True
            heapq.heappush(self._expiries, (hold.hold_expires_at, fate.payout))

    # ---- people and time ----------------------------------------------------------------

    def answer(self, entry: DecodedEntry, books: Books) -> None:
        """Apply a reviewer's answer, or a hold's end, from the log to the candidate's hold."""
        decided = next((event for event in entry.events if type(event) is PayoutDecided), None)
        counted = next((event for event in entry.events if type(event) is ReviewCounted), None)
        about = decided if decided is not None else counted
        fate = self._open.get(about.payout) if about is not None else None
        if fate is None:
            return
        if decided is not None:
            fate.old_end, fate.waits = (decided.decision, decided.reason), False
        if fate.hold is not None:
            if counted is not None:
                self._review(fate, fate.hold, counted, entry, books.candidate)
            elif decided is not None and _expired_at(decided) >= fate.hold.hold_expires_at:
                self._end_hold(fate, (decided.decision, decided.reason))
        self._keep(fate)

    def _review(
        self, fate: Fate, hold: PayoutRecord, counted: ReviewCounted, entry: DecodedEntry, book: PolicyBook
    ) -> None:
        # `at` is when a worker came to the answer, which may be later than it was given.
        answer = replace(counted, at=min(counted.at, fate.held_until - 1))
        if why_refused(hold, answer, book.people):
            self._found.assume(REFUSED, fate.amount)
            return
        if counted.action == "reject":
            self._end_hold(fate, ("REJECTED", "REVIEW_REJECTED"))
            return
        for event in entry.events:
            if type(event) is ReputationChecked:
                fate.reputation = reputation_of(event)
        case = case_under(book, hold, self._assume.zone, fate.reputation)
        found = recheck(case)
        if found:
            self._end_hold(fate, ("REJECTED", found[-1].code))
        elif why_not_now(case):
            self._found.assume(REFUSED, fate.amount)
        elif approvals_missing(case, book.people):
            fate.hold = replace(
                hold, reviews=[*hold.reviews, _review_of(counted, reviewer_of(counted, book.people))]
            )
        else:
            self._end_hold(fate, ("APPROVED", "REVIEW_APPROVED"))

    def expired(self, now_us: int) -> list[str]:
        """Payouts whose hold has ended by the candidate's time to live; call `expire` for each in its turn."""
        due = []
        while self._expiries and self._expiries[0][0] <= now_us:
            due.append(heapq.heappop(self._expiries)[1])
        return due

    def expire(self, payout: str) -> None:
        """End the candidate's hold, unless it was ended before."""
        fate = self._open.get(payout)
        if fate is not None and fate.hold is not None:
            self._end_hold(fate, ("REJECTED", "HOLD_EXPIRED"))
            self._keep(fate)

    def _end_hold(self, fate: Fate, end: Outcome) -> None:
        fate.hold, fate.new_end = None, end
        # If the log rejects it too, its own release follows in its own place, unless that has passed.
        if end[0] == "REJECTED" and (fate.passed or fate.old_end[0] != "REJECTED"):
            self._move(fate, "released")

    def stop(self, decided: PayoutDecided) -> None:
        """An approved payout was frozen before it was sent. That was a person's act, not a rule, so it stays."""
        fate = self._open.get(decided.payout)
        if fate is None:
            return
        fate.old_end = (decided.decision, decided.reason)
        if fate.new_end[0] == "APPROVED":
            fate.new_end = fate.old_end
        self._keep(fate)

    # ---- the bank -----------------------------------------------------------------------

    def settle(self, event: PayoutSettled) -> None:
        """Apply a settlement from the log, if the candidate had come to the same decision."""
        fate = self._open.get(event.payout)
        if fate is None:
            return
        fate.waits, fate.settled = False, True  # a settlement ends a hold too
        if not fate.judged or fate.old_end[0] == fate.new_end[0]:
            self._move(fate, event.settlement, event.fees)
            fate.hold = None
        else:
            fate.passed = True
        self._keep(fate)

    def _move(self, fate: Fate, settlement: Literal["committed", "released"], known_fees: int = 0) -> None:
        fees = known_fees if fate.count_fees and settlement == "committed" else 0
        if self._judge.settle(
            fate.windows, fate.charged, fate.money, settlement, charged=fate.fees, fees=fees
        ):
            fate.money, fate.fees = settlement, fees

    # ---- keeping and forgetting ---------------------------------------------------------

    def _keep(self, fate: Fate) -> None:
        """Keep it while it can change; report its end as soon as that is known."""
        if fate.hold is not None and not fate.waits:
            self._time(fate, fate.hold)
        waits = fate.waits or fate.hold is not None or fate.may_be_stopped
        if not waits:
            self._close(fate)
        if waits or fate.money in ("reserved", "committed"):
            self._open[fate.payout] = fate
        else:
            self._open.pop(fate.payout, None)

    def _close(self, fate: Fate) -> None:
        if fate.closed or not fate.judged:
            return
        fate.closed = True
        if fate.new_end[0] == "APPROVED" != fate.old_end[0]:
            self._found.assume(PAID, fate.amount)
        self._found.close(
            ChangedPayout(
                payout=fate.payout,
                agent=fate.agent,
                vendor=fate.vendor,
                amount=fate.amount,
                at=fate.at,
                old_rules=fate.old_rules,
                new_rules=fate.new_rules,
                old_end=fate.old_end,
                new_end=fate.new_end,
            )
        )

    def close_all(self) -> None:
        """The log has ended: whatever is held now counts as held."""
        for fate in self._open.values():
            self._close(fate)

    def forget_before(self, cut_s: int) -> None:
        """Forget payouts whose windows ended before `cut_s` (Unix s): no later payout shares a window with them."""
        for payout, fate in list(self._open.items()):
            held = fate.hold is not None and fate.hold.hold_expires_at // US >= cut_s
            if not fate.waits and not held and fate.ends_at < cut_s:
                self._close(fate)
                del self._open[payout]


_NEW_HOLDS = {
    "wait": "taken as never answered, it expires in its time",
    "approve": "taken as approved at once",
}


def _fate_of(trial: Trial, *, judged: bool) -> Fate:
    record, decided = trial.record, trial.decided
    old = (decided.decision, decided.reason)
    vendor = vendor_name(record.vendor_url, record.fund_account)
    fate = Fate(record.payout, decided.agent, vendor, record.amount, decided.at, judged, old, old)
    fate.waits, fate.held_until = decided.decision == "HELD", decided.hold_expires_at
    return fate


def _expired_at(decided: PayoutDecided) -> int:
    """The timer's due time, at which the hold expires."""
    at = next((f.evidence.get("expired_at") for f in decided.findings if f.code == "HOLD_EXPIRED"), None)
    return at if isinstance(at, int) else decided.at


def _review_of(counted: ReviewCounted, name: str) -> Review:
    return Review(
        by=name,
        via=counted.via,
        action=counted.action,
        why=counted.why,
        channel=counted.channel,
        at=counted.at,
    )
