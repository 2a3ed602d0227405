"""Freezing an agent, an account or a team: nothing of it is paid from the next decision and the next call on."""

from collections.abc import Mapping
from typing import Any

from msgspec import Struct

from streamproc.domain.attribution import Attribution
from streamproc.domain.events import PolicyChanged
from streamproc.domain.policy import FREEZE, ScopeState, plan_freeze
from streamproc.domain.policy_changes import Overtaken
from streamproc.domain.proposals import Proposal
from streamproc.log.names import Names
from streamproc.log.policies import read_scopes
from streamproc.operate.changes import make
from streamproc.operate.policies import in_force
from streamproc.operate.site import Site


class Frozen(Struct, frozen=True):
    """The result of freezing a scope, or of lifting its freeze. `changed`: partitions where it was otherwise before.

    `proposal`: the lifting waits for a second person, and nothing is lifted yet.
    """

    scope: str
    frozen: bool
    changed: list[int]
    notes: list[str]
    proposal: Proposal | None = None


async def freeze(site: Site, scope: str, attribution: Attribution, *, frozen: bool) -> Frozen:
    """Freeze `agent:<id>`, `account:<id>` or `team:<id>` on every partition, or lift that. Safe to repeat. Each freeze
    is recorded, and what is older than it does not lift it.

    Raises InputError for what cannot be frozen, Overtaken where it was frozen anew while its lifting waited for its
    turn, LogUnavailable if Redis went away half way: run it again then.
    """
    known = [] if frozen else await _versions(site, scope)

    def plan(partition: int, scopes: Mapping[str, ScopeState], at: int) -> list[PolicyChanged]:
        if not frozen:
            _refuse_if_newer(scope, scopes, partition, known[partition])
        return plan_freeze(scopes, scope, frozen=frozen, at=at, by=attribution.by, why=attribution.why)

    made = await make(site, plan, attribution, freezes=frozen)
    if isinstance(made, Proposal):
        return Frozen(scope, True, [], [], made)
    _, scopes = await read_scopes(site.client, Names(site.partitions - 1))
    changed = [one.partition for one in made if any(c.before != c.after for c in one.changes)]
    return Frozen(scope, frozen, changed, _notes(scope, scopes, frozen=frozen))


async def _versions(site: Site, scope: str) -> list[int]:
    """The version of the scope's freeze on each partition."""
    read = [await read_scopes(site.client, Names(partition)) for partition in range(site.partitions)]
    return [scopes[FREEZE + scope].version if FREEZE + scope in scopes else 0 for _, scopes in read]


def _refuse_if_newer(scope: str, scopes: Mapping[str, ScopeState], partition: int, known: int) -> None:
    """A freeze goes before a lifting that waits for its turn, whose person knew nothing of it."""
    state = scopes.get(FREEZE + scope)
    if state is not None and state.own is not None and state.version != known:
        raise Overtaken(
            f"partition {partition}: {scope} was frozen anew meanwhile, by {state.own.get('by')}, and stays frozen"
            " from this partition on: run it again to lift that freeze as well"
        )


async def frozen_now(site: Site) -> list[dict[str, Any]]:
    """Every freeze in force, by scope. Raises JobFailed if partitions do not agree."""
    scopes = await in_force(site, lambda scope: scope.startswith(FREEZE))
    return [
        {
            "scope": name.removeprefix(FREEZE),
            "by": (state.own or {}).get("by"),
            "why": (state.own or {}).get("why"),
        }
        for name, state in sorted(scopes.items())
        if name.startswith(FREEZE)
    ]


def _notes(scope: str, scopes: dict[str, ScopeState], *, frozen: bool) -> list[str]:
    """What may surprise: there is no such policy, or it freezes the scope itself."""
    state = scopes.get(scope)
    if frozen and (state is None or state.own is None):
        return [f"no policy names {scope}; it is frozen all the same: check that this is its id"]
    fields = (state.effective or state.own or {}) if state is not None else {}
    if not frozen and fields.get("frozen"):
        return [f"{scope} stays frozen: its policy says `frozen: true`; apply a file without that"]
    return []
