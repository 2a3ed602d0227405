"""Takes a recorded decision apart: what was asked, on what evidence, in what order. Pure.

A replay must decide on what the decision saw, not on what came later: the entry that caused it. An observation or a
request leads to a decision in the pass that handles it, so there was no earlier one.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from msgspec import Struct
from msgspec.structs import replace

from streamproc.domain.asks import slot_of
from streamproc.domain.budget import US, RateAnswer
from streamproc.domain.case import Case, Reputation, case_under
from streamproc.domain.entry_ids import id_key
from streamproc.domain.events import (
    BudgetReserved,
    EntitySeen,
    Event,
    Evidence,
    Finding,
    PayoutDecided,
    PayoutObserved,
    PayoutRequested,
    PayoutScreened,
    ReputationChecked,
    VelocityChecked,
)
from streamproc.domain.governance import Verdict
from streamproc.domain.identity import Party, party_of
from streamproc.domain.payouts import PayoutRecord, fold
from streamproc.domain.policy import PolicyBook


class DecodedEntry(Struct, gc=False):
    """An archived entry with its events decoded, as a retrial reads it.

    `seq`: its place in the archive; `id`: in the log. `by`: who wrote it; `cause`: the entry that it answers, or empty.
    `settled`: the counters' number of its settlement, None without one.
    """

    seq: int
    id: str
    by: str
    cause: str
    settled: int | None
    events: Sequence[Event]

    @property
    def at_ms(self) -> int:
        """When it was appended, by the clock of Redis."""
        return id_key(self.id)[0]


class Books:
    """The policies in force at one point of the log, and the candidate's instead of them."""

    def __init__(self, real: PolicyBook, candidate: PolicyBook) -> None:
        self.real, self.candidate = real, candidate
        self._same: dict[tuple[str, str, str, bool], bool] = {}

    def same_for(self, record: PayoutRecord) -> bool:
        """Whether the candidate changes nothing for this payout's agent, team and account."""
        if self.real is self.candidate:
            return True
        key = (record.agent, record.fund_account, record.account, record.intent is None)
        known = None if record.agent_sig else self._same.get(key)
        if known is None:
            real, candidate = party_of(record, self.real), party_of(record, self.candidate)
            known = _terms(real) == _terms(candidate)
            if not record.agent_sig:  # a signature is of one payout
                self._same[key] = known
        return known


def _terms(party: Party) -> tuple[object, ...]:
    """The party's terms, without the version, which is only a name."""
    policy = party.agent.policy if party.agent is not None else None
    return (party.identity, policy, party.account, party.team, party.freeze)


@dataclass(slots=True)
class Trial:
    """One payout's first decision: the record that it looked at, and what the counters answered.

    `stray`: an earlier pass left a slot or a reservation that the decision did not ask for, but that counted for other
    payouts.
    """

    record: PayoutRecord
    books: Books
    decided: PayoutDecided
    slot: RateAnswer | None = None
    checked: ReputationChecked | None = None
    room: BudgetReserved | None = None
    full: Evidence | None = None
    """The evidence of LIMIT_EXCEEDED, if that was found."""
    stray: bool = False
    findings: list[Finding] = field(default_factory=list)
    """What a replay has found so far."""
    verdict: Verdict | None = None
    """The replay's verdict."""

    @property
    def slot_number(self) -> int | None:
        """The rate slot's number in the order of admissions."""
        return self.slot.number if self.slot is not None and self.slot.number else None

    @property
    def room_number(self) -> int | None:
        """The budget question's number; the slot's own if both were asked at once."""
        if self.room is not None:
            return self.room.number
        number = (self.full or {}).get("number")
        return number if isinstance(number, int) else None

    def case(self, zone: str) -> Case:
        """The case under the candidate's policies."""
        return case_under(self.books.candidate, self.record, zone)

    def reputation(self) -> Reputation | None:
        """What was known of the vendor then; None if it was not looked up."""
        if self.checked is None:
            return None
        problem = self._evidence("REPUTATION_UNAVAILABLE").get("problem", "")
        return reputation_of(self.checked, str(problem))

    def entity(self) -> EntitySeen | None:
        """What the register said of the contact then; None if it was not asked."""
        return self.checked.entity if self.checked is not None else None

    def _evidence(self, code: str) -> Evidence:
        return next((f.evidence for f in self.decided.findings if f.code == code), {})


def reputation_of(checked: ReputationChecked, problem: str = "") -> Reputation:
    """A recorded look-up in the form that the rules take."""
    return Reputation(
        checked.verdict, tuple(checked.threats), checked.checked_at, checked.fresh_until, problem
    )


def trial_of(events: Sequence[Event], seen: PayoutObserved | PayoutRequested, books: Books) -> Trial:
    """The trial in an entry's `events`, which hold a first decision, on what was `seen`."""
    decided = next(event for event in events if type(event) is PayoutDecided)
    record = fold([seen])
    assert record is not None
    trial = Trial(record, books, decided)
    over = False
    for event in events:
        if type(event) is PayoutDecided:
            over = True
        elif type(event) is VelocityChecked and event.number:
            trial.slot, trial.stray = slot_of(event), trial.stray or over
        elif type(event) is BudgetReserved:
            trial.room, trial.stray = event, trial.stray or over
        elif type(event) is ReputationChecked:
            trial.checked = event
        elif type(event) is PayoutScreened and event.beneficiary is not None:
            trial.record = replace(record, beneficiary=event.beneficiary)
    for finding in decided.findings:
        if finding.code == "RATE_LIMITED" and trial.slot is None:
            trial.slot = _refused_slot(finding.evidence)
        elif finding.code == "LIMIT_EXCEEDED":
            trial.full = finding.evidence
    if trial.room is not None and trial.slot_number is not None and trial.room.number < trial.slot_number:
        trial.stray = True  # a pass under older policies, which limited no rate, left the reservation
    return trial


def _refused_slot(evidence: Mapping[str, object]) -> RateAnswer:
    def whole(name: str) -> int:
        value = evidence.get(name, 0)
        return value if isinstance(value, int) else 0

    return RateAnswer(whole("number"), whole("used"), True, whole("limit"), whole("window_s") * US)
