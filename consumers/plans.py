"""Plans: the outcome of earlier payouts, so that a payout that is alike needs only a look at its own values.

Rules are pure, and of most payouts only amount, time and ids are new: the same agent pays the same vendor at the same
fund account again. What the rules said of the first one they would say of the next, as long as policies, the vendor's
reputation and the windows are the same, and no rule looks at anything else. A payout without a plan, or that does not
fit it, is looked at as a whole. So a plan changes only the cost of a decision.
"""

from functools import partial
from math import inf
from typing import NamedTuple
from weakref import WeakKeyDictionary

from consumers.approvals import Approval, Templates, is_plain_id, json_of
from consumers.reserve import Terms
from streamproc.domain.agent_note import NOTE
from streamproc.domain.budget import QUARTER_US, Ask
from streamproc.domain.case import NO_URL
from streamproc.domain.events import PayoutObserved
from streamproc.domain.intent import is_intent
from streamproc.domain.narrowed import ANYTHING, REACH, about_the_url, rules_under
from streamproc.domain.payouts import evolve
from streamproc.domain.policy import AgentPolicy, PolicyBook
from streamproc.log.templates import Offer, OfferFate, RecordAndEvents, Template

PLANS_MAX = 4_096
"""Plans under one book of policies, for each consumer, some 1.6 kB each. When full, all are dropped."""


class Plan(NamedTuple):
    """What the approvals of payouts that are alike have in common, so that the next one needs no look at the rules."""

    approval: Approval
    """That of the last one that was looked at as a whole."""
    template: Template
    common: tuple[str, ...]
    payee: str
    """The first of the template's values, without the JSON of the payout's own reference id, with which it ends."""
    when: tuple[str, str]
    """The others: when the vendor was looked up and until when that holds."""
    amount_max: float
    """The plan holds up to this amount (paise); inf: any."""
    fresh_until: float
    """Until when (µs) the vendor's reputation holds; inf where there is no vendor to look up."""
    quarter: int
    """The quarter of an hour in which a payout must have been received, since windows are the same only within it."""


class Plans:
    """The plans of a process, by the policies that they were made under."""

    def __init__(self, templates: Templates, zone: str) -> None:
        self._templates, self._zone = templates, zone
        self._books: WeakKeyDictionary[PolicyBook, BookPlans] = WeakKeyDictionary()

    def under(self, book: PolicyBook) -> "BookPlans":
        """The plans made under these policies. They end with the book: a new revision begins without plans."""
        known = self._books.get(book)
        if known is None:
            known = self._books[book] = BookPlans(self._templates, self._zone)
        return known


class BookPlans:
    """The plans made under one revision of the policies, by what their payouts have in common."""

    def __init__(self, templates: Templates, zone: str) -> None:
        self._templates = templates
        self._plans: dict[tuple[object, ...], Plan] = {}
        self.terms = Terms(zone)
        """What is asked of the counters under these policies."""

    def offer(self, approval: Approval) -> Offer:
        """The offer for an approval; makes a plan of it for payouts that are alike."""
        offer = self._templates.offer(approval)
        if offer.common:  # else it has a template of its own
            if len(self._plans) >= PLANS_MAX:
                self._plans.clear()
            plan = plan_of(approval, offer)
            if plan is not None:
                self._plans[_alike(approval)] = plan
        return offer

    def again(self, event: PayoutObserved, now_us: int, gone_before_s: float) -> Offer | None:
        """The offer for a payout at the bank, to a beneficiary that is noted, if there is a plan that fits."""
        facts, payout, at = event.facts, event.payout, event.at
        notes = facts.notes
        plan = self._plans.get(
            (
                notes.get("agent_id"),
                event.account,
                notes.get("vendor_url", ""),
                facts.fund_account_id,
                facts.currency,
                facts.status,
                not facts.reference_id,
            )
        )
        if (
            plan is None
            or not 0 < facts.amount <= plan.amount_max
            or not at <= now_us < plan.fresh_until
            or at // QUARTER_US != plan.quarter
            or 0 < facts.created_at < gone_before_s
            or facts.utr
            or facts.fees
            or facts.tax
            or notes.get(NOTE)
            or is_plain_id(payout) is None
            or is_intent(payout)
        ):
            return None
        like = plan.approval
        ask = Ask(payout, facts.amount, at, like.rate, like.windows)
        reference = facts.reference_id
        payee = plan.payee + json_of(reference).decode() if reference else plan.payee
        outputs = partial(_outputs, plan, event, now_us)
        return Offer(ask, now_us, plan.template, plan.common, (payee, *plan.when), like.record.agent, outputs)


def _alike(approval: Approval) -> tuple[object, ...]:
    """The key of an approval's plan, which `again` makes of an event."""
    record = approval.record
    return (
        record.agent,
        record.account,
        record.vendor_url,
        record.fund_account,
        record.currency,
        record.bank_status,
        not record.reference_id,
    )


def plan_of(approval: Approval, offer: Offer) -> Plan | None:
    """The plan of an approval; None if a rule under its policy looks at what is not alike."""
    amount_max = _amount_max(approval.agent)
    if amount_max is None:
        return None
    reputation, record, (payee, *when) = approval.reputation, approval.record, offer.values
    return Plan(
        approval,
        offer.template,
        offer.common,
        payee.removesuffix(json_of(record.reference_id).decode()) if record.reference_id else payee,
        (when[0], when[1]),
        amount_max,
        reputation.fresh_until if reputation is not NO_URL else inf,
        record.received_at // QUARTER_US,
    )


def _amount_max(agent: AgentPolicy) -> float | None:
    """The amount (paise) up to which no rule under this policy finds anything because of it; None: a rule looks at
    other things."""
    least = inf
    for rule in rules_under(agent):
        if rule is about_the_url:
            continue
        reach = REACH.get(rule, ANYTHING)
        if not reach.alike:
            return None
        limit = None if reach.up_to is None else reach.up_to(agent.policy)
        least = least if limit is None else min(least, limit)
    return least


def _outputs(plan: Plan, event: PayoutObserved, now_us: int, fate: OfferFate) -> RecordAndEvents:
    """The outputs of the approval that a look at the whole payout would make."""
    record = evolve(None, event)
    assert record is not None
    return plan.approval.of(record, now_us).outputs(fate)
