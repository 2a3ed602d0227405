"""Consumer groups: their lag, what they have pending, and how many consumers they have."""

from typing import Any

import consumers
from streamproc.errors import WHEN_LOST, LogBroken
from streamproc.log.health import GroupState, group_states, logs_gone
from streamproc.operate.site import Site


async def groups(site: Site) -> list[dict[str, Any]]:
    """A row per partition and group: `lag`, `pending`, `oldest_ms`, `consumers`, `deferred`, or `missing`.

    Raises LogBroken where a partition's stream is gone.
    """
    if gone := await logs_gone(site.client, site.partitions):
        raise LogBroken(f"the stream of partition {gone[0]} is gone; {WHEN_LOST}")
    states = await group_states(site.client, range(site.partitions), consumers.GROUPS)
    return [_as_json(state) for state in states]


def _as_json(state: GroupState) -> dict[str, Any]:
    """A group as scripts see it."""
    where = {"partition": state.partition, "group": state.group}
    if state.missing:
        return {**where, "missing": True}
    return {
        **where,
        "lag": state.lag,
        "pending": state.pending,
        "oldest_ms": state.oldest_ms,
        "consumers": state.consumers,
        "deferred": state.deferred,
    }
