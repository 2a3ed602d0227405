"""The log as it is: its newest entries, what is appended, and its size."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from typing import Any

import msgspec
from msgspec import Struct

from streamproc.domain.entry_ids import ZERO, id_key
from streamproc.domain.shown import event_json, iso
from streamproc.domain.wire import MALFORMED, payout_of, read_entry, type_of
from streamproc.errors import LogBroken, Unprocessable
from streamproc.log.connection import BLOCK_MS_MAX
from streamproc.log.inspect import LogStats, log_stats, newest_entries
from streamproc.log.names import Names
from streamproc.log.stream import Entry, LogView
from streamproc.operate.site import Site
from streamproc.operate.trim import LogBeginning, beginning_of

WRITER_CHARS = 12
"""Width of the column that says who wrote an entry: `notification` is the longest of our writers' names."""
FOLLOW_AT_ONCE = 500
FOLLOW_BLOCK_MS = 200
"""Wait for one partition; with several, a quiet one delays the others' lines by at most this."""


class Line(Struct, frozen=True):
    """One entry of one partition."""

    partition: int
    entry: Entry


async def tail(site: Site, *, partition: int | None = None, count: int) -> list[Line]:
    """The newest `count` entries of the chosen partitions together, oldest first."""
    lines = [
        Line(number, entry)
        for number in site.chosen(partition)
        for entry in await newest_entries(site.client, Names(number), count)
    ]
    lines.sort(key=lambda line: (id_key(line.entry.id), line.partition))
    return lines[-count:] if count else []


async def follow(site: Site, *, partition: int | None = None, after: list[Line]) -> AsyncIterator[Line]:
    """Every entry after those of a `tail`, until cancelled."""
    chosen = site.chosen(partition)
    block_ms = BLOCK_MS_MAX if len(chosen) == 1 else FOLLOW_BLOCK_MS
    async with AsyncExitStack() as stack:
        views = {number: LogView(site.redis_url, number) for number in chosen}
        for view in views.values():
            stack.push_async_callback(view.aclose)
        last = {number: await _start(views[number], number, after) for number in chosen}
        while True:
            reads = [views[number].read(last[number], FOLLOW_AT_ONCE, block_ms) for number in chosen]
            for number, entries in zip(chosen, await asyncio.gather(*reads), strict=True):
                for entry in entries:
                    last[number] = entry.id
                    yield Line(number, entry)


async def _start(view: LogView, partition: int, after: list[Line]) -> str:
    """Where to follow from: the last line shown, or, if none of this partition was, its newest entry."""
    shown = [line.entry.id for line in after if line.partition == partition]
    return shown[-1] if shown else await view.last_id() or ZERO


class Stats(Struct, frozen=True):
    """A partition's size, and what keeps its beginning. `beginning` None: the archive cannot be asked, or there is a
    `problem`."""

    size: LogStats
    beginning: LogBeginning | None
    problem: str = ""


async def stats(site: Site, retention_s: float) -> list[Stats]:
    """The stats of every partition, broken ones included."""
    return [await _stats(site, partition, retention_s) for partition in range(site.partitions)]


async def _stats(site: Site, partition: int, retention_s: float) -> Stats:
    size = await log_stats(site.client, partition)
    try:
        return Stats(size, await beginning_of(site, partition, retention_s))
    except LogBroken as problem:
        return Stats(size, None, str(problem))


def line_json(line: Line) -> dict[str, Any]:
    """An entry as scripts see it."""
    base = f"{line.partition}:{line.entry.id}"
    shown: dict[str, Any] = {"id": base, "at": _at(line), "meta": _meta(line.entry)}
    try:
        shown["events"] = [
            event_json(f"{base}:{i}", event)
            for i, event in enumerate(read_entry(line.entry.e, line.entry.m)[1])
        ]
    except Unprocessable as problem:
        raw = {"e": line.entry.e.decode(errors="replace"), "m": line.entry.m.decode(errors="replace")}
        shown |= {"unreadable": str(problem), "raw": raw}
    return shown


def line_text(line: Line) -> str:
    """An entry as a line for people: when, where, by whom, and its events."""
    meta = _meta(line.entry)
    head = f"{_at(line)}  {line.partition}:{line.entry.id}  {meta.get('by', '-')!s:{WRITER_CHARS}}"
    try:
        _, events = read_entry(line.entry.e, line.entry.m)
    except Unprocessable as problem:
        return f"{head}  cannot be read: {problem}"
    payouts = dict.fromkeys(payout for payout in map(payout_of, events) if payout)
    return f"{head}  {' '.join(payouts) or '-'}  {', '.join(map(_event_text, events))}"


def _meta(entry: Entry) -> dict[str, Any]:
    """The entry's metadata; empty if something else wrote the entry."""
    try:
        return msgspec.json.decode(entry.m, type=dict[str, Any])
    except MALFORMED:
        return {}


def _event_text(event: Any) -> str:
    """An event's type, with its most important word."""
    details = (getattr(event, name, "") for name in ("decision", "reason", "outcome", "settlement", "scope"))
    status = event.facts.status if hasattr(event, "facts") else ""
    said = " ".join(word for word in (*details, status) if word)
    return f"{type_of(event)}({said})" if said else type_of(event)


def _at(line: Line) -> str:
    ms, _ = id_key(line.entry.id)
    return iso(ms * 1_000)
