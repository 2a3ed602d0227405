"""Applies the rules again, under the candidate's policies, on counters that hold what the candidate let pass.

If the candidate changes nothing for a payout, the counters are asked on the recorded terms, since a policy may have
changed between the question and the commit. So under the policies that were in force every answer is as recorded.
"""

from collections.abc import Sequence
from typing import Literal

from msgspec import Struct
from msgspec.structs import replace

from streamproc.domain.asks import charged_windows, rate_ask, vendor_charged
from streamproc.domain.budget import (
    QUARTER_US,
    US,
    Admission,
    BudgetAnswer,
    Counters,
    RateAnswer,
    RateAsk,
    Window,
)
from streamproc.domain.case import NO_URL, Case, Reputation
from streamproc.domain.domains import vendor_of
from streamproc.domain.events import BeneficiarySeen, BudgetReserved, EntitySeen, Evidence
from streamproc.domain.governance import RULES, Verdict, conclude, find, is_rejected
from streamproc.domain.legal_entities import question_of
from streamproc.domain.payouts import PayoutRecord
from streamproc.domain.policy import AgentPolicy
from streamproc.domain.whatif.comparison import Comparison
from streamproc.domain.whatif.trial import Books, Trial

VENDORS_MAX = 50_000
"""Vendors whose last known reputation is kept."""
CHARGED_MAX = 50_000
"""Cached sets of windows, each shared by the payouts charged to it."""
WINDOW_S_MAX = 32 * 86_400
"""A month and a time zone's offset: no window ends later than this after its payout was received."""

SAME_VENDOR = "the vendor's reputation is what another payout's look-up found"
KNOWN_THEN = "the beneficiary is known or new as it was then, whoever the candidate lets be paid before"
UNKNOWN_BENEFICIARY = "nobody looked whether the beneficiary was known: taken as known"
UNKNOWN_VENDOR = "the vendor's reputation was never asked for"
UNKNOWN_ENTITY = "the contact's legal entity was never asked for"


class Assumptions(Struct, frozen=True):
    """What is assumed where the log cannot say."""

    zone: str
    """Time zone of policies that name none."""
    unknown_reputation: Literal["clean", "unavailable"] = "clean"
    new_holds: Literal["wait", "approve"] = "wait"
    unknown_entity: Literal["verified", "unavailable"] = "verified"


class Judgement(Struct, frozen=True):
    """The outcome of a trial. `windows`: those that it is charged `amount` to; none if it is not."""

    verdict: Verdict
    reputation: Reputation = NO_URL
    windows: tuple[Window, ...] = ()
    amount: int = 0
    count_fees: bool = False


class Judge:
    """One partition's counters under the candidate. `strict`: policies are the real ones, so counters must agree."""

    def __init__(self, assume: Assumptions, found: Comparison, *, strict: bool) -> None:
        self._assume = assume
        self._found = found
        self._strict = strict
        self._counters = Counters()
        self._slot_number = 0
        """The highest of a recorded slot: they come in the order of their numbers, but for one that comes again."""
        self._reputations: dict[str, Reputation] = {}
        self._charged: dict[tuple[str, str, str, int], tuple[Window, ...]] = {}
        self._charged_by: Books | None = None
        self._window_ends: dict[tuple[str, str], int] = {}

    # ---- judging ------------------------------------------------------------------------

    def begin(self, trial: Trial) -> None:
        """Screening and velocity, at the trial's place in the order of rate slots."""
        case = trial.case(self._assume.zone)
        trial.findings = find(RULES["screening"], case)
        if is_rejected(trial.findings):
            return
        answer = self._slot(trial, case)
        if answer is not None:
            trial.findings += find(RULES["velocity"], replace(case, admission=Admission(rate=answer)))

    def end(self, trial: Trial) -> Judgement:
        """All rules behind velocity, and the verdict, at the trial's place in the order of budget questions."""
        answer: BudgetAnswer | None = None
        reputation = NO_URL
        if not is_rejected(trial.findings):
            case = self._with_beneficiary(trial, trial.case(self._assume.zone))
            reputation = self._reputation(trial)
            vetted = replace(case, reputation=reputation, entity=self._entity(trial, case))
            trial.findings += find(RULES["reputation"], vetted)
            if not is_rejected(trial.findings):
                answer = self._room(trial, case)
                rules = (*RULES["anomaly"], *RULES["budget"], *RULES["approval"])
                trial.findings += find(rules, replace(case, admission=Admission(budget=answer)))
        verdict = conclude(trial.findings)
        if trial.stray and trial.room is not None:
            room = trial.room
            return Judgement(verdict, reputation, recorded_windows(room), room.amount, room.count_fees)
        if answer is not None and answer.granted:
            agent = trial.books.candidate.agent(trial.record.agent)
            counts = agent is not None and agent.policy.count_fees
            return Judgement(verdict, reputation, answer.windows, answer.amount, counts)
        return Judgement(verdict, reputation)

    def _slot(self, trial: Trial, case: Case) -> RateAnswer | None:
        if trial.stray and trial.slot is not None:
            return trial.slot  # it already has one
        ask, slot = rate_ask(case), trial.slot
        if slot is not None and trial.books.same_for(case.payout):
            hold = ask is not None and ask.hold
            ask = RateAsk(case.payout.agent, slot.count, slot.window_us, hold)
        if ask is None:
            return None
        used, limited = self._counters.take_slot(ask, case.payout.received_at)
        if self._strict and slot is not None and used != slot.used:
            self._found.differ(case.payout.payout)
        return RateAnswer(0, used, limited, ask.count, ask.window_us)

    def _room(self, trial: Trial, case: Case) -> BudgetAnswer:
        windows, amount = self._windows(trial, case), case.payout.amount
        if trial.stray and trial.room is not None:
            return BudgetAnswer(0, amount, -1, windows, ((0, 0),) * len(windows))  # it already has that
        exceeded, before = self._counters.reserve(windows, amount)
        if self._strict and trial.room is not None:
            recorded = tuple((use.reserved, use.committed) for use in trial.room.windows)
            if before != recorded:
                self._found.differ(case.payout.payout)
        return BudgetAnswer(0, amount, exceeded, windows, before)

    def _windows(self, trial: Trial, case: Case) -> tuple[Window, ...]:
        """The windows to charge: the candidate's, or the recorded ones if it changes nothing."""
        windows = self._candidate_windows(trial, case)
        if not trial.books.same_for(case.payout):
            return windows
        if trial.room is not None:
            recorded = recorded_windows(trial.room, windows)
            return windows if recorded == windows else recorded
        return windows if trial.full is None else _with_named(windows, trial.full, trial.decided.at)

    def _candidate_windows(self, trial: Trial, case: Case) -> tuple[Window, ...]:
        """The candidate's windows. Payouts charged to the same ones share them, as long as the windows last."""
        if trial.books is not self._charged_by:  # other policies
            self._charged, self._charged_by = {}, trial.books
        vendor = vendor_charged(case)
        key = (case.payout.agent, case.payout.account, vendor, case.payout.received_at // QUARTER_US)
        known = self._charged.get(key)
        if known is None:
            if len(self._charged) > CHARGED_MAX:
                self._charged.clear()
            known = self._charged[key] = charged_windows(case, vendor, self._assume.zone)
            self._remember_ends(known)
        return known

    def _with_beneficiary(self, trial: Trial, case: Case) -> Case:
        """The case with what was known of the beneficiary then; payouts that the candidate lets pass add nothing."""
        assert case.agent is not None
        policy = case.agent.policy
        if policy.new_beneficiary == policy.changed_beneficiary == "ignore" or trial.books.same_for(
            case.payout
        ):
            return case
        if case.payout.beneficiary is None:
            self._found.assume(UNKNOWN_BENEFICIARY, case.payout.amount)
            return replace(case, payout=replace(case.payout, beneficiary=BeneficiarySeen(known=True)))
        self._found.assume(KNOWN_THEN, case.payout.amount)
        return case

    def _reputation(self, trial: Trial) -> Reputation:
        url = vendor_of(trial.record.vendor_url)
        if url is None:
            return NO_URL
        known = trial.reputation()
        if known is not None:
            if known.verdict in ("clean", "threat"):
                if len(self._reputations) > VENDORS_MAX:
                    self._reputations.clear()  # costs only an assumption later
                self._reputations[url.href] = known
            return known
        amount = trial.record.amount
        if url.href in self._reputations:
            self._found.assume(SAME_VENDOR, amount)
            return self._reputations[url.href]
        self._found.assume(f"{UNKNOWN_VENDOR}: taken as {self._assume.unknown_reputation}", amount)
        return Reputation(self._assume.unknown_reputation, problem="nobody asked")

    def _entity(self, trial: Trial, case: Case) -> EntitySeen | None:
        """What the register said then; assumed where a register was not asked that the candidate requires."""
        seen = trial.entity()
        if seen is not None or not _requires_entity(case.agent) or question_of(case.payout) is None:
            return seen
        if trial.checked is not None and _requires_entity(trial.books.real.agent(case.payout.agent)):
            return None  # it was required then too, and no register was set
        assumed = self._assume.unknown_entity
        self._found.assume(f"{UNKNOWN_ENTITY}: taken as {assumed}", case.payout.amount)
        return EntitySeen(verdict=assumed, problem="nobody asked" if assumed == "unavailable" else "")

    # ---- what the log says, whatever the candidate says ---------------------------------

    def take_recorded_slot(self, slot: RateAnswer, record: PayoutRecord) -> None:
        """Take the rate slot that the payout took; once, where the log has it twice."""
        if not slot.limited and slot.number > self._slot_number:
            self._slot_number = slot.number
            ask = RateAsk(record.agent, slot.count, slot.window_us, False)
            self._counters.take_slot(ask, record.received_at)

    def charge(self, room: BudgetReserved) -> None:
        """Charge a reservation as it was made, past any limit."""
        windows = recorded_windows(room)
        self._remember_ends(windows)
        self._counters.reserve([replace(window, limit=None) for window in windows], room.amount)

    def settle(
        self, windows: Sequence[Window], amount: int, held: str, settlement: str, *, charged: int, fees: int
    ) -> bool:
        """Commit or release; False if that is not possible. Fees as in `Counters.settle`."""
        return self._counters.settle(windows, amount, held, settlement, charged=charged, fees=fees)

    def _remember_ends(self, windows: Sequence[Window]) -> None:
        for window in windows:
            self._window_ends[window.scope, window.window] = window.ends_at

    def forget_before(self, cut_s: int) -> None:
        """Forget windows that ended before `cut_s` (Unix s)."""
        for window in [window for window, ends_at in self._window_ends.items() if ends_at < cut_s]:
            del self._window_ends[window]
            self._counters.budgets.pop(window, None)


def _requires_entity(agent: AgentPolicy | None) -> bool:
    return agent is not None and agent.policy.require_entity


def recorded_windows(room: BudgetReserved, computed: Sequence[Window] = ()) -> tuple[Window, ...]:
    """The windows as they were charged. Their ends, not recorded, are from `computed`, else the latest possible."""
    ends = {(window.scope, window.window): window.ends_at for window in computed}
    far = room.at // US + WINDOW_S_MAX
    return tuple(
        Window(use.scope, use.window, use.limit, ends.get((use.scope, use.window), far))
        for use in room.windows
    )


def _with_named(windows: tuple[Window, ...], full: Evidence, at: int) -> tuple[Window, ...]:
    """The windows, with the full one as it was asked for; the others of that question are not recorded."""
    scope, name, limit = full.get("scope"), full.get("window"), full.get("limit")
    if not isinstance(scope, str) or not isinstance(name, str) or not isinstance(limit, int):
        return windows
    ends_at = next(
        (w.ends_at for w in windows if (w.scope, w.window) == (scope, name)), at // US + WINDOW_S_MAX
    )
    others = (window for window in windows if (window.scope, window.window) != (scope, name))
    return (*others, Window(scope, name, limit, ends_at))
