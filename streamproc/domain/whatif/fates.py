"""What becomes of payouts after the rules, old and new side by side: reviewers' answers, ends of holds, the bank.

Reviewers answer as they did, as far as the candidate would have asked them; the bank does what it did, to what it had.
"""

import heapq
from dataclasses import dataclass
from typing import Literal

from msgspec.structs import replace

from streamproc.domain.budget import US, Window
from streamproc.domain.domains import vendor_name
from streamproc.domain.events import (
    BudgetReserved,
    PayoutDecided,
    PayoutSettled,
    ReputationChecked,
    ReviewCounted,
)
from streamproc.domain.governance import NO_URL, Case, Reputation
from streamproc.domain.identity import party_of
from streamproc.domain.payouts import PayoutRecord
from streamproc.domain.policy import PolicyBook
from streamproc.domain.record import Review
from streamproc.domain.review import approvals_missing, recheck, reviewer_of, why_not_now, why_refused
from streamproc.domain.whatif.comparison import Change, Comparison, Outcome
from streamproc.domain.whatif.judge import Assumptions, Judge, Judgement, recorded_windows
from streamproc.domain.whatif.trial import Books, Told, Trial, reputation_of

NEW_HOLD = "held here only, nobody was asked then"
PAID = "approved here only: taken as paid, it stays in its budget windows"
REFUSED = "a reviewer's answer of then does not count under the candidate"


@dataclass(slots=True)
class Fate:
    """One payout, for as long as something can still come of it. `judged`: it is in the comparison."""

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
    """It was held, and what came of that was not read yet."""
    hold: PayoutRecord | None = None
    """The record as the candidate held it, while it is held."""
    reputation: Reputation = NO_URL
    windows: tuple[Window, ...] = ()
    charged: int = 0
    count_fees: bool = False
    fees: int = 0
    """Committed beside what is charged."""
    money: Literal["", "reserved", "committed", "released"] = ""
    closed: bool = False
    timed: bool = False
    """Its end by the candidate's time is awaited."""
    passed: bool = False
    """The log settled it while the candidate had come to another decision: no settlement follows any more."""

    def charge(self, windows: tuple[Window, ...], amount: int, *, count_fees: bool) -> None:
        """It holds money in these windows."""
        self.windows, self.charged, self.money, self.count_fees = windows, amount, "reserved", count_fees

    @property
    def ends_at(self) -> int:
        """When the last window that it is charged to ends (Unix s)."""
        return max((window.ends_at for window in self.windows), default=0)


class Fates:
    """The payouts of one partition that something can still come of."""

    def __init__(self, judge: Judge, assume: Assumptions, found: Comparison) -> None:
        self._judge, self._assume, self._found = judge, assume, found
        self._open: dict[str, Fate] = {}
        self._expiries: list[tuple[int, str]] = []
        """Ends (µs) of holds that the log knows no end of: the candidate gives another time to live, or they outlive
        what ended them then."""

    # ---- the rules have spoken ----------------------------------------------------------

    def conclude(self, trial: Trial, judgement: Judgement) -> None:
        """A trial is judged."""
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
        """A decision that is not judged: it is as it was."""
        fate = _fate_of(trial, judged=False)
        fate.new_rules = fate.new_end = fate.old_end
        if trial.room is not None:
            room = trial.room
            fate.charge(recorded_windows(room), room.amount, count_fees=room.count_fees)
        self._keep(fate)

    def bypass(self, room: BudgetReserved) -> None:
        """Money that a payout holds which was never decided."""
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

    def answer(self, told: Told, books: Books, zone: str) -> None:
        """A reviewer's answer, or the end of a hold, as the log has it: what it means for the candidate's hold."""
        decided = next((event for event in told.events if type(event) is PayoutDecided), None)
        counted = next((event for event in told.events if type(event) is ReviewCounted), None)
        about = decided if decided is not None else counted
        fate = self._open.get(about.payout) if about is not None else None
        if fate is None:
            return
        if decided is not None:
            fate.old_end, fate.waits = (decided.decision, decided.reason), False
        if not fate.judged:
            fate.new_end = fate.old_end
        elif fate.hold is not None:
            if counted is not None:
                self._review(fate, fate.hold, counted, told, books.candidate, zone)
            elif decided is not None and _expired_at(decided) >= fate.hold.hold_expires_at:
                self._end_hold(fate, (decided.decision, decided.reason))
        self._keep(fate)

    def _review(
        self,
        fate: Fate,
        hold: PayoutRecord,
        counted: ReviewCounted,
        told: Told,
        book: PolicyBook,
        zone: str,
    ) -> None:
        if why_refused(hold, counted, book.people):
            self._found.assume(REFUSED, fate.amount)
            return
        if counted.action == "reject":
            self._end_hold(fate, ("REJECTED", "REVIEW_REJECTED"))
            return
        for event in told.events:
            if type(event) is ReputationChecked:
                fate.reputation = reputation_of(event)
        party = party_of(hold, book)
        case = Case(
            hold,
            party.identity,
            party.agent,
            zone,
            party.account,
            party.team,
            reputation=fate.reputation,
            freeze=party.freeze,
        )
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
        """Payouts whose hold ends by the candidate's own time to live, to be given to `expire` in their turn."""
        due = []
        while self._expiries and self._expiries[0][0] <= now_us:
            due.append(heapq.heappop(self._expiries)[1])
        return due

    def expire(self, payout: str) -> None:
        """The candidate's hold is over, if nobody ended it before."""
        fate = self._open.get(payout)
        if fate is not None and fate.hold is not None:
            self._end_hold(fate, ("REJECTED", "HOLD_EXPIRED"))
            self._keep(fate)

    def _end_hold(self, fate: Fate, end: Outcome) -> None:
        fate.hold, fate.new_end = None, end
        # Where the log rejects it too, its own release follows, in its own place, unless that is over.
        if end[0] == "REJECTED" and (fate.passed or fate.old_end[0] != "REJECTED"):
            self._move(fate, "released")

    def stop(self, decided: PayoutDecided) -> None:
        """What was approved was frozen before it was sent. That was an incident and no rule: it stays so."""
        fate = self._open.get(decided.payout)
        if fate is None:
            return
        fate.old_end = (decided.decision, decided.reason)
        if fate.new_end[0] == "APPROVED":
            fate.new_end = fate.old_end
        self._keep(fate)

    # ---- the bank -----------------------------------------------------------------------

    def settle(self, event: PayoutSettled) -> None:
        """What was settled then is settled under the candidate where it had come to the same decision."""
        fate = self._open.get(event.payout)
        if fate is None:
            return
        fate.waits = False  # the bank ends a hold as well
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
        """Remember it while something can come of it; tell its end as soon as that is known."""
        if fate.hold is not None and not fate.waits:
            self._time(fate, fate.hold)
        waits = fate.waits or fate.hold is not None
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
            Change(
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
        """The log is at its end: what is held now stays held."""
        for fate in self._open.values():
            self._close(fate)

    def forget_before(self, cut_s: int) -> None:
        """Forget payouts whose windows ended before `cut_s` (Unix s): no later payout can meet with their money."""
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
    fate.waits = decided.decision == "HELD"
    return fate


def _expired_at(decided: PayoutDecided) -> int:
    """The timer's own time, which the end of a hold is decided by."""
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
