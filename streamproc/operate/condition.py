"""Checks the log against its archive: whether it is sound, and if not, what is wrong."""

from collections.abc import Iterable
from typing import Any

import asyncpg
from msgspec import Struct

import consumers
from streamproc.archive.anchor import lost_from
from streamproc.archive.gauges import positions
from streamproc.archive.store import Head, archived_heads, connection, read_head
from streamproc.domain.entry_ids import ZERO
from streamproc.errors import WHEN_LOST, ConfigError, JobFailed
from streamproc.log.connection import connected
from streamproc.log.health import waiting_ms
from streamproc.log.inspect import log_exists
from streamproc.log.names import Names
from streamproc.log.restore import groups_gone, read_marks
from streamproc.log.stream import BEING_RECOVERED, LogView, other_count
from streamproc.settings import Settings


class Condition(Struct, frozen=True):
    """The condition of one partition. `problem` is '' if it is sound.

    `anchored`: the log has the archive's last entry with the archived bytes, so it has lost nothing that is archived.
    """

    partition: int
    head: Head
    problem: str
    anchored: bool


async def condition_of(client: Any, redis_url: str, db: asyncpg.Connection, partition: int) -> Condition:
    """The condition of one partition."""
    names, head = Names(partition), await read_head(db, partition)
    if not await log_exists(client, partition):
        return Condition(partition, head, "its stream is gone", anchored=False)
    async with LogView(redis_url, partition) as view:
        problem = await lost_from(db, view, partition, head)
    if problem:
        return Condition(partition, head, problem, anchored=False)
    # A group that begins at the log's end is made by its first worker; from then on its mark says that it must exist.
    needed = [group for group in consumers.GROUPS if group not in consumers.FROM_THE_END]
    gone = await groups_gone(client, names, needed)
    problem = f"consumer groups are gone: {', '.join(gone)}" if gone else ""
    return Condition(partition, head, problem, anchored=True)


async def conditions(settings: Settings, client: Any, partitions: Iterable[int]) -> list[Condition]:
    """The conditions of some partitions."""
    async with connection(settings.postgres_dsn.reveal(), name="streamproc condition") as db:
        return [await condition_of(client, settings.redis_url, db, partition) for partition in partitions]


async def unarchived_ms(pool: asyncpg.Pool, client: Any, partitions: int) -> dict[int, int]:
    """For each partition the age (ms) of its oldest entry that is not archived; 0 if there is none. Raises TryAgain and
    LogUnavailable."""
    found = await positions(pool)
    return await waiting_ms(
        client, {partition: found.get(partition, ZERO) for partition in range(partitions)}
    )


async def partitions_archived(settings: Settings) -> set[int]:
    """The partitions of which the archive has entries. Raises TryAgain while Postgres is away."""
    dsn = settings.postgres_dsn.reveal()
    return set(await archived_heads(dsn)) if dsn else set()


async def refuse_if_lost(settings: Settings) -> None:
    """Raise JobFailed, saying what to do, if the log has lost anything that is archived, and ConfigError if it was made
    with another partition count than the settings have. Changes nothing."""
    async with connected(settings.redis_url) as client:
        marks = await read_marks(client)
        if marks.recovering:
            raise JobFailed(BEING_RECOVERED)
        known, wanted = marks.partitions, settings.partitions
        if known is not None and known != wanted:
            raise ConfigError(other_count(wanted, known))
        archived = await partitions_archived(settings)
        for one in await conditions(settings, client, sorted(archived)):
            if one.problem:
                raise JobFailed(f"partition {one.partition} of the log: {one.problem}; {WHEN_LOST}")
