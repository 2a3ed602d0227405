"""Policies: put a file in force on every partition, show what is in force, and how it came to be."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import msgspec
from msgspec import Struct

from streamproc.archive.read import PolicyRow, policy_versions, views_upto
from streamproc.domain.attribution import Attribution
from streamproc.domain.calibration import profile_wanted
from streamproc.domain.entry_ids import ZERO
from streamproc.domain.events import PolicyChanged
from streamproc.domain.policy import FREEZE, PolicyFile, ScopeState, patch_scope, plan_changes
from streamproc.domain.policy_changes import Differ, is_scope
from streamproc.domain.shown import iso
from streamproc.errors import JobFailed
from streamproc.log.names import Names
from streamproc.log.policies import read_scopes
from streamproc.operate.changes import Planner
from streamproc.operate.history import TAIL_ENTRIES_MAX, log_after, readable
from streamproc.operate.moments import us_of
from streamproc.operate.site import Site

WANTED_SHOWN_MAX = 10
"""Agents without a profile that are named one by one: `anomaly: true` among the defaults asks it of all."""
_TAG = b'"policy.changed"'


class NeverHad(JobFailed):
    """The agent never had a policy, or the scope was never set."""


class FieldChange(Struct, frozen=True):
    """One field of a scope. None: the field was, or is, not set."""

    field: str
    before: object
    after: object


def of_file(file: PolicyFile, attribution: Attribution, *, prune: bool) -> Planner:
    """Plans to put a policy file in force; `prune` also removes the agents, accounts and teams that it lacks."""
    return lambda _, scopes, at: plan_changes(
        scopes, file, prune=prune, at=at, by=attribution.by, why=attribution.why
    )


def of_patch(scope: str, fields: Mapping[str, object], attribution: Attribution) -> Planner:
    """Plans to change the named fields of an agent, account, team or the defaults."""
    return lambda _, scopes, at: patch_scope(
        scopes, scope, fields, at=at, by=attribution.by, why=attribution.why
    )


def changed_fields(change: PolicyChanged) -> list[FieldChange]:
    """What a change does to each field, as written for its scope."""
    before, after = change.before or {}, change.after or {}
    return [
        FieldChange(field, before.get(field), after.get(field))
        for field in sorted(before.keys() | after.keys())
        if before.get(field) != after.get(field)
    ]


def profiles_wanted(changes: Iterable[PolicyChanged]) -> list[str]:
    """What is to be done for agents whose policies ask rule 15 and have no profile, each once; of many the first."""
    agents = {c.scope.removeprefix("agent:"): c.effective for c in changes if c.scope.startswith("agent:")}
    wanted = [text for agent, effective in agents.items() if (text := profile_wanted(agent, effective))]
    more = len(wanted) - WANTED_SHOWN_MAX
    return [*wanted[:WANTED_SHOWN_MAX], *([f"and {more} agents more have no profile"] if more > 0 else [])]


def change_json(change: PolicyChanged) -> dict[str, Any]:
    """A change as scripts see it."""
    return {
        "scope": change.scope,
        "version": change.version,
        "at": iso(change.at),
        "by": change.by,
        "channel": change.channel or None,
        "why": change.why,
        "confirmed_by": change.confirmed_by or None,
        "confirmed_channel": change.confirmed_channel or None,
        "removed": change.after is None,
        "fields": [msgspec.to_builtins(field) for field in changed_fields(change)],
    }


def state_json(scope: str, state: ScopeState) -> dict[str, object]:
    """A scope as scripts see it."""
    kind, _, name = scope.partition(":")
    named = {"agent": name} if kind == "agent" else {}
    return {"scope": scope, **named, "version": state.version, "own": state.own, "effective": state.effective}


async def in_force(site: Site, of: Callable[[str], bool] = lambda _: True) -> dict[str, ScopeState]:
    """Every scope that has a policy, of those that `of` wants. Raises Differ where partitions do not agree on one."""
    _, first = await read_scopes(site.client, Names(0))
    for partition in range(1, site.partitions):
        _, other = await read_scopes(site.client, Names(partition))
        different = [
            scope
            for scope in first.keys() | other.keys()
            if of(scope) and not _same(first.get(scope), other.get(scope))
        ]
        if different:
            raise Differ(
                f"partitions 0 and {partition} have different policies for {', '.join(sorted(different))};"
                " apply the policy file, or freeze and unfreeze, again"
            )
    return {scope: state for scope, state in first.items() if of(scope) and state.own is not None}


def _same(one: ScopeState | None, other: ScopeState | None) -> bool:
    return (one.own if one else None) == (other.own if other else None)


async def in_force_for(site: Site, agent: str) -> dict[str, ScopeState]:
    """The policy, freeze and defaults of one agent. Partitions may differ about other agents: that does not matter."""
    concerned = {*_scopes_of(agent), "defaults"}
    return await in_force(site, concerned.__contains__)


async def policy_of(site: Site, agent: str) -> dict[str, ScopeState]:
    """An agent's policy and its freeze, as far as there are such. Raises JobFailed where it has no policy."""
    scopes = await in_force_for(site, agent)
    found = {scope: scopes[scope] for scope in _scopes_of(agent) if scope in scopes}
    if f"agent:{agent}" not in found:
        frozen = ", and it is frozen" if found else ""
        raise JobFailed(f"agent {agent} has no policy: its payouts are REJECTED NO_POLICY{frozen}")
    return found


def _scopes_of(agent: str) -> tuple[str, ...]:
    return f"{FREEZE}agent:{agent}", f"agent:{agent}"


def _scopes_named(name: str) -> tuple[str, ...]:
    """What a name is the history of: the agent with this id, and the scope, if it is one. An agent may be called
    `reviewers`: both are told then, since otherwise it would hide who changed the reviewers."""
    scopes = _scopes_of(name)
    if is_scope(name):
        scopes += (name,)
    if is_scope(FREEZE + name):
        scopes += (FREEZE + name,)
    return scopes


async def history(site: Site, name: str, *, of_agent: bool = False) -> tuple[list[PolicyChanged], str]:
    """The changes of an agent's policy, or of a scope (`account:<id>`, `reviewers`, …), with its freezes, the oldest
    first; and a note where some may be missing. `of_agent`: the name can be an agent's alone.

    Each partition keeps the policy for its accounts; the same version is told once. Raises NeverHad.
    """
    scopes = _scopes_of(name) if of_agent else _scopes_named(name)
    # The views' ends are asked for first: what is folded meanwhile is then found twice, never missed.
    ends = [await site.ask_postgres(views_upto, partition) for partition in range(site.partitions)]
    rows = await _rows_of(site, scopes)
    changes, notes = [_changed(row) for row in rows or ()], list[str]()
    for partition, end in enumerate(ends):
        after = ZERO if rows is None or end is None else end
        changes += await _changes_after(site, partition, after, notes)
    by_version = {(change.scope, change.version): change for change in changes if change.scope in scopes}
    if not by_version:
        scope = not of_agent and is_scope(name)
        raise NeverHad(f"{name} was never set here" if scope else f"agent {name} never had a policy here")
    if rows is None:
        notes.append(f"{site.postgres_problem}; these are the changes still in Redis")
    return sorted(by_version.values(), key=lambda change: (change.at, change.version)), "; ".join(notes)


async def _rows_of(site: Site, scopes: Sequence[str]) -> list[PolicyRow] | None:
    """The view's rows of these scopes; None while Postgres is away."""
    answers = [await site.ask_postgres(policy_versions, scope) for scope in scopes]
    return None if None in answers else [row for answer in answers for row in answer or ()]


async def _changes_after(site: Site, partition: int, after: str, notes: list[str]) -> list[PolicyChanged]:
    """The changes in the log after an entry; `notes` gets what cannot be read of it."""
    _, entries = await log_after(site, partition, after, _TAG, limit=TAIL_ENTRIES_MAX)
    events = [event for entry in entries for event in await readable(site, partition, entry, notes)]
    return [event for event in events if isinstance(event, PolicyChanged)]


def _changed(row: PolicyRow) -> PolicyChanged:
    """The event that a row of the view came from."""
    return PolicyChanged(
        at=us_of(row.at),
        scope=row.scope,
        version=row.version,
        before=_fields(row.before),
        after=_fields(row.after),
        effective=_fields(row.effective),
        by=row.by_whom,
        why=row.why,
        confirmed_by=row.confirmed_by,
        channel=row.channel,
        confirmed_channel=row.confirmed_channel,
    )


def _fields(stored: str | None) -> dict[str, object] | None:
    return None if stored is None else msgspec.json.decode(stored, type=dict[str, object])
