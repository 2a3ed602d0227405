"""Plans: what payouts alike came to, so that the next one of them needs no more than a look at its own values.

The rules are pure, and of most payouts only amount, time and ids are new: the same agent pays the same vendor into the
same fund account again. What the rules said of the first one they would say of the next, as long as policies, the
vendor's reputation and the windows are the same, and no rule is asked that looks at anything else. What has no plan, or
does not fit its own, is looked at as a whole; so a plan changes nothing but what that costs.
"""

from collections.abc import Callable
from math import inf
from typing import NamedTuple
from weakref import WeakKeyDictionary

from consumers.approvals import Approval, Forms, is_plain_id, json_of
from consumers.reserve import Terms
from streamproc.domain import governance as g
from streamproc.domain.agent_note import NOTE
from streamproc.domain.budget import QUARTER_US, Ask
from streamproc.domain.events import PayoutObserved
from streamproc.domain.intent import is_intent
from streamproc.domain.narrowed import about_the_url, rules_under
from streamproc.domain.payouts import evolve
from streamproc.domain.policy import AgentPolicy, Policy, PolicyBook
from streamproc.log.forms import Fate, Form, Offer, Told

PLANS_MAX = 4_096
"""Plans under one book of policies, which each consumer has for itself; some 1.6 kB each. Then it begins anew."""

BY_WHAT_IS_ALIKE: frozenset[g.Rule] = frozenset(
    {g.frozen, g.currency, g.unverified_identity, *g.ABOUT_THE_URL, g.threat, g.reputation_unavailable}
    | {g.beneficiary_new, g.beneficiary_changed}
)
"""Rules that look at nothing but what payouts of one plan have in common."""
BY_AMOUNT: dict[g.Rule, Callable[[Policy], int | None]] = {
    g.transaction_limit: lambda policy: policy.per_txn_limit,
    g.approval: lambda policy: policy.held_above,
}
"""Those that find nothing up to some amount, and that amount; None: whatever it is."""


class Plan(NamedTuple):
    """What an approval of payouts alike has in common."""

    approval: Approval
    """The last one that was looked at as a whole."""
    form: Form
    common: tuple[str, ...]
    url: str
    fund_account: str
    when: tuple[str, str]
    """As JSON, like the values of a form."""
    amount_max: float
    """Paise; inf where nothing limits it."""
    fresh_until: float
    """µs: how long the vendor's reputation holds; inf where there is no vendor to be asked for."""
    quarter: int
    """The quarter of an hour in which it must have been received: its windows are of that one."""


class Plans:
    """The plans of a process, each under the policies that it was made under."""

    def __init__(self, forms: Forms, zone: str) -> None:
        self._forms, self._zone = forms, zone
        self._books: WeakKeyDictionary[PolicyBook, BookPlans] = WeakKeyDictionary()

    def under(self, book: PolicyBook) -> "BookPlans":
        """Those under these policies. They end with the book."""
        known = self._books.get(book)
        if known is None:
            known = self._books[book] = BookPlans(self._forms, self._zone)
        return known


class BookPlans:
    """The plans under one book of policies."""

    def __init__(self, forms: Forms, zone: str) -> None:
        self._forms = forms
        self._plans: dict[tuple[object, ...], Plan] = {}
        self.terms = Terms(zone)
        """What is asked for under these policies."""

    def offer(self, approval: Approval) -> Offer:
        """The offer for an approval, which is remembered for those that are alike."""
        offer = self._forms.offer(approval)
        if offer.common:  # else it has a form of its own
            if len(self._plans) >= PLANS_MAX:
                self._plans.clear()
            plan = plan_of(approval, offer)
            if plan is not None:
                self._plans[_alike(approval)] = plan
        return offer

    def again(self, event: PayoutObserved, now_us: int, gone_before_s: float) -> Offer | None:
        """The offer for a payout of the bank's to somebody who was paid before, where there is a plan that fits it."""
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
            or not 0 < at <= now_us < plan.fresh_until
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

        def told(fate: Fate) -> Told:
            return _approval(plan, event, now_us).told(fate)

        like = plan.approval
        ask = Ask(payout, facts.amount, at, like.rate, like.windows)
        values = (plan.url, plan.fund_account, json_of(facts.reference_id).decode(), *plan.when)
        return Offer(ask, now_us, plan.form, plan.common, values, like.record.agent, told)


def _alike(approval: Approval) -> tuple[object, ...]:
    """What payouts of one plan have in common, as `again` finds it in an event."""
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
    """The plan by an approval; None where a rule is asked that looks at what is not alike."""
    amount_max = _amount_max(approval.agent)
    if amount_max is None:
        return None
    reputation, (url, fund_account, _, *when) = approval.reputation, offer.values
    return Plan(
        approval,
        offer.form,
        offer.common,
        url,
        fund_account,
        (when[0], when[1]),
        amount_max,
        reputation.fresh_until if reputation is not g.NO_URL else inf,
        approval.record.received_at // QUARTER_US,
    )


def _amount_max(agent: AgentPolicy) -> float | None:
    """Up to which amount (paise) no rule under this policy finds anything by it; None: one looks at other things."""
    least = inf
    for rule in rules_under(agent):
        up_to = BY_AMOUNT.get(rule)
        if up_to is not None:
            limit = up_to(agent.policy)
            least = least if limit is None else min(least, limit)
        elif rule not in BY_WHAT_IS_ALIKE and rule is not about_the_url:
            return None
    return least


def _approval(plan: Plan, event: PayoutObserved, now_us: int) -> Approval:
    """As it is made of a payout that is looked at as a whole."""
    record = evolve(None, event)
    assert record is not None
    return plan.approval.of(record, now_us)
