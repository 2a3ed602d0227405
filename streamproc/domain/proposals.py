"""Changes of policies that wait for a second person: what events make of them, and who may confirm one. Pure (ADR 23).

policy.proposed -> waiting --(24 h)--> expired
                      |-> policy.proposal_confirmed -> policy.changed on every partition
                      '-> policy.proposal_withdrawn
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Literal, TypeAlias

from msgspec import Struct
from msgspec.structs import replace

from streamproc.domain.attribution import Attribution, folded, kind_of
from streamproc.domain.budget import US
from streamproc.domain.events import Event
from streamproc.domain.policy_changes import ScopeState, replan
from streamproc.domain.policy_events import (
    Loosening,
    PolicyChanged,
    PolicyProposed,
    ProposalConfirmed,
    ProposalWithdrawn,
    ScopeChange,
)
from streamproc.domain.policy_loosening import loosened
from streamproc.domain.shown import iso
from streamproc.errors import JobFailed

EXPIRES_S = 86_400
"""How long a proposal waits: a working day in every zone, and not so long that people forget what it was based on."""
KEPT_S = 7 * 86_400
"""How long a closed proposal is kept, so that a late second person hears what became of it."""
PROPOSALS_MAX = 100
"""Most that may wait, and most closed ones that are kept: all are read whenever one is made."""
PROPOSAL_BYTES_MAX = 262_144
"""Largest proposal, as stored: some hundred agents. A larger file has to be split."""

ID = re.compile(r"prop_[0-9a-f]{16}")

Kind: TypeAlias = Literal["cli", "api"]
"""Where a proposer's name comes from: claimed on the command line, or the token's owner over HTTP."""
State: TypeAlias = Literal["waiting", "expired", "confirmed", "withdrawn"]


class NotThere(JobFailed):
    """There is no such proposal, or not any more."""


class Refused(JobFailed):
    """It cannot be confirmed or withdrawn (any more), or cannot be proposed since too many wait."""


class SamePerson(Refused):
    """The proposer cannot be the second person."""


class Proposal(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A proposed change and what became of it. Times in µs; `closed_at` 0: neither confirmed nor withdrawn.

    Kept in Redis, where earlier versions read it too: they know no more of a channel than its kind.
    """

    id: str
    changes: list[ScopeChange]
    loosens: list[Loosening]
    by: str
    why: str
    channel: Kind
    proposed_at: int
    expires_at: int
    confirmed_by: str = ""
    withdrawn_by: str = ""
    closed_at: int = 0
    base: list[dict[str, int]] = []
    proposed_channel: str = ""
    """In full; empty where an earlier version proposed it, and so below."""
    confirmed_channel: str = ""
    withdrawn_channel: str = ""

    def state(self, now_us: int) -> State:
        """Its present state."""
        if self.confirmed_by:
            return "confirmed"
        if self.withdrawn_by:
            return "withdrawn"
        return "waiting" if now_us < self.expires_at else "expired"

    def is_kept(self, now_us: int) -> bool:
        """Whether it is still kept, so that it can be asked about."""
        return now_us < (self.closed_at or self.expires_at) + KEPT_S * US


def proposals_after(proposals: Mapping[str, Proposal], events: Iterable[Event]) -> dict[str, Proposal]:
    """The proposals by id, after these events. A closed one stays as it was closed."""
    known = dict(proposals)
    for event in events:
        if type(event) is PolicyProposed:
            known[event.proposal] = _proposed(event)
        elif type(event) is ProposalConfirmed or type(event) is ProposalWithdrawn:
            proposal = known.get(event.proposal)
            if proposal is not None and not proposal.closed_at:
                known[event.proposal] = _closed(proposal, event)
    return known


def _proposed(event: PolicyProposed) -> Proposal:
    return Proposal(
        id=event.proposal,
        changes=event.changes,
        loosens=event.loosens,
        by=event.by,
        why=event.why,
        channel="api" if kind_of(event.channel) == "api" else "cli",
        proposed_at=event.at,
        expires_at=event.expires_at,
        proposed_channel=event.channel,
    )


def _closed(proposal: Proposal, event: ProposalConfirmed | ProposalWithdrawn) -> Proposal:
    by, channel, at = event.by, event.channel, event.at
    if type(event) is ProposalConfirmed:
        return replace(proposal, confirmed_by=by, confirmed_channel=channel, base=event.base, closed_at=at)
    return replace(proposal, withdrawn_by=by, withdrawn_channel=channel, closed_at=at)


def forgotten(proposals: Mapping[str, Proposal], now_us: int) -> list[str]:
    """Ids of closed proposals that are too old, or too many, to be kept."""
    over = [one for one in proposals.values() if one.state(now_us) != "waiting"]
    over.sort(key=lambda one: -(one.closed_at or one.expires_at))
    return [one.id for n, one in enumerate(over) if n >= PROPOSALS_MAX or not one.is_kept(now_us)]


def is_same_person(one: str, other: str) -> bool:
    """Names as people mean them: `Asha` is `asha`."""
    return folded(one) == folded(other)


def refuse_confirmation(proposal: Proposal, attribution: Attribution, now_us: int) -> None:
    """Raise Refused unless this person may confirm it now. (Who confirmed it already may be told so again.)"""
    name = proposal.id
    refuse_closed(proposal, now_us)
    if not folded(attribution.by):
        raise SamePerson(f"proposal {name} must be confirmed by somebody with a name: none was given")
    if is_same_person(attribution.by, proposal.by):
        raise SamePerson(f"proposal {name} is by {proposal.by}; somebody else must confirm it")
    if proposal.channel == "api" and kind_of(attribution.channel) != "api":
        raise SamePerson(
            f"proposal {name} was made over HTTP by a token's owner; another token's owner confirms it there"
        )


def refuse_closed(proposal: Proposal, now_us: int) -> None:
    """Raise Refused, naming who closed it and when, if it is over."""
    state = proposal.state(now_us)
    if state == "waiting":
        return
    by = proposal.confirmed_by or proposal.withdrawn_by
    by_whom = f" by {by}" if by else ""
    raise Refused(
        f"proposal {proposal.id} is {state}{by_whom}, at {iso(proposal.closed_at or proposal.expires_at)}"
    )


def plan_confirmed(
    scopes: Mapping[str, ScopeState], proposal: Proposal, confirmed: Attribution, *, at: int
) -> list[PolicyChanged]:
    """The changes that the proposal makes to one partition's policies now. `confirmed`: by whom.

    Raises Refused if it would now loosen what the proposal did not state, so that nobody confirmed it; InputError if it
    does not fit what is in force.
    """
    proposed = Attribution(proposal.by, proposal.proposed_channel or proposal.channel, proposal.why)
    changes = replan(scopes, proposal.changes, proposed, at=at, confirmed=confirmed, proposal=proposal.id)
    told = {(one.scope, one.field, repr(one.before), repr(one.after)) for one in proposal.loosens}
    for one in loosened(scopes, changes):
        if (one.scope, one.field, repr(one.before), repr(one.after)) not in told:
            where = f"{one.scope} {one.field}".strip()
            raise Refused(
                f"proposal {proposal.id} no longer fits: policies have changed since, and now it would loosen {where}"
                " otherwise than it said; withdraw it and propose the change anew"
            )
    return changes


def overtaken(
    proposals: Iterable[Proposal],
    scopes: Mapping[str, ScopeState],
    changes: Sequence[PolicyChanged],
    now_us: int,
) -> list[Proposal]:
    """Those that wait to loosen what these changes, planned on *scopes*, change as well.

    Once that is changed back, they would fit again, and undo what somebody did after they were made.
    """
    return [
        one
        for one in proposals
        if one.state(now_us) == "waiting"
        and any(
            _touches(change, scopes.get(change.scope), loose) for change in changes for loose in one.loosens
        )
    ]


def _touches(change: PolicyChanged, state: ScopeState | None, loose: Loosening) -> bool:
    """Whether a change is of what this loosens; without a field that is the scope as a whole."""
    old, new = (state.effective if state is not None else None) or {}, change.effective or {}
    # A binding is named with its agent's id, and all bindings of an agent are one field.
    field = loose.field.rpartition(".")[0] if loose.scope == "agents" else loose.field
    return change.scope == loose.scope and (not field or old.get(field) != new.get(field))


def base_of(scopes: Mapping[str, ScopeState], changes: Sequence[ScopeChange]) -> dict[str, int]:
    """The versions of the scopes that are changed."""
    return {one.scope: scopes[one.scope].version if one.scope in scopes else 0 for one in changes}
