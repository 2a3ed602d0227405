"""The straight way: an open payout that is new, and against which no rule has anything, is approved if there is room.

The chain says what is right; this comes to the same events and the same record with one case and one copy of the record
instead of six, and leaves slot and room to the script that writes them down. Whatever is not plain is left to the
chain: a finding of any kind, a vendor who has to be asked for, a payout that something is known of.
"""

from collections.abc import Sequence

from msgspec.structs import replace

from consumers.recall import may_be_forgotten, young_s_of
from consumers.reserve import Terms
from consumers.verdicts import DEFAULT_ZONE, decided, noted_by, slot
from consumers.vet import Reputations, checked
from streamproc.domain.approval import approved
from streamproc.domain.budget import Ask, RateAnswer, Window
from streamproc.domain.events import (
    BudgetReserved,
    Event,
    PayoutObserved,
    PayoutRequested,
    PayoutScreened,
    WindowUse,
)
from streamproc.domain.governance import RULES, Case, Reputation, Rule, conclude, find, uses
from streamproc.domain.intent import is_intent
from streamproc.domain.payouts import is_open
from streamproc.log.work import Desk, Offer, Stage, Straight, Work

STAGES = ("screen", "velocity", "reputation", "budget", "approval", "review", "stop", "settle")
"""The chain that this stands for; before it there may be `recall`."""
TABLES = ("screening", "velocity", "reputation", "budget", "approval")
"""The rules that those stages ask."""
_ALL: tuple[Rule, ...] = tuple(rule for rules in RULES.values() for rule in rules)
_POLICY_OK = conclude(())


def stands_for(chain: Sequence[Stage]) -> bool:
    """Whether the chain is the one that this was written for: with another stage or table it would skip rules."""
    names = tuple(stage.name for stage in chain if stage.name != "recall")
    return names == STAGES and tuple(RULES) == TABLES


def straight_way(reputations: Reputations, *, zone: str, retention_s: float) -> Straight:
    """`zone` is for policies that name none; what Redis may have forgotten after `retention_s` is left to the chain."""
    young_s = young_s_of(retention_s)

    def of_batch(desk: Desk) -> "_Batch":
        return _Batch(desk, reputations, zone, young_s)

    return of_batch


class _Batch:
    """What a batch's offers have in common."""

    def __init__(self, desk: Desk, reputations: Reputations, zone: str, young_s: float) -> None:
        self._desk, self._reputations, self._zone, self._young_s = desk, reputations, zone, young_s
        self._terms = Terms(zone)
        self._empty: dict[int, list[WindowUse]] = {}

    def __call__(self, work: Work) -> Offer | None:
        """The offer for a payout that nothing stands against."""
        record, desk = work.record, self._desk
        if record is None or not self._is_plain(work) or not is_open(record):
            return None
        reputation = self._reputations.known(record.vendor_url, desk.now_us)
        party = desk.party(record)
        if reputation is None or party.agent is None:
            return None
        case = Case(
            replace(record, beneficiary=work.beneficiary),
            party.identity,
            party.agent,
            self._zone or DEFAULT_ZONE,
            party.account,
            party.team,
            reputation=reputation,
            freeze=party.freeze,
        )
        return self._offer(work, case, reputation) if not find(_ALL, case) else None

    def _offer(self, work: Work, case: Case, reputation: Reputation) -> Offer:
        """What the stages would record of the case, each its own."""
        record, agent, desk = case.payout, case.agent, self._desk
        assert agent is not None
        at, payout, seen = desk.now_us, record.payout, record.beneficiary
        rate, windows = self._terms.rate(case), self._terms.windows(case)
        screened = PayoutScreened(
            at=at,
            payout=payout,
            agent=record.agent,
            identity=case.identity,
            policy_version=agent.version,
            findings=[],
            beneficiary=seen,
        )
        taken = RateAnswer(0, 0, False, rate.count, rate.window_us) if rate is not None else None
        vetted = checked(work, desk, reputation, [])
        reserved = BudgetReserved(
            at=at,
            payout=payout,
            amount=record.amount,
            number=0,
            windows=self._uses(windows),
            findings=[],
            count_fees=agent.policy.count_fees,
        )
        decision = decided(record, desk, _POLICY_OK)
        noted = noted_by(decision, record, seen)
        out: list[Event] = [screened, slot(payout, at, taken, []), vetted, reserved, decision, *noted]
        ask = Ask(payout, record.amount, record.received_at, rate, windows)
        return Offer(ask, approved(record, screened, vetted, reserved, decision), out)

    def _is_plain(self, work: Work) -> bool:
        """Not what the archive has to be asked for, nor what an intent's request alone decides."""
        (event,) = work.events
        if type(event) is PayoutObserved:
            now_us, young_s = self._desk.now_us, self._young_s
            return not is_intent(event.payout) and not may_be_forgotten(work, event, now_us, young_s)
        return type(event) is PayoutRequested

    def _uses(self, windows: tuple[Window, ...]) -> list[WindowUse]:
        """The windows as the events have them, before anybody knows what is in them."""
        known = self._empty.get(id(windows))
        if known is None:
            known = self._empty[id(windows)] = uses(windows, ((0, 0),) * len(windows))
        return known
