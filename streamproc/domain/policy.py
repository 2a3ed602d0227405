"""The policies in force, as every decision looks them up; and the one door to the policy modules.

`policy_fields` says what a policy can say, `policy_file` reads a file, `policy_changes` makes versions.
An agent has a policy only where it is listed: defaults alone never give one.
"""

from collections.abc import Mapping
from typing import cast

from msgspec import Struct

from streamproc.domain.agent_note import is_signed
from streamproc.domain.domains import DomainSet, compile_domains
from streamproc.domain.policy_changes import (
    FREEZE,
    ScopeState,
    patch_scope,
    plan_changes,
    plan_freeze,
    scopes_after,
)
from streamproc.domain.policy_fields import (
    Policy,
    RateLimit,
    ScopeLimits,
    effective_policy,
    fields_of,
    read_limits,
)
from streamproc.domain.policy_file import PolicyFile, parse_policy_file
from streamproc.domain.policy_report import Report
from streamproc.domain.reviewers import Reviewers

__all__ = [
    "FREEZE",
    "AgentPolicy",
    "Bindings",
    "Freeze",
    "Policy",
    "PolicyBook",
    "PolicyFile",
    "RateLimit",
    "ScopeLimits",
    "ScopeState",
    "effective_policy",
    "fields_of",
    "parse_policy_file",
    "patch_scope",
    "plan_changes",
    "plan_freeze",
    "scopes_after",
]


class AgentPolicy(Struct, frozen=True, eq=False):
    """One agent's policy in force, with compiled domain lists. Compared by identity, so that caches can use it as a
    cheap key."""

    version: int
    policy: Policy
    allowed: DomainSet
    blocked: DomainSet


class Freeze(Struct, frozen=True):
    """A freeze by `streamproc freeze`: on which scope, by whom, why."""

    scope: str
    by: str
    why: str


class Bindings:
    """The fund accounts and signing keys bound to each agent. Its people are in `Reviewers`."""

    def __init__(self, own: Mapping[str, object]) -> None:
        self._bound = {
            (agent, field, value)
            for agent, fields in cast("Mapping[str, Mapping[str, list[str]]]", own).items()
            for field, values in fields.items()
            for value in values
        }
        self._keys: dict[str, list[str]] = {}
        for agent, field, value in self._bound:
            if field == "public_keys":
                self._keys.setdefault(agent, []).append(value)

    def verified_agent(self, agent: str, fund_account: str) -> bool:
        """Whether *fund_account* is bound to *agent*."""
        return bool(self._bound) and (agent, "fund_accounts", fund_account) in self._bound

    def signed_by(self, agent: str, signed: bytes, signature: str) -> bool:
        """Whether *signature* over *signed* is by one of the agent's keys."""
        return any(is_signed(key, signed, signature) for key in self._keys.get(agent, ()))


class PolicyBook:
    """All policies in force at one moment. Cheap to make, since it is made anew at every change: each policy is parsed
    on first use, and then a lookup is one dict access."""

    def __init__(self, scopes: Mapping[str, ScopeState]) -> None:
        self._scopes = dict(scopes)
        self._agents: dict[str, AgentPolicy] = {}
        self._limits: dict[str, ScopeLimits] = {}
        self.people = Reviewers(self._own)
        self.reviewers: Mapping[str, str] = self.people.slack
        """Name -> Slack user id, or empty."""
        self._may_be_frozen = any(scope.startswith(FREEZE) for scope in self._scopes)
        self.bindings = Bindings(self._own("agents") or {})

    def agent(self, agent: str) -> AgentPolicy | None:
        """The agent's policy, or None where it has none."""
        known = self._agents.get(agent)
        return known if known is not None else self._read_agent(agent)

    def account(self, account: str) -> ScopeLimits | None:
        """The account's limits, or None where it has none."""
        return self._scope_limits(f"account:{account}")

    def team(self, team: str) -> ScopeLimits | None:
        """The team's limits, or None where it has none."""
        return self._scope_limits(f"team:{team}")

    def freeze(self, agent: str, account: str, team: str | None) -> Freeze | None:
        """The freeze that binds a payout of these: the first of agent, account and team; None if there is none."""
        if not self._may_be_frozen:
            return None  # asked for every payout, and answered so nearly always
        # Of no team: else a team called None would be everybody's.
        of_team = (f"team:{team}",) if team is not None else ()
        for scope in (f"agent:{agent}", f"account:{account}", *of_team):
            own = self._own(FREEZE + scope)
            if own is not None:
                return Freeze(scope, str(own.get("by", "")), str(own.get("why", "")))
        return None

    def _own(self, scope: str) -> dict[str, object] | None:
        state = self._scopes.get(scope)
        return None if state is None else state.own

    def _read_agent(self, agent: str) -> AgentPolicy | None:
        state = self._scopes.get(f"agent:{agent}")
        if state is None or state.effective is None:
            return None
        policy = effective_policy({}, state.effective, is_in_force=True)
        allowed, blocked = compile_domains(policy.allowed_domains), compile_domains(policy.blocked_domains)
        self._agents[agent] = AgentPolicy(state.version, policy, allowed, blocked)
        return self._agents[agent]

    def _scope_limits(self, scope: str) -> ScopeLimits | None:
        known = self._limits.get(scope)
        own = self._own(scope) if known is None else None
        if own is None:
            return known
        report = Report(scope)
        of_account = scope.startswith("account:")
        limits = read_limits(own, report, (), of_account=of_account, is_in_force=True)
        report.refuse_if_any()
        self._limits[scope] = limits
        return limits
