"""Policy changes that wait for a second person, in Redis: each is written in one commit with its event.

They concern every partition's policies, so like tokens all of them are in partition 0.
"""

from collections.abc import Mapping, Sequence
from typing import cast

import msgspec
from redis.asyncio import Redis

from streamproc.domain.events import PolicyProposed, ProposalConfirmed, ProposalWithdrawn
from streamproc.domain.proposals import Proposal, forgotten, proposals_after
from streamproc.domain.wire import encode_events
from streamproc.errors import LogUnavailable
from streamproc.log import scripts
from streamproc.log.connection import named_errors
from streamproc.log.names import SHARED_PARTITION, Names

PROPOSAL_WRITER = "proposal"
"""The writer of proposals' events, in their entries' metadata."""

_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(Proposal).decode


async def read_proposals(client: Redis) -> tuple[bytes, dict[str, Proposal]]:
    """The revision, and every proposal that is kept, by its id."""
    with named_errors():
        rows = cast("dict[bytes, bytes]", await client.hgetall(Names(SHARED_PARTITION).proposals))
    rev = rows.pop(b"rev", b"0")
    return rev, {proposal.id: proposal for proposal in map(_decode, rows.values())}


async def change_proposal(
    client: Redis,
    rev: bytes,
    proposals: Mapping[str, Proposal],
    *events: PolicyProposed | ProposalConfirmed | ProposalWithdrawn,
) -> str | None:
    """Append the events of one person, planned on `proposals` at `rev`; None when `rev` is no longer current.

    Proposals that are too old to be asked about are removed on this occasion.
    """
    after, names = proposals_after(proposals, events), Names(SHARED_PARTITION)
    changed = {event.proposal: after[event.proposal] for event in events}
    gone = [(name, b"") for name in forgotten(proposals, events[0].at) if name not in changed]
    meta = _encode({"by": PROPOSAL_WRITER, "actor": events[0].by})
    try:
        return await scripts.change_state(
            client,
            names,
            names.proposals,
            rev=rev,
            e=encode_events(events),
            m=meta,
            fields=[*gone, *proposal_fields(list(changed.values()))],
        )
    except LogUnavailable as problem:
        raise LogUnavailable(
            f"{problem}; whether it is recorded is not known: `streamproc policy proposals` tells"
        ) from problem


def proposal_fields(proposals: Sequence[Proposal]) -> list[tuple[str, bytes]]:
    """Each proposal's field and value in Redis."""
    return [(proposal.id, _encode(proposal)) for proposal in proposals]
