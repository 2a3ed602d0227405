"""The rules that can find anything under one agent's policy, before the counters are asked. Pure.

Most policies leave most things open, and applying every rule was a tenth of what a payout cost a worker. `find` gives
the same with these rules as with all: a rule that is not listed below always applies.
"""

from collections.abc import Callable, Mapping
from functools import lru_cache

from streamproc.domain import governance as g
from streamproc.domain.domains import URLS_CACHED_MAX
from streamproc.domain.events import Finding
from streamproc.domain.payouts import PayoutRecord
from streamproc.domain.policy import AgentPolicy, Policy

POLICIES_MAX = 4_096
"""Policies whose rules a process keeps, some 200 bytes each besides the policy."""

_ONLY_WHERE: Mapping[g.Rule, Callable[[Policy], bool]] = {
    g.no_policy: lambda policy: False,  # there is one
    g.unverified_identity: lambda policy: policy.require_verified_identity,
    g.transaction_limit: lambda policy: policy.per_txn_limit is not None,
    g.outside_hours: lambda policy: policy.hours is not None or bool(policy.days),
    g.rate: lambda policy: False,  # needs the counters' answer
    g.beneficiary_new: lambda policy: policy.new_beneficiary != "ignore",
    g.beneficiary_changed: lambda policy: policy.changed_beneficiary != "ignore",
    g.window_limit: lambda policy: False,  # needs it too
    g.approval: lambda policy: policy.held_above is not None,
}
"""Whether a rule can find anything under a policy. A rule that is not here applies under every policy."""


@lru_cache(maxsize=POLICIES_MAX)
def rules_under(agent: AgentPolicy) -> tuple[g.Rule, ...]:
    """The rules in order; those about the vendor's URL are replaced by one, which caches the URLs that pass."""
    rules = []
    for rule in (rule for rules in g.RULES.values() for rule in rules):
        applies = _ONLY_WHERE.get(rule)
        if applies is not None and not applies(agent.policy):
            continue
        if rule not in g.ABOUT_THE_URL:
            rules.append(rule)
        elif about_the_url not in rules:
            rules.append(about_the_url)
    return tuple(rules)


def about_the_url(case: g.Case) -> Finding | None:
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
    return _found(g.Case(payout, "unknown", agent)) is None


def _found(case: g.Case) -> Finding | None:
    findings = (rule(case) for rule in g.ABOUT_THE_URL)
    return next((finding for finding in findings if finding is not None), None)
