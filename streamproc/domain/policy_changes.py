"""Changes of policies: versions, and the `policy.changed` events that a file or a command makes.

A scope is `agent:<id>`, `account:<id>`, `team:<id>`, `defaults`, `reviewers`, `agents` (bindings) or `changes` (who may
make them), or a freeze of one of the first three, `freeze:agent:<id>`, which no file names and so no file lifts. Its
versions are dense from 1 and survive its removal. The defaults are part of every agent's policy, so changing them gives
a new version to each agent whose policy they change, and to no other.
"""

from collections.abc import Mapping, Sequence

from msgspec import Struct
from msgspec.structs import replace

from streamproc.domain.attribution import NOBODY, Attribution
from streamproc.domain.payouts import UNKNOWN_AGENT
from streamproc.domain.policy_events import PolicyChanged, ScopeChange
from streamproc.domain.policy_fields import (
    Fields,
    Reader,
    agent_with_policy,
    fields_of,
    identifier,
    read_limits,
    read_policy,
)
from streamproc.domain.policy_file import PolicyFile
from streamproc.domain.policy_report import Report, shown
from streamproc.domain.reviewers import conflicts
from streamproc.errors import InputError, JobFailed, LogBroken

_UNSET = object()
FREEZE = "freeze:"
"""Prefix of a frozen scope: a scope of its own, so that a file's `frozen` and a person's freeze do not mix."""
_SINGLE = frozenset({"defaults", "reviewers", "agents", "changes"})
"""Scopes of which there is one."""
PROFILE = "anomaly_profile"
"""The field of an agent's policy that is measured, and not written (ADR 35)."""
_SECTION = {"agent": "policies", "account": "accounts", "team": "teams"}


class NoPolicy(InputError):
    """The agent has no policy that could be changed by field."""


NONE_YET = -1
"""Given as a version: there must be no policy yet."""


class Stale(JobFailed):
    """The policy is at another version than the caller expected."""


class Differ(JobFailed):
    """The partitions have different policies for a scope: a change was interrupted, and has to be made again."""


class Contended(JobFailed):
    """Others kept changing the same meanwhile. Nothing is wrong, and asking again can help."""


class Overtaken(JobFailed):
    """Another change went first. Whoever loosens must know of it before asking again, so that no program does it."""


class ScopeState(Struct, frozen=True, kw_only=True):
    """One scope at one version. `own` is as written; both are None if the scope was removed."""

    version: int
    own: Fields | None
    effective: Fields | None


def is_scope(name: str) -> bool:
    """Whether a name is a scope's in full, `account:acc_1` or `reviewers`: any other can only be an agent's id."""
    kind, _, named = name.removeprefix(FREEZE).partition(":")
    return name in _SINGLE or (kind in _SECTION and named != "")


def plan_changes(
    current: Mapping[str, ScopeState], file: PolicyFile, *, prune: bool, at: int, by: str, why: str
) -> list[PolicyChanged]:
    """The changes that putting *file* in force makes; none if nothing differs. *at* is µs.

    Scopes that the file does not name stay; *prune* removes agents, accounts and teams among them. An agent keeps its
    `anomaly_profile` where the file does not name that.
    Raises InputError if a policy is inconsistent once the defaults are filled in.
    """
    agents = {
        f"agent:{name}": _with_profile(own, current.get(f"agent:{name}"))
        for name, own in file.policies.items()
    }
    named = _scopes_of(file) | agents
    wanted = {
        scope: None if prune and _is_prunable(scope) and scope not in named else state.own
        for scope, state in current.items()
    }
    return _changes(current, wanted | named, Report(file.name, file.lines), at=at, by=by, why=why)


def _is_prunable(scope: str) -> bool:
    return ":" in scope and not scope.startswith(FREEZE)


def plan_freeze(
    current: Mapping[str, ScopeState], scope: str, *, frozen: bool, at: int, by: str, why: str
) -> list[PolicyChanged]:
    """The change that freezes *scope* (`agent:<id>`, `account:<id>`, `team:<id>`) or lifts its freeze; none if there is
    none to lift. A freeze of what is frozen is a change too, in the same words as well: what waits to lift the first
    one must not lift it. The scope need not have a policy. InputError for a scope that cannot be frozen.
    """
    kind, _, name = scope.partition(":")
    if kind not in _SECTION:
        raise InputError(f"{scope}: only agent:<id>, account:<id> and team:<id> can be frozen")
    try:
        identifier(name)
    except ValueError as problem:
        raise InputError(f"{kind} {problem}") from problem
    state = current.get(FREEZE + scope, ScopeState(version=0, own=None, effective=None))
    if not frozen and state.own is None:
        return []
    own: Fields | None = {"frozen": True, "by": by, "why": why} if frozen else None
    change = PolicyChanged(
        at=at, scope=FREEZE + scope, version=state.version + 1, before=state.own, after=own, effective=own,
        by=by, why=why,
    )  # fmt: skip
    return [change]


def patch_scope(
    current: Mapping[str, ScopeState], scope: str, fields: Mapping[str, object], *, at: int, by: str, why: str
) -> list[PolicyChanged]:
    """The changes that a PATCH of an agent, account, team or `defaults` makes; none if nothing differs.

    Fields that are not named stay; null removes a field, so that the default counts again. InputError for a wrong
    field, and for an agent without a policy, since a PATCH must not give it one.
    """
    kind, _, name = scope.partition(":")
    if scope != "defaults" and kind not in _SECTION:
        raise InputError(
            f"{scope}: only defaults, agent:<id>, account:<id> and team:<id> have fields to change"
        )
    state = current.get(scope)
    own = None if state is None else state.own
    if own is None and kind == "agent":
        raise NoPolicy(f"agent {name} has no policy to change; write one first")
    report = Report(scope)
    merged = _merged(own or {}, fields)
    if scope == "defaults":
        read_policy(merged, report, ())
    else:
        _check_own(kind, name, merged, report)
    report.refuse_if_any()
    wanted = {s: state.own for s, state in current.items()} | {scope: merged}
    return _changes(current, wanted, report, at=at, by=by, why=why)


def put_policy(
    current: Mapping[str, ScopeState], agent: str, fields: Fields, *, at: int, by: str, why: str
) -> list[PolicyChanged]:
    """The changes that a PUT of an agent's policy makes: *fields* instead of its own, but for an `anomaly_profile` that
    they do not name. InputError for a wrong one."""
    report = Report(f"agent:{agent}")
    fields = _with_profile(fields, current.get(f"agent:{agent}"))
    if agent == UNKNOWN_AGENT:
        report.add((), f"{agent} is who a payout belongs to that names no agent: it can have no policy")
    _check_own("agent", agent, fields, report, named_by=agent_with_policy)
    report.refuse_if_any()
    wanted = {scope: state.own for scope, state in current.items()} | {f"agent:{agent}": fields}
    return _changes(current, wanted, report, at=at, by=by, why=why)


def check_version(current: Mapping[str, ScopeState], scope: str, version: int) -> None:
    """Raise Stale unless the scope is at this version. 0: it must exist, at any version; NONE_YET: it must not."""
    state = current.get(scope)
    if version == NONE_YET:
        if state is not None and state.own is not None:
            raise Stale(f"{scope} has a policy already, at version {state.version}")
        return
    if state is None or state.own is None:
        raise Stale(f"{scope} has no policy, and so no version {version or 'at all'}")
    if version and state.version != version:
        raise Stale(f"{scope} is at version {state.version}, not {version}")


def replan(
    current: Mapping[str, ScopeState],
    changes: Sequence[PolicyChanged] | Sequence[ScopeChange],
    attribution: Attribution,
    *,
    at: int,
    confirmed: Attribution = NOBODY,
    proposal: str = "",
) -> list[PolicyChanged]:
    """*changes*, which were planned together on other policies, planned again on the present ones.

    Only the own fields that they change are changed; all others stay as they are now. Each gets its scope's next
    version. InputError if the result is inconsistent.
    """
    if not changes:
        return []
    wanted = {scope: state.own for scope, state in current.items()}
    wanted |= {change.scope: _rebased(change, wanted.get(change.scope)) for change in changes}
    report = Report(", ".join(change.scope for change in changes))
    made = _changes(current, wanted, report, at=at, by=attribution.by, why=attribution.why)
    return [
        replace(
            change,
            channel=attribution.channel,
            confirmed_by=confirmed.by,
            confirmed_channel=confirmed.channel,
            proposal=proposal,
        )
        for change in made
    ]


def _rebased(change: PolicyChanged | ScopeChange, own: Fields | None) -> Fields | None:
    """A scope's own fields after *change*, which was planned on other ones."""
    before, after = change.before or {}, change.after
    if own is None or after is None:
        return after
    kept = {field: value for field, value in own.items() if field in after or field not in before}
    return kept | {field: value for field, value in after.items() if before.get(field, _UNSET) != value}


def scopes_after(scopes: Mapping[str, ScopeState], *changes: PolicyChanged) -> dict[str, ScopeState]:
    """The fold: what is in force after *changes*. LogBroken if a version is skipped or repeated."""
    after = dict(scopes)
    for change in changes:
        before = after[change.scope].version if change.scope in after else 0
        if change.version != before + 1:
            raise LogBroken(f"policy {change.scope}: version {change.version} follows version {before}")
        after[change.scope] = ScopeState(version=change.version, own=change.after, effective=change.effective)
    return after


def _with_profile(own: Fields, state: ScopeState | None) -> Fields:
    """An agent's fields with the profile that it has. That is measured and not written, so a file that does not name it
    must not end it; one that says null does."""
    if own.get(PROFILE) is not None:
        return own
    had = None if state is None or PROFILE in own else (state.own or {}).get(PROFILE)
    without = {name: value for name, value in own.items() if name != PROFILE}
    return without if had is None else without | {PROFILE: had}


def _scopes_of(file: PolicyFile) -> dict[str, Fields | None]:
    """The scopes that a file names, each with its own fields as written there."""
    named: dict[str, Fields | None] = {}
    if file.defaults is not None:
        named["defaults"] = file.defaults
    for kind, scopes in (("agent", file.policies), ("account", file.accounts), ("team", file.teams)):
        named |= {f"{kind}:{name}": fields for name, fields in scopes.items()}
    if file.reviewers is not None:
        named["reviewers"] = dict(file.reviewers)
    if file.agents is not None:
        named["agents"] = dict(file.agents)
    if file.changes is not None:
        named["changes"] = file.changes
    return named


def _changes(
    current: Mapping[str, ScopeState],
    wanted: Mapping[str, Fields | None],
    report: Report,
    *,
    at: int,
    by: str,
    why: str,
) -> list[PolicyChanged]:
    defaults = wanted.get("defaults") or {}
    old_defaults = current["defaults"].own if "defaults" in current else None
    changes: list[PolicyChanged] = []
    for scope, own in wanted.items():
        old = current.get(scope, ScopeState(version=0, own=None, effective=None))
        if own == old.own and (
            own is None or not scope.startswith("agent:") or defaults == (old_defaults or {})
        ):
            continue
        effective = _effective(scope, own, defaults, report)
        if own == old.own and _same_policy(effective, old.effective):
            continue
        changes.append(
            PolicyChanged(
                at=at,
                scope=scope,
                version=old.version + 1,
                before=old.own,
                after=own,
                effective=effective,
                by=by,
                why=why,
            )
        )
    if defaults.get(PROFILE) is not None:
        report.add(("defaults", PROFILE), "is measured from one agent's payouts, and so no default")
    _check_teams(current, wanted, changes, report)
    _check_reviewers(current, wanted, report)
    report.refuse_if_any()
    return changes


def _check_teams(
    current: Mapping[str, ScopeState],
    wanted: Mapping[str, Fields | None],
    changes: list[PolicyChanged],
    report: Report,
) -> None:
    """Report an agent's team that does not exist: with a misspelt team, its limit would not bind the agent."""
    effective = {scope: state.effective for scope, state in current.items()}
    effective |= {change.scope: change.effective for change in changes}
    for scope, fields in effective.items():
        kind, _, name = scope.partition(":")
        team = fields.get("team") if kind == "agent" and fields is not None else None
        if team is not None and wanted.get(f"team:{team}") is None:
            report.add(("policies", name, "team"), f"there is no {shown(team)} under teams")


def _check_reviewers(
    current: Mapping[str, ScopeState], wanted: Mapping[str, Fields | None], report: Report
) -> None:
    """Report a change that makes an agent a reviewer. One that already is does not block other changes."""

    def own_now(scope: str) -> Fields | None:
        return current[scope].own if scope in current else None

    before = conflicts(own_now)
    for conflict in conflicts(wanted.get):
        if conflict not in before:
            written = (path for path in conflict.paths if path in report.lines)
            report.add(next(written, conflict.paths[0]), conflict.problem)


def _effective(scope: str, own: Fields | None, defaults: Fields, report: Report) -> Fields | None:
    kind, _, name = scope.partition(":")
    if own is None or kind != "agent":
        return own
    effective = fields_of(read_policy({**defaults, **own}, report, ("policies", name)))
    if effective[PROFILE] is None:
        # A worker of a version that does not know the field cannot read a policy that has it.
        del effective[PROFILE]
    return effective


def _same_policy(one: Fields | None, other: Fields | None) -> bool:
    """Whether both are the same once parsed: a field that a newer release added is not a change."""
    if one is None or other is None:
        return one is other
    # Problems of `one` are already in the caller's report, which then refuses the whole plan.
    ignored = Report("")
    return read_policy(one, ignored, ()) == read_policy(other, ignored, ())


def _merged(own: Fields, fields: Mapping[str, object]) -> Fields:
    merged = dict(own)
    for name, value in fields.items():
        before = merged.get(name)
        if value is None:
            merged.pop(name, None)
        elif isinstance(value, dict) and isinstance(before, dict):
            merged[name] = _merged(before, value)
        else:
            merged[name] = value
    return merged


def _check_own(kind: str, name: str, own: Fields, report: Report, *, named_by: Reader = identifier) -> None:
    try:
        named_by(name)
    except ValueError as problem:
        report.add((), str(problem))
    if kind == "agent":
        read_policy(own, report, ())
    else:
        read_limits(own, report, (), of_account=kind == "account")
