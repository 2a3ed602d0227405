"""Consumer groups: their lag, what they have pending, and how many consumers they have."""

from typing import Any

import consumers
from streamproc.errors import WHEN_LOST, LogBroken
from streamproc.log.health import group_rows
from streamproc.log.inspect import log_exists
from streamproc.operate.site import Site


async def groups(site: Site) -> list[dict[str, Any]]:
    """A row per partition and group: `lag`, `pending`, `oldest_ms`, `consumers`, `deferred`, or `missing`.

    Raises LogBroken where a partition's stream is gone.
    """
    rows = []
    for partition in range(site.partitions):
        if not await log_exists(site.client, partition):
            raise LogBroken(f"the stream of partition {partition} is gone; {WHEN_LOST}")
        rows += await group_rows(site.client, partition, consumers.GROUPS)
    return rows
