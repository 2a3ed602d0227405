"""Trimming by hand, and what keeps the log's beginning: the archive, the retention time, or a group."""

from collections.abc import Callable

from msgspec import Struct

from streamproc.archive.lookup import entries_between
from streamproc.archive.read import archived_upto
from streamproc.domain.entry_ids import id_key
from streamproc.errors import JobFailed
from streamproc.log.clock import clock_us
from streamproc.log.inspect import log_stats
from streamproc.log.names import Names
from streamproc.log.trim import Trimmed, trim, trim_round
from streamproc.operate.site import Site


class LogBeginning(Struct, frozen=True):
    """The beginning of one partition's log. `to_go` archived entries lie before `cut`, which nothing needs.

    `removed` are gone now. Whole nodes of the stream go, so up to a hundred of `to_go` stay a little longer; after a
    recovery the log has fewer entries than the archive, and `to_go` is then the most that can go.
    """

    partition: int
    removed: int
    to_go: int
    oldest: str
    oldest_ms: int
    cut: str
    held_by: str
    held_at: str


async def trim_log(
    site: Site,
    *,
    retention_s: float,
    partition: int | None = None,
    dry_run: bool = False,
    on_removed: Callable[[int], None] = lambda _: None,
) -> list[LogBeginning]:
    """Trim the chosen partitions as far as may be, or only report; `on_removed` as in `trim_round`, of all of them.

    Raises JobFailed while Postgres is away.
    """
    kept: list[LogBeginning] = []
    for number in site.chosen(partition):
        before = sum(one.removed for one in kept)
        kept.append(
            await _trim_one(site, number, retention_s, dry_run=dry_run, on_removed=_after(before, on_removed))
        )
    return kept


async def beginning_of(site: Site, partition: int, retention_s: float) -> LogBeginning | None:
    """What keeps the beginning of a partition's log; None if the archive cannot be asked."""
    anchor = await site.ask_postgres(archived_upto, partition)
    if anchor is None:
        return None
    found = await trim(site.client, Names(partition), anchor=anchor, retention_s=retention_s, look_only=True)
    return await _beginning(site, partition, found)


async def _trim_one(
    site: Site, partition: int, retention_s: float, *, dry_run: bool, on_removed: Callable[[int], None]
) -> LogBeginning:
    names = Names(partition)
    anchor = await site.ask_postgres(archived_upto, partition)
    if anchor is None:
        raise JobFailed(
            f"{site.postgres_problem}: how far the archive is cannot be known, so nothing is trimmed"
        )
    if dry_run:
        found = await trim(site.client, names, anchor=anchor, retention_s=retention_s, look_only=True)
        return await _beginning(site, partition, found)
    more, removed = True, 0
    while more:
        found, more = await trim_round(
            site.client,
            names,
            anchor=anchor,
            retention_s=retention_s,
            on_removed=_after(removed, on_removed),
        )
        removed += found.removed
    return await _beginning(site, partition, Trimmed(removed, found.first, found.cut, found.bounds))


def _after(before: int, on_removed: Callable[[int], None]) -> Callable[[int], None]:
    """`on_removed` for a part of a trim: adds what the parts before it removed."""
    return lambda removed: on_removed(before + removed)


async def _beginning(site: Site, partition: int, found: Trimmed) -> LogBeginning:
    stats, to_go = await log_stats(site.client, partition), 0
    if stats.length and id_key(stats.first) < id_key(found.cut):
        between = await site.ask_postgres(entries_between, partition, stats.first, found.cut)
        to_go = min(between or 0, stats.length)
    now_ms = await clock_us(site.client) // 1000
    return LogBeginning(
        partition=partition,
        removed=found.removed,
        to_go=to_go,
        oldest=stats.first,
        oldest_ms=max(0, now_ms - id_key(stats.first)[0]) if stats.length else 0,
        cut=found.cut,
        held_by=found.held_by.what,
        held_at=found.held_by.entry,
    )


def held_text(held_by: str, held_at: str) -> str:
    """What determines the cut, in words."""
    kind, _, group = held_by.partition(" ")
    match kind:
        case "archive":
            return f"the archive, which ends at {held_at}"
        case "retention":
            return "the retention time"
        case "pending":
            return f"group {group}, which has not acknowledged {held_at}"
    return f"group {group}, which was given nothing after {held_at}"
