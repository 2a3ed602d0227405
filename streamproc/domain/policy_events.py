"""Events about policies: changes, and those that wait for a second person because they loosen something (ADR 23)."""

from typing import Literal, TypeAlias

from msgspec import Struct

from streamproc.domain.facts import Fact

Channel: TypeAlias = Literal["cli", "api"]
"""How somebody came: a name is claimed on the command line, and the token's owner's over HTTP."""


class PolicyChanged(Fact, frozen=True, kw_only=True, tag="policy.changed"):
    """One scope's policy became another. `own` and `effective` are what is in force afterwards.

    Version 1 knew of no second person.
    """

    v: int = 2
    scope: str
    """`agent:<id>`, `account:<id>`, `team:<id>`, `defaults`, `reviewers`, `agents`, `changes`, or `freeze:` before one
    of the first three: what `streamproc freeze` says of it, whatever its policy says."""
    version: int
    """Dense per scope, from 1."""
    before: dict[str, object] | None
    after: dict[str, object] | None
    """The fields as they were written for this scope; None where the scope does not exist."""
    effective: dict[str, object] | None
    """With the defaults filled in: what `decide` gets. For agents; else the same as `after`."""
    by: str
    why: str
    confirmed_by: str = ""
    """The second person, where the change had to wait for one."""
    proposal: str = ""
    """What that person confirmed."""


class ScopeChange(Struct, frozen=True, kw_only=True):
    """What is to become of one scope's own fields; None: there is no such scope."""

    scope: str
    before: dict[str, object] | None
    after: dict[str, object] | None


class Loosening(Struct, frozen=True, kw_only=True):
    """One field by which a change lets more through, with what is in force before and after. `field` may be empty: the
    scope as a whole."""

    scope: str
    field: str
    before: object
    after: object
    why: str


class PolicyProposed(Fact, frozen=True, kw_only=True, tag="policy.proposed"):
    """Somebody wants a change that loosens something. A second person must confirm it: nothing is in force yet."""

    proposal: str
    changes: list[ScopeChange]
    loosens: list[Loosening]
    by: str
    why: str
    channel: Channel
    expires_at: int
    """µs."""


class ProposalConfirmed(Fact, frozen=True, kw_only=True, tag="policy.proposal_confirmed"):
    """A second person confirmed it: it is put in force on every partition."""

    proposal: str
    by: str
    channel: Channel
    base: list[dict[str, int]]
    """For each partition the versions of the scopes that it was confirmed on: a partition where one of them has moved
    on has the change already, or was overtaken by another, and is left alone however often this is repeated."""


class ProposalWithdrawn(Fact, frozen=True, kw_only=True, tag="policy.proposal_withdrawn"):
    """It is not wanted any more, by who proposed it or by somebody else."""

    proposal: str
    by: str
    why: str
