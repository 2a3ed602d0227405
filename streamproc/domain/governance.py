"""The rules, in order, as pure functions: a case in, a finding or None out.

`decide` applies all of them at once, for tests, replay and what-if. The stages in `consumers/` apply the same tables
piece by piece, because between two pieces something has to be asked: a slot, Safe Browsing, room.
The rules' numbers are those of the table in docs/governance.md.
"""

from collections.abc import Callable, Iterable, Sequence
from datetime import datetime
from typing import TypeAlias
from zoneinfo import ZoneInfo

from msgspec import Struct

from streamproc.domain.anomaly import evidence_of_anomaly
from streamproc.domain.budget import US
from streamproc.domain.case import Case
from streamproc.domain.domains import UrlProblem, parse_vendor_url, vendor_of, without_login
from streamproc.domain.events import Decision, Finding
from streamproc.domain.legal_entities import why_unverified
from streamproc.domain.policy_fields import WEEKDAYS


class Verdict(Struct, frozen=True):
    """A decision with its primary reason and all findings."""

    decision: Decision
    reason: str
    findings: tuple[Finding, ...]

    @property
    def reasons(self) -> list[str]:
        """The codes of all findings that count, the primary first; `POLICY_OK` if there are none."""
        if not self.findings:  # nearly always; a comprehension costs more than all else here
            return [self.reason]
        rest = [f.code for f in self.findings if f.outcome != "NOTED" and f.code != self.reason]
        return [self.reason, *dict.fromkeys(rest)]


Rule: TypeAlias = Callable[[Case], Finding | None]


def _rejected(stage: str, code: str, **evidence: str | int | bool | list[str] | None) -> Finding:
    return Finding(stage=stage, code=code, outcome="REJECTED", evidence=evidence)


def _held(stage: str, code: str, **evidence: str | int | bool | list[str] | None) -> Finding:
    return Finding(stage=stage, code=code, outcome="HELD", evidence=evidence)


# ---- screening: rules 2 to 9 ------------------------------------------------------------


def frozen(case: Case) -> Finding | None:
    """Rule 2: frozen by a person, or by the policy of the agent, account or team."""
    if case.freeze is not None:
        freeze = case.freeze
        return _rejected("screening", "FROZEN", scope=freeze.scope, by=freeze.by, why=freeze.why)
    if case.agent is not None and case.agent.policy.frozen:
        return _rejected("screening", "FROZEN", scope="agent")
    if case.account is not None and case.account.frozen:
        return _rejected("screening", "FROZEN", scope="account")
    if case.team is not None and case.team.frozen:
        return _rejected("screening", "FROZEN", scope="team")
    return None


def no_policy(case: Case) -> Finding | None:
    """Rule 3: the agent has no policy."""
    return _rejected("screening", "NO_POLICY", agent=case.payout.agent) if case.agent is None else None


def currency(case: Case) -> Finding | None:
    """Rule 4: the currency is allowed."""
    assert case.agent is not None
    allowed = case.agent.policy.currencies
    if case.payout.currency in allowed:
        return None
    return _rejected(
        "screening", "CURRENCY_NOT_ALLOWED", currency=case.payout.currency, allowed=list(allowed)
    )


def unverified_identity(case: Case) -> Finding | None:
    """Rule 5: the agent's identity is verified, if the policy requires that."""
    assert case.agent is not None
    if case.agent.policy.require_verified_identity and case.identity != "verified":
        sig = "does not verify" if case.payout.agent_sig else "none"
        return _held("screening", "IDENTITY_UNVERIFIED", identity=case.identity, agent_sig=sig)
    return None


def transaction_limit(case: Case) -> Finding | None:
    """Rule 6: the amount is at most the limit of one payout."""
    assert case.agent is not None
    limit = case.agent.policy.per_txn_limit
    if limit is None or case.payout.amount <= limit:
        return None
    return _rejected("screening", "TXN_LIMIT_EXCEEDED", amount=case.payout.amount, limit=limit)


def vendor_url(case: Case) -> Finding | None:
    """Rule 7: the vendor URL is there if it is required, and valid; IP literals and localhost must be listed to
    pass."""
    assert case.agent is not None
    policy, text = case.agent.policy, case.payout.vendor_url
    if not text:
        if policy.allowed_domains or policy.require_vendor_url:
            return _rejected("screening", "VENDOR_URL_REQUIRED")
        return None
    url = vendor_of(text)
    if url is None:
        invalid = parse_vendor_url(text)
        assert isinstance(invalid, UrlProblem)
        return _rejected(
            "screening", "VENDOR_URL_INVALID", url=without_login(text)[:200], problem=invalid.problem
        )
    if (url.is_ip or url.is_localhost) and case.agent.allowed.match_named(url.host) is None:
        problem = "an IP address or localhost that allowed_domains does not list"
        return _rejected(
            "screening", "VENDOR_URL_INVALID", url=without_login(text)[:200], host=url.host, problem=problem
        )
    return None


def domain(case: Case) -> Finding | None:
    """Rule 8: a block wins over an allow."""
    assert case.agent is not None
    url = vendor_of(case.payout.vendor_url)
    if url is None:
        return None
    blocked_by = case.agent.blocked.match(url.host)
    if blocked_by is not None:
        return _rejected("screening", "DOMAIN_BLOCKED", host=url.host, rule=blocked_by)
    if case.agent.policy.allowed_domains and case.agent.allowed.match(url.host) is None:
        return _rejected("screening", "DOMAIN_BLOCKED", host=url.host, rule="not in allowed_domains")
    return None


def suspicious_host(case: Case) -> Finding | None:
    """A host that mixes scripts in one label may imitate another one ("Domains" in docs/governance.md)."""
    url = vendor_of(case.payout.vendor_url)
    if url is None or not url.mixes_scripts:
        return None
    return _held("screening", "VENDOR_URL_SUSPICIOUS", host=url.host)


def outside_hours(case: Case) -> Finding | None:
    """Rule 9: received within the policy's hours and days. Hours that end before they begin span midnight."""
    assert case.agent is not None
    policy = case.agent.policy
    if policy.hours is None and not policy.days:
        return None
    zone = policy.timezone or case.zone
    moment = datetime.fromtimestamp(case.payout.received_at // 1_000_000, ZoneInfo(zone))
    minute, day = moment.hour * 60 + moment.minute, WEEKDAYS[moment.weekday()]
    begins, ends = policy.hours or (0, 24 * 60)
    is_open = begins <= minute < ends if begins < ends else minute >= begins or minute < ends
    if is_open and (not policy.days or day in policy.days):
        return None
    return _held("screening", "OUTSIDE_HOURS", received=moment.strftime("%a %H:%M"), zone=zone)


# ---- velocity, reputation, anomaly, budget, approval ------------------------------------


def rate(case: Case) -> Finding | None:
    """Rule 10: there was a rate slot."""
    answer = case.admission.rate
    if answer is None or not answer.limited:
        return None
    assert case.agent is not None
    outcome = _held if case.agent.policy.on_rate_limit == "hold" else _rejected
    return outcome(
        "velocity",
        "RATE_LIMITED",
        used=answer.used,
        limit=answer.count,
        window_s=answer.window_us // US,
        number=answer.number,
    )


def threat(case: Case) -> Finding | None:
    """Rule 11: Safe Browsing knows no threat."""
    reputation = case.reputation
    if reputation is None or reputation.verdict != "threat":
        return None
    return _rejected(
        "reputation", "RISK_HIGH", threats=list(reputation.threats), checked_at=reputation.checked_at
    )


def reputation_unavailable(case: Case) -> Finding | None:
    """Rule 12: Safe Browsing could answer."""
    reputation = case.reputation
    if reputation is None or reputation.verdict != "unavailable":
        return None
    assert case.agent is not None
    outcome = _rejected if case.agent.policy.on_reputation_unavailable == "reject" else _held
    return outcome("reputation", "REPUTATION_UNAVAILABLE", problem=reputation.problem)


def beneficiary_new(case: Case) -> Finding | None:
    """Rule 13, first half: a payout to this fund account was approved on this account before."""
    assert case.agent is not None
    seen = case.payout.beneficiary
    if case.agent.policy.new_beneficiary == "ignore" or (seen is not None and seen.known):
        return None
    return _held("reputation", "BENEFICIARY_NEW", fund_account=case.payout.fund_account)


def beneficiary_changed(case: Case) -> Finding | None:
    """Rule 13, second half: neither was the fund account paid for another vendor, nor the vendor at another fund
    account. Of a named vendor's account that nobody knows yet, as of an inline payee, that cannot be told."""
    assert case.agent is not None
    seen = case.payout.beneficiary
    if case.agent.policy.changed_beneficiary == "ignore" or seen is None:
        return None
    is_untold = not case.payout.fund_account and vendor_of(case.payout.vendor_url) is not None
    if not (is_untold or seen.other_vendors or seen.other_accounts):
        return None
    return _held(
        "reputation",
        "BENEFICIARY_CHANGED",
        fund_account=case.payout.fund_account,
        paid_for=seen.other_vendors,
        vendor_paid_at=seen.other_accounts,
    )


def entity_unverified(case: Case) -> Finding | None:
    """Rule 14: the contact is an active, registered legal entity, if the policy requires that."""
    assert case.agent is not None
    why = why_unverified(case.payout, case.entity) if case.agent.policy.require_entity else None
    return None if why is None else _held("reputation", "ENTITY_UNVERIFIED", **why)


def anomaly(case: Case) -> Finding | None:
    """Rule 15: the payout is like the agent's usual ones, where the policy asks that and has their profile."""
    assert case.agent is not None
    profile = case.agent.policy.anomaly_profile
    if profile is None or not case.agent.policy.anomaly:
        return None
    found = evidence_of_anomaly(profile, case.payout.amount, case.payout.received_at)
    return None if found is None else _held("anomaly", "ANOMALY_DETECTED", **found)


def window_limit(case: Case) -> Finding | None:
    """Rule 16: every window has room, up to its limit exactly; names the first one that has not."""
    answer = case.admission.budget
    if answer is None or answer.granted:
        return None
    window, (reserved, committed) = answer.windows[answer.exceeded], answer.before[answer.exceeded]
    return _rejected(
        "budget",
        "LIMIT_EXCEEDED",
        scope=window.scope,
        window=window.window,
        limit=window.limit,
        used=reserved + committed,
        reserved=reserved,
        committed=committed,
        amount=case.payout.amount,
        number=answer.number,
    )


def approval(case: Case) -> Finding | None:
    """Rule 17: the amount is at most what is approved without a person; 0 holds everything."""
    assert case.agent is not None
    above = case.agent.policy.held_above
    if above is None or case.payout.amount <= above:
        return None
    return _held("approval", "APPROVAL_REQUIRED", amount=case.payout.amount, above=above)


# The first rejection ends the chain, so this order is policy: reject before asking anybody, ask before reserving.
RULES: dict[str, tuple[Rule, ...]] = {
    "screening": (
        frozen,
        no_policy,
        currency,
        unverified_identity,
        transaction_limit,
        vendor_url,
        domain,
        suspicious_host,
        outside_hours,
    ),
    "velocity": (rate,),
    "reputation": (threat, reputation_unavailable, beneficiary_new, beneficiary_changed, entity_unverified),
    "anomaly": (anomaly,),
    "budget": (window_limit,),
    "approval": (approval,),
}

BEFORE_MONEY_MOVES: tuple[Rule, ...] = (frozen,)
"""Applied once more right before each call that moves money."""
ABOUT_THE_URL: tuple[Rule, ...] = (vendor_url, domain, suspicious_host)
"""Rules that look only at the vendor's URL and the agent's policy. At most one of them finds anything."""
RECHECKED: tuple[Rule, ...] = (frozen, no_policy, currency, transaction_limit, vendor_url, domain, threat)
"""Rules that are applied again when a person approves a hold: their outcome may have changed meanwhile."""


def find(rules: Iterable[Rule], case: Case) -> list[Finding]:
    """The findings of `rules` in order, up to and including the first rejection."""
    findings: list[Finding] = []
    for rule in rules:
        finding = rule(case)
        if finding is not None:
            findings.append(finding)
            if finding.outcome == "REJECTED":
                break
    return findings


def is_rejected(findings: Sequence[Finding]) -> bool:
    """Whether they end the chain: a rejection is always the last finding."""
    return bool(findings) and findings[-1].outcome == "REJECTED"


def conclude(findings: Iterable[Finding]) -> Verdict:
    """The verdict: a rejection wins, then the first reason to hold, then POLICY_OK (rule 18)."""
    found = tuple(findings)
    for decision in ("REJECTED", "HELD"):
        for finding in found:
            if finding.outcome == decision:
                return Verdict(finding.outcome, finding.code, found)
    return Verdict("APPROVED", "POLICY_OK", found)


def decide(case: Case) -> Verdict:
    """The verdict of all rules on a complete case: what the stages conclude together."""
    return conclude(find((rule for rules in RULES.values() for rule in rules), case))
