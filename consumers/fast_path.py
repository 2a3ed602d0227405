"""The fast path of governance (ADR 25): decides a new, open payout at once, without the chain of stages.

It is rejected if screening rejects it; if no rule does, it is approved, or held for a person, or rejected for want of a
rate slot or of budget room. The chain is the specification: this must come to the same events and the same record. It
is faster since it makes one case instead of six, sends once what payouts share (`approvals.py`), and leaves slot and
room to the script that records them. All else is left to the chain: a vendor whose reputation is not known or is a
threat, a contact of whom the register has to be asked, a payout that is known, and one without a slot whose policy
holds that.
"""

from collections.abc import Callable, Sequence

from msgspec.structs import replace

from consumers.approvals import Approval, Templates
from consumers.entities import Entities
from consumers.plans import Plans
from consumers.recall import gone_before, young_s_of
from consumers.verdicts import decision_of
from consumers.vet import Reputations
from streamproc.domain.asks import ask_of
from streamproc.domain.case import Case
from streamproc.domain.events import Finding, PayoutObserved, PayoutRequested
from streamproc.domain.governance import RULES, conclude, find, is_rejected
from streamproc.domain.intent import is_intent
from streamproc.domain.narrowed import rules_under
from streamproc.domain.payouts import evolve, is_open
from streamproc.log.templates import Offer, rejection_of
from streamproc.log.work import BatchContext, FastPath, Stage, Work

STAGES = ("screening", "velocity", "reputation", "budget", "approval", "review", "stop", "settle")
"""The chain that this replaces; `recall` may come before it."""
TABLES = ("screening", "velocity", "reputation", "anomaly", "budget", "approval")
"""The tables of rules that these stages apply; `budget` applies two."""


def stands_for(chain: Sequence[Stage]) -> bool:
    """Whether the chain is the one that this was written for. With another stage or table it would skip rules."""
    names = tuple(stage.name for stage in chain if stage.name != "recall")
    return names == STAGES and tuple(RULES) == TABLES


def governance_fast_path(
    reputations: Reputations, *, zone: str, retention_s: float, entities: Entities | None = None
) -> Callable[[BatchContext], FastPath]:
    """Makes a batch's fast path. `zone` is for policies that name none; what Redis may have forgotten after
    `retention_s` is left to the chain."""
    register = entities or Entities()
    young_s, plans = young_s_of(retention_s), Plans(Templates(), zone)

    def of_batch(ctx: BatchContext) -> "_Batch":
        return _Batch(ctx, reputations, register, plans, zone, young_s)

    return of_batch


class _Batch:
    """See `FastPath`."""

    def __init__(
        self,
        ctx: BatchContext,
        reputations: Reputations,
        entities: Entities,
        plans: Plans,
        zone: str,
        young_s: float,
    ) -> None:
        self._ctx, self._reputations, self._plans = ctx, reputations, plans.under(ctx.book)
        self._entities = entities
        self._zone, self._gone_before_s = zone, gone_before(ctx.now_us, young_s)

    def __call__(self, work: Work) -> Offer | None:
        """The offer for a payout that screening rejects, or that no rule does.

        Without a beneficiary it is not known who was paid before: then only rejections are offered, which do not depend
        on it.
        """
        record, ctx = work.record, self._ctx
        if record is None or not self._is_plain(work) or not is_open(record):
            return None
        reputation = self._reputations.known(record.vendor_url, ctx.now_us)
        party = ctx.party(record)
        agent, seen = party.agent, work.beneficiary
        is_required = agent is not None and agent.policy.require_entity
        question = self._entities.question_of(record, required=is_required)
        entity = self._entities.known(question, ctx.now_us)
        if seen is not None:
            record = replace(record, beneficiary=seen)
        # As `case_of` makes it, without a call more for each payout.
        case = Case(
            payout=record,
            identity=party.identity,
            agent=agent,
            zone=self._zone,
            account=party.account,
            team=party.team,
            reputation=reputation,
            freeze=party.freeze,
            entity=entity,
        )
        findings = find(RULES["screening"] if agent is None else rules_under(agent), case)
        if is_rejected(findings):
            return self._rejection(work, case, findings)
        if agent is None or reputation is None or seen is None or (question is not None and entity is None):
            return None
        terms, found = self._plans.terms, tuple(findings)
        rate, windows = terms.rate(case), terms.windows(case)
        return self._plans.offer(
            Approval(record, party.identity, agent, reputation, ctx.now_us, rate, windows, found, entity)
        )

    def at_sight(self, work: Work) -> Offer | None:
        """The offer for a payout at the bank that is like one that was approved, by its plan."""
        if len(work.events) != 1:
            return None
        (event,) = work.events
        if type(event) is not PayoutObserved:
            return None
        return self._plans.again(event, self._ctx.now_us, self._gone_before_s)

    def _rejection(self, work: Work, case: Case, findings: Sequence[Finding]) -> Offer | None:
        """The offer to reject what screening rejects; no counter is asked. Another stage's rejection is left to the
        chain."""
        if findings[-1].stage != "screening":
            return None
        record, at = work.known(), self._ctx.now_us
        decision = decision_of(record, case.agent, case.identity, conclude(findings), at)
        after = evolve(record, decision)
        assert after is not None
        return rejection_of(ask_of(record), at, after, [decision])

    def _is_plain(self, work: Work) -> bool:
        """Whether neither the archive has to be asked about it, nor it is an intent seen without its request."""
        (event,) = work.events
        if type(event) is PayoutObserved:
            # As `recall` asks it of a payout of which nothing is loaded.
            may_be_forgotten = 0 < event.facts.created_at < self._gone_before_s
            return not may_be_forgotten and not is_intent(event.payout)
        return type(event) is PayoutRequested
