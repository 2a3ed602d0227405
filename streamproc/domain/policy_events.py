"""Events about policies: changes, and those that wait for a second person because they loosen something (ADR 23)."""

from msgspec import Struct

from streamproc.domain.facts import Fact


class PolicyChanged(Fact, frozen=True, kw_only=True, tag="policy.changed"):
    """One scope's policy changed. `after` and `effective` are in force from then on.

    Version 1 of this event knew no second person, version 2 no channels.
    """

    v: int = 3
    scope: str
    """`agent:<id>`, `account:<id>`, `team:<id>`, `defaults`, `reviewers`, `agents`, `changes`, or `freeze:` and one of
    the first three: its freeze by `streamproc freeze`, whatever its policy says."""
    version: int
    """Dense per scope, from 1."""
    before: dict[str, object] | None
    after: dict[str, object] | None
    """The fields as written for this scope; None if the scope does not exist."""
    effective: dict[str, object] | None
    """With the defaults filled in: what `decide` gets. For agents; else the same as `after`."""
    by: str
    why: str
    confirmed_by: str = ""
    """The second person, if the change had to wait for one."""
    proposal: str = ""
    """Id of the proposal that this person confirmed."""
    channel: str = ""
    """By which `by` changed or proposed it (domain/attribution.py)."""
    confirmed_channel: str = ""
    """That of the second person."""


def headline(change: PolicyChanged) -> str:
    """A change without its fields: `agent:bot changed, version 3`. Of a freeze, `removed` says that it is lifted."""
    verb = "added" if change.before is None else "removed" if change.after is None else "changed"
    return f"{change.scope} {verb}, version {change.version}"


class ScopeChange(Struct, frozen=True, kw_only=True):
    """The intended change of one scope's own fields; None: the scope does not exist."""

    scope: str
    before: dict[str, object] | None
    after: dict[str, object] | None


class Loosening(Struct, frozen=True, kw_only=True):
    """One field by which a change lets more through, with its effective value before and after. An empty `field` means
    the scope as a whole."""

    scope: str
    field: str
    before: object
    after: object
    why: str


class PolicyProposed(Fact, frozen=True, kw_only=True, tag="policy.proposed"):
    """Somebody proposed a change that loosens something. Nothing is in force until a second person confirms it.

    Version 1 of this event and of the confirmation knew only the channel's kind.
    """

    v: int = 2
    proposal: str
    changes: list[ScopeChange]
    loosens: list[Loosening]
    by: str
    why: str
    channel: str
    expires_at: int
    """µs."""


class ProposalConfirmed(Fact, frozen=True, kw_only=True, tag="policy.proposal_confirmed"):
    """A second person confirmed the proposal: it is put in force on every partition."""

    v: int = 2
    proposal: str
    by: str
    channel: str
    base: list[dict[str, int]]
    """For each partition, the versions of the scopes at the confirmation. If one of them has moved on, the partition
    has the change already, or another one came first; so repeating the confirmation leaves it alone."""


class ProposalWithdrawn(Fact, frozen=True, kw_only=True, tag="policy.proposal_withdrawn"):
    """The proposal was withdrawn, by its proposer or by somebody else. Version 1 knew no channel."""

    v: int = 2
    proposal: str
    by: str
    why: str
    channel: str = ""
