"""The rules that can find anything under one agent's policy, before the counters are asked. Pure.

Most policies leave most things open, and applying every rule was a tenth of what a payout cost a worker. `find` gives
the same with these rules as with all. REACH says this of each rule, and what plans (consumers/plans.py) need of it.
"""

from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import NamedTuple

from streamproc.domain import governance as g
from streamproc.domain.case import Case
from streamproc.domain.domains import URLS_CACHED_MAX
from streamproc.domain.events import Finding
from streamproc.domain.payouts import PayoutRecord
from streamproc.domain.policy import AgentPolicy, Policy

POLICIES_MAX = 4_096
"""Policies whose rules a process keeps, some 200 bytes each besides the policy."""


class Reach(NamedTuple):
    """When a rule can find anything, before the counters are asked, and what it looks at for that."""

    where: Callable[[Policy], bool] = lambda policy: True
    """Whether it can find anything under a policy; by default under every one."""
    alike: bool = False
    """It looks only at what payouts have in common that share a plan (consumers/plans.py); else a payout under a
    policy where it can find something has no plan, and costs more."""
    up_to: Callable[[Policy], int | None] | None = None
    """It looks at the amount too, and finds nothing up to this one (paise); None: at no amount."""


def _at_what_is_alike(where: Callable[[Policy], bool] = lambda policy: True) -> Reach:
    return Reach(where, alike=True)


def _above(amount: Callable[[Policy], int | None]) -> Reach:
    return Reach(lambda policy: amount(policy) is not None, alike=True, up_to=amount)


REACH: Mapping[g.Rule, Reach] = {
    g.frozen: _at_what_is_alike(),
    g.no_policy: Reach(lambda policy: False),  # there is one
    g.currency: _at_what_is_alike(),
    g.unverified_identity: _at_what_is_alike(lambda policy: policy.require_verified_identity),
    g.transaction_limit: _above(lambda policy: policy.per_txn_limit),
    **dict.fromkeys(g.ABOUT_THE_URL, _at_what_is_alike()),
    g.outside_hours: Reach(lambda policy: policy.hours is not None or bool(policy.days)),
    g.rate: Reach(lambda policy: False),  # needs the counters' answer
    g.threat: _at_what_is_alike(),
    g.reputation_unavailable: _at_what_is_alike(),
    g.beneficiary_new: _at_what_is_alike(lambda policy: policy.new_beneficiary != "ignore"),
    g.beneficiary_changed: _at_what_is_alike(lambda policy: policy.changed_beneficiary != "ignore"),
    g.entity_unverified: Reach(lambda policy: policy.require_entity),
    g.anomaly: Reach(lambda policy: policy.anomaly and policy.anomaly_profile is not None),
    g.window_limit: Reach(lambda policy: False),  # needs it too
    g.approval: _above(lambda policy: policy.held_above),
}
"""Every rule of governance.py. One that is not here would apply under every policy, and leave no payout a plan."""
ANYTHING = Reach()


@lru_cache(maxsize=POLICIES_MAX)
def rules_under(agent: AgentPolicy) -> tuple[g.Rule, ...]:
    """The rules in order; those about the vendor's URL are replaced by one, which caches the URLs that pass."""
    rules = []
    for rule in (rule for rules in g.RULES.values() for rule in rules):
        if not REACH.get(rule, ANYTHING).where(agent.policy):
            continue
        if rule not in g.ABOUT_THE_URL:
            rules.append(rule)
        elif about_the_url not in rules:
            rules.append(about_the_url)
    return tuple(rules)


def about_the_url(case: Case) -> Finding | None:
    """The finding of the rules about the vendor's URL. At most one of them has one: two reject, which ends the
    chain, and the third is last."""
    assert case.agent is not None
    if _is_fine(case.payout.vendor_url, case.agent):
        return None
    return _found(case)


@lru_cache(maxsize=URLS_CACHED_MAX)
def _is_fine(url: str, agent: AgentPolicy) -> bool:
    """Whether none of them finds anything; cached, since agents pay the same vendors again."""
    payout = PayoutRecord(payout="", account="", received_at=0, vendor_url=url)
    return _found(Case(payout, "unknown", agent)) is None


def _found(case: Case) -> Finding | None:
    findings = (rule(case) for rule in g.ABOUT_THE_URL)
    return next((finding for finding in findings if finding is not None), None)
