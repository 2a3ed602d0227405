"""Freezing: nothing of an agent, an account or a team is paid any more, from the next decision and the next call on."""

from msgspec import Struct

from streamproc.domain.policy import ScopeState, plan_freeze
from streamproc.errors import JobFailed
from streamproc.log.inspect import clock_us
from streamproc.log.names import Names
from streamproc.log.policies import CHANGES_MAX, put_in_force, read_scopes
from streamproc.operate.site import Site


class Frozen(Struct, frozen=True):
    """What freezing, or lifting it, came to. `changed`: partitions that were otherwise before."""

    scope: str
    frozen: bool
    changed: list[int]
    notes: list[str]


async def freeze(site: Site, scope: str, *, frozen: bool, by: str, why: str) -> Frozen:
    """Freeze `agent:<id>`, `account:<id>` or `team:<id>` on every partition, or lift that. Safe to repeat.

    Raises InputError for what cannot be frozen, LogUnavailable where Redis went away half way: run it again.
    """
    changed: list[int] = []
    scopes: dict[str, ScopeState] = {}
    for partition in range(site.partitions):
        did, scopes = await _freeze_on(site, partition, scope, frozen=frozen, by=by, why=why)
        if did:
            changed.append(partition)
    return Frozen(scope, frozen, changed, _notes(scope, scopes, frozen=frozen))


async def _freeze_on(
    site: Site, partition: int, scope: str, *, frozen: bool, by: str, why: str
) -> tuple[bool, dict[str, ScopeState]]:
    names = Names(partition)
    for _ in range(CHANGES_MAX):
        rev, scopes = await read_scopes(site.client, names)
        at = await clock_us(site.client)
        changes = plan_freeze(scopes, scope, frozen=frozen, at=at, by=by, why=why)
        if not changes or await put_in_force(site.client, names, rev, changes, actor=by) is not None:
            return bool(changes), scopes
    raise JobFailed(
        f"partition {partition}: policies changed {CHANGES_MAX} times under our hands; run the command again"
    )


def _notes(scope: str, scopes: dict[str, ScopeState], *, frozen: bool) -> list[str]:
    """What a person may not expect: no such policy, or one that says frozen by itself."""
    state = scopes.get(scope)
    if frozen and (state is None or state.own is None):
        return [f"no policy names {scope}; it is frozen all the same: check that this is its id"]
    fields = (state.effective or state.own or {}) if state is not None else {}
    if not frozen and fields.get("frozen"):
        return [f"{scope} stays frozen: its policy says `frozen: true`; apply a file without that"]
    return []
