"""Policy changes that loosen, and so wait for a second person: proposing, confirming, withdrawing them (ADR 23)."""

import secrets
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

import msgspec
from msgspec import Struct

from streamproc.domain.attribution import Attribution
from streamproc.domain.budget import US
from streamproc.domain.events import PolicyChanged, PolicyProposed, ProposalConfirmed, ProposalWithdrawn
from streamproc.domain.policy_changes import Contended, ScopeState
from streamproc.domain.policy_events import Loosening, ScopeChange
from streamproc.domain.proposals import (
    EXPIRES_S,
    PROPOSAL_BYTES_MAX,
    PROPOSALS_MAX,
    NotThere,
    Proposal,
    Refused,
    base_of,
    is_same_person,
    overtaken,
    plan_confirmed,
    proposals_after,
    refuse_closed,
    refuse_confirmation,
)
from streamproc.domain.shown import iso
from streamproc.domain.wire import encode_events
from streamproc.errors import InputError, JobFailed
from streamproc.log.clock import clock_us
from streamproc.log.names import Names
from streamproc.log.policies import CHANGES_MAX, put_in_force, read_scopes
from streamproc.log.proposals import change_proposal, read_proposals
from streamproc.operate.change_lease import ChangeLease, change_lease
from streamproc.operate.site import Site

ID_BYTES = 8
"""Random bytes in an id. It is no secret: whoever may see proposals knows it."""


class Applied(Struct, frozen=True):
    """The changes that one partition needed. `entry`: the log entry that has them, None if there were none."""

    partition: int
    entry: str | None
    changes: list[PolicyChanged]


class Confirmed(Struct, frozen=True):
    """The result of a confirmation. `left`: partitions where another change came first, and it is not in force."""

    proposal: Proposal
    applied: list[Applied]
    left: list[str]


async def propose(
    site: Site,
    changes: Sequence[ScopeChange],
    loosens: Sequence[Loosening],
    attribution: Attribution,
) -> Proposal:
    """Record a proposal; nothing of it is in force.

    Raises InputError if it is too large for one proposal, Refused if too many wait.
    """
    if not attribution.by.strip():
        raise InputError("who proposes a change must have a name")
    name = f"prop_{secrets.token_hex(ID_BYTES)}"
    for _ in range(CHANGES_MAX):
        rev, proposals = await read_proposals(site.client)
        at = await clock_us(site.client)
        event = PolicyProposed(
            at=at,
            proposal=name,
            changes=list(changes),
            loosens=list(loosens),
            by=attribution.by,
            why=attribution.why,
            channel=attribution.channel,
            expires_at=at + EXPIRES_S * US,
        )
        size = len(encode_events([event]))
        if size > PROPOSAL_BYTES_MAX:
            raise InputError(
                f"the change has {size} bytes, the limit of what waits for a second person is"
                f" {PROPOSAL_BYTES_MAX}: split it, or turn `changes: {{loosening: two_people}}` off first"
            )
        many = sum(proposal.state(at) == "waiting" for proposal in proposals.values())
        if many >= PROPOSALS_MAX:
            raise Refused(f"{many} proposals wait, the limit is {PROPOSALS_MAX}: confirm or withdraw some")
        if await change_proposal(site.client, rev, proposals, event) is not None:
            return proposals_after({}, [event])[name]
    raise Contended(f"others changed proposals {CHANGES_MAX} times meanwhile; nothing is recorded, try again")


async def confirm(site: Site, name: str, attribution: Attribution) -> Confirmed:
    """Confirm a proposal and put it in force on every partition.

    Of several people one wins; the others raise Refused, which names that one. Safe to repeat after a crash, by the
    winner: a partition that has it, or was overtaken, is left alone. Raises NotThere, SamePerson, Refused; InputError
    where it no longer fits what is in force: then nothing is confirmed.
    """
    async with change_lease(site) as mine:
        return await _confirm(site, name, mine, attribution)


async def _confirm(site: Site, name: str, mine: ChangeLease, attribution: Attribution) -> Confirmed:
    for _ in range(CHANGES_MAX):
        rev, proposals = await read_proposals(site.client)
        proposal, at = _known(proposals, name), await clock_us(site.client)
        if proposal.confirmed_by:
            done = await _put_in_force(site, proposal, mine)
            if not is_same_person(attribution.by, proposal.confirmed_by):
                refuse_closed(proposal, at)
            return done
        refuse_confirmation(proposal, attribution, at)
        base, planned = [], []
        for partition in range(site.partitions):
            _, scopes = await read_scopes(site.client, Names(partition))
            changes = plan_confirmed(scopes, proposal, attribution, at=at)
            planned.append(Applied(partition, None, changes))
            base.append(base_of(scopes, proposal.changes))
        if await withdraw_overtaken(site, planned, attribution, but=name):
            continue
        event = ProposalConfirmed(
            at=at, proposal=name, by=attribution.by, channel=attribution.channel, base=base
        )
        if await change_proposal(site.client, rev, proposals, event) is not None:
            return await _put_in_force(site, proposals_after(proposals, [event])[name], mine)
    raise Contended(
        f"others changed proposals {CHANGES_MAX} times meanwhile; {name} is not confirmed, try again"
    )


async def _put_in_force(site: Site, proposal: Proposal, mine: ChangeLease) -> Confirmed:
    """Put it in force on every partition. Where somebody changed the same after it was confirmed, on no further one:
    that change left alone the partitions that the confirmation had not reached, since they had what it wants."""
    lacking, left = await _look(site, proposal)
    if left:
        left += [f"partition {partition}: not put in force there either" for partition in lacking]
        return Confirmed(
            proposal, [Applied(partition, None, []) for partition in range(site.partitions)], left
        )
    applied = [await _put_on(site, partition, proposal, mine) for partition in range(site.partitions)]
    return Confirmed(proposal, applied, [])


async def _look(site: Site, proposal: Proposal) -> tuple[list[int], list[str]]:
    """The partitions that lack what was confirmed, and why it cannot be in force on others any more."""
    lacking: list[int] = []
    left: list[str] = []
    for partition in range(site.partitions):
        _, scopes = await read_scopes(site.client, Names(partition))
        changes, problem = _still_wanted(scopes, proposal, partition, 0)
        lacking += [partition] if changes else []
        left += [f"partition {partition}: {problem}"] if problem else []
    return lacking, left


async def _put_on(site: Site, partition: int, proposal: Proposal, mine: ChangeLease) -> Applied:
    names = Names(partition)
    for _ in range(CHANGES_MAX):
        rev, scopes = await read_scopes(site.client, names)
        changes, problem = _still_wanted(scopes, proposal, partition, await clock_us(site.client))
        if problem:
            raise JobFailed(f"partition {partition}: {problem}")
        if not changes:
            if await mine.passes(partition, rev):
                return Applied(partition, None, [])
            continue
        await mine.goes_on(partition)
        entry = await put_in_force(site.client, names, rev, changes, actor=proposal.confirmed_by)
        if entry is not None:
            return Applied(partition, entry, changes)
    raise Contended(
        f"partition {partition}: others changed policies {CHANGES_MAX} times meanwhile; run it again"
    )


def _still_wanted(
    scopes: Mapping[str, ScopeState], proposal: Proposal, partition: int, at: int
) -> tuple[list[PolicyChanged], str]:
    """The changes that a partition needs; without any, why they are not in force ('' if they are)."""
    base = proposal.base[partition] if partition < len(proposal.base) else {}
    if base_of(scopes, proposal.changes) != base:
        return [], _overtaken(scopes, proposal, base)
    try:
        changes = _confirmed(scopes, proposal, at)
    except (InputError, JobFailed) as problem:
        return [], str(problem)
    return changes, "" if changes else _overtaken(scopes, proposal, base)


def _confirmed(scopes: Mapping[str, ScopeState], proposal: Proposal, at: int) -> list[PolicyChanged]:
    """`plan_confirmed` of what was confirmed already, as its second person did."""
    confirmed = Attribution(proposal.confirmed_by, proposal.confirmed_channel)
    return plan_confirmed(scopes, proposal, confirmed, at=at)


def _overtaken(scopes: Mapping[str, ScopeState], proposal: Proposal, base: Mapping[str, int]) -> str:
    """What came after the confirmation where the change is not in force; '' where it is."""
    with suppress(InputError, JobFailed):
        if not _confirmed(scopes, proposal, 0):
            return ""
    now = base_of(scopes, proposal.changes)
    moved = ", ".join(scope for scope in sorted(now) if now[scope] != base.get(scope))
    return (
        f"{moved} was changed after {proposal.confirmed_by} confirmed {proposal.id}, and stays as it is now"
    )


async def withdraw(site: Site, name: str, attribution: Attribution) -> Proposal:
    """End a waiting proposal, whoever made it. Raises NotThere, or Refused if it is over."""
    for _ in range(CHANGES_MAX):
        rev, proposals = await read_proposals(site.client)
        proposal, at = _known(proposals, name), await clock_us(site.client)
        refuse_closed(proposal, at)
        event = ProposalWithdrawn(
            at=at, proposal=name, by=attribution.by, why=attribution.why, channel=attribution.channel
        )
        if await change_proposal(site.client, rev, proposals, event) is not None:
            return proposals_after(proposals, [event])[name]
    raise Contended(
        f"others changed proposals {CHANGES_MAX} times meanwhile; {name} is not withdrawn, try again"
    )


async def withdraw_overtaken(
    site: Site, planned: Sequence[Applied], attribution: Attribution, *, but: str = ""
) -> int:
    """End the waiting proposals, `but` one, that loosen what is about to be changed; how many there were.

    All in one commit, since a freeze waits for it.
    """
    found: dict[str, Proposal] = {}
    for _ in range(CHANGES_MAX):
        rev, proposals = await read_proposals(site.client)
        found, at = {}, await clock_us(site.client)
        others = [one for one in proposals.values() if one.id != but and one.state(at) == "waiting"]
        for part in planned if others else ():
            if part.changes:
                _, scopes = await read_scopes(site.client, Names(part.partition))
                found |= {one.id: one for one in overtaken(others, scopes, part.changes, at)}
        why = "what it loosens was changed meanwhile; propose it anew"
        events = [
            ProposalWithdrawn(at=at, proposal=name, by=attribution.by, why=why, channel=attribution.channel)
            for name in found
        ]
        if not events or await change_proposal(site.client, rev, proposals, *events) is not None:
            break
    return len(found)  # also where others kept changing proposals: a freeze must not fail by this


def _known(proposals: dict[str, Proposal], name: str) -> Proposal:
    if name not in proposals:
        raise NotThere(f"there is no proposal {name[:60]!r}; `streamproc policy proposals` lists them")
    return proposals[name]


async def listed(site: Site) -> list[dict[str, Any]]:
    """All proposals that are kept, the newest first, as scripts see them."""
    _, proposals = await read_proposals(site.client)
    now_us = await clock_us(site.client)
    newest = sorted(proposals.values(), key=lambda one: (-one.proposed_at, one.id))
    return [proposal_json(proposal, now_us) for proposal in newest if proposal.is_kept(now_us)]


def proposal_json(proposal: Proposal, now_us: int) -> dict[str, Any]:
    """A proposal as scripts see it."""
    return {
        "id": proposal.id,
        "state": proposal.state(now_us),
        "by": proposal.by,
        "why": proposal.why,
        "channel": proposal.proposed_channel or proposal.channel,
        "proposed_at": iso(proposal.proposed_at),
        "expires_at": iso(proposal.expires_at),
        "confirmed_by": proposal.confirmed_by or None,
        "confirmed_channel": proposal.confirmed_channel or None,
        "withdrawn_by": proposal.withdrawn_by or None,
        "withdrawn_channel": proposal.withdrawn_channel or None,
        "closed_at": iso(proposal.closed_at) if proposal.closed_at else None,
        "loosens": [msgspec.to_builtins(one) for one in proposal.loosens],
        "changes": [msgspec.to_builtins(one) for one in proposal.changes],
    }
