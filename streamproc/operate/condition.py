"""The log held against its archive: is it what it must be, and what is wrong where it is not."""

from typing import Any

import asyncpg
from msgspec import Struct

import consumers
from streamproc.archive.anchor import lost_from
from streamproc.archive.store import Head, read_head
from streamproc.log.inspect import log_exists
from streamproc.log.names import Names
from streamproc.log.restore import groups_gone
from streamproc.log.stream import LogView


class Condition(Struct, frozen=True):
    """One partition. `problem` is empty where all is well.

    `anchored`: the log has the archive's last entry as it was archived, so nothing of the archive is lost from it.
    """

    partition: int
    head: Head
    problem: str
    anchored: bool


async def condition_of(client: Any, redis_url: str, db: asyncpg.Connection, partition: int) -> Condition:
    """Look at one partition."""
    names, head = Names(partition), await read_head(db, partition)
    if not await log_exists(client, partition):
        return Condition(partition, head, "its stream is gone", anchored=False)
    async with LogView(redis_url, partition) as view:
        problem = await lost_from(db, view, partition, head)
    if problem:
        return Condition(partition, head, problem, anchored=False)
    gone = await groups_gone(client, names, consumers.GROUPS)
    problem = f"consumer groups are gone: {', '.join(gone)}" if gone else ""
    return Condition(partition, head, problem, anchored=True)
