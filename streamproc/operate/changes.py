"""Changing policies, by a file or a field: put in force on every partition, or proposed to a second person."""

from collections.abc import Callable, Mapping
from typing import TypeAlias

from msgspec import Struct
from msgspec.structs import replace

from streamproc.domain.attribution import Attribution
from streamproc.domain.events import PolicyChanged
from streamproc.domain.policy import ScopeState
from streamproc.domain.policy_changes import Contended
from streamproc.domain.policy_events import Loosening, ScopeChange
from streamproc.domain.policy_loosening import loosened, two_people
from streamproc.domain.proposals import Proposal
from streamproc.log.clock import clock_us
from streamproc.log.names import Names
from streamproc.log.policies import CHANGES_MAX, put_in_force, read_scopes
from streamproc.operate.change_lease import ChangeLease, change_lease
from streamproc.operate.proposals import Applied, propose, withdraw_overtaken
from streamproc.operate.site import Site

Scopes: TypeAlias = Mapping[str, ScopeState]
Planner: TypeAlias = Callable[[int, Scopes, int], list[PolicyChanged]]
"""The changes of a partition's policies at a time (µs); planned again if others change policies meanwhile."""


class Preview(Struct, frozen=True):
    """What a change would do now, and what of it loosens. `waits`: it would wait for a second person."""

    changes: list[Applied]
    loosens: list[Loosening]
    waits: bool


async def preview(site: Site, plan: Planner) -> Preview:
    """Plan without changing anything. Raises InputError for an inconsistent policy."""
    planned: list[Applied] = []
    loosens: dict[tuple[str, str], Loosening] = {}
    guarded = False
    for partition in range(site.partitions):
        _, scopes = await read_scopes(site.client, Names(partition))
        changes = plan(partition, scopes, await clock_us(site.client))
        planned.append(Applied(partition, None, changes))
        # Partitions that agree, as they nearly always do, say each thing once.
        loosens |= {
            (one.scope, one.field): one
            for one in loosened(scopes, changes)
            if (one.scope, one.field) not in loosens
        }
        guarded = guarded or _guarded(scopes)
    return Preview(planned, list(loosens.values()), guarded and bool(loosens))


def _guarded(scopes: Scopes) -> bool:
    state = scopes.get("changes")
    return state is not None and two_people(state.own)


async def make(
    site: Site, plan: Planner, attribution: Attribution, *, freezes: bool = False
) -> list[Applied] | Proposal:
    """Put a change in force on every partition; or, where it loosens and the policies want two people, propose it.

    The whole change waits then, also what of it tightens. One that `freezes` goes before others that are not done.
    Safe to repeat: what is in force already changes nothing. Raises InputError for an inconsistent policy, Contended
    where others keep changing policies at the same time.
    """
    async with change_lease(site, freezes=freezes) as mine:
        seen = await preview(site, plan)
        if seen.waits:
            return await propose(site, _wanted(seen), seen.loosens, attribution)
        await withdraw_overtaken(site, seen.changes, attribution)
        return [
            await _make_on(site, partition, plan, mine, attribution) for partition in range(site.partitions)
        ]


def _wanted(seen: Preview) -> list[ScopeChange]:
    """What every partition is to have, without what only follows from defaults."""
    wanted: dict[str, ScopeChange] = {}
    for one in seen.changes:
        for change in one.changes:
            if change.before != change.after:
                changed = ScopeChange(scope=change.scope, before=change.before, after=change.after)
                wanted.setdefault(change.scope, changed)
    return list(wanted.values())


async def _make_on(
    site: Site, partition: int, plan: Planner, mine: ChangeLease, attribution: Attribution
) -> Applied:
    names = Names(partition)
    for _ in range(CHANGES_MAX):
        rev, scopes = await read_scopes(site.client, names)
        planned = plan(partition, scopes, await clock_us(site.client))
        changes = [replace(change, channel=attribution.channel) for change in planned]
        if not changes:
            if await mine.passes(partition, rev):
                return Applied(partition, None, [])
            continue
        if _guarded(scopes) and loosened(scopes, changes):
            raise Contended(
                f"partition {partition}: policies changed meanwhile, and this change now needs a second person;"
                " run it again to propose it"
            )
        await mine.goes_on(partition)
        entry = await put_in_force(site.client, names, rev, changes, actor=attribution.by)
        if entry is not None:
            return Applied(partition, entry, changes)
    raise Contended(
        f"partition {partition}: others changed policies {CHANGES_MAX} times meanwhile; run it again"
    )
