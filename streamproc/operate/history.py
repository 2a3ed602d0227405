"""A payout's entries: from the archive, and from the log's tail that is not archived yet.

With Postgres away only the log is read, from its oldest entry on. Both reads are bounded.
"""

from collections.abc import Mapping

from msgspec import Struct

from streamproc.archive import read
from streamproc.archive.disowned import is_disowned
from streamproc.archive.store import Entry as Stored
from streamproc.domain.entry_ids import ZERO, id_key
from streamproc.domain.events import BankCommandAnswered, Event, PayoutObserved
from streamproc.domain.intent import is_intent
from streamproc.domain.wire import Newer, payout_of, read_entry
from streamproc.errors import JobFailed, Unprocessable
from streamproc.log.stream import Entry, LogView
from streamproc.operate.site import Site

STORY_ENTRIES_MAX = 10_000
"""Entries of one payout that are shown. It has some ten, but the bank sends any number of deliveries, and whoever
has its keys can make any number of payouts under one reference."""
READ_AT_ONCE = 1_000
TAIL_ENTRIES_MAX = 200_000
"""Entries of one partition that are read after the archive's end, enough for a projector that was down for an hour."""
SCAN_ENTRIES_MAX = 2_000_000
"""Entries of one partition that are read with Postgres away: about a minute."""


class StoryEvent(Struct, frozen=True):
    """One event of a payout. `id` is partition:entry:index."""

    id: str
    event: Event


class History(Struct, frozen=True):
    """The events found, in log order. `notes`: what may be missing, and why. `is_cut`: there are later ones."""

    events: list[StoryEvent]
    notes: list[str]
    is_cut: bool = False


async def history_of(site: Site, payout: str, *, entries_max: int = STORY_ENTRIES_MAX) -> History:
    """The events of a payout that can be found, those of its first `entries_max` entries."""
    # The archive's end is asked for first: what is archived meanwhile is then found twice, never missed.
    ends = [await site.ask_postgres(read.archived_upto, partition) for partition in range(site.partitions)]
    archived = await site.ask_postgres(read.payout_history, payout, entries_max + 1)
    notes = [] if archived is not None else [f"{site.postgres_problem}; this is what is still in Redis"]
    found: dict[tuple[int, tuple[int, int]], Stored] = {}
    for row in archived or ():
        found[row.partition, id_key(row.id)] = row
    for partition in {row.partition for row in archived or ()} or range(site.partitions):
        after = ends[partition] if archived is not None else ZERO
        limit = TAIL_ENTRIES_MAX if archived is not None else SCAN_ENTRIES_MAX
        seen, entries = await log_after(site, partition, after or ZERO, payout.encode(), limit=limit)
        for entry in entries:
            found[partition, id_key(entry.id)] = entry
        if seen >= limit:
            notes.append(f"the log of partition {partition} was looked through for {limit} entries only")
    told = sorted(found)[:entries_max]
    events = [event for key in told for event in await _events(site, key[0], found[key], payout, notes)]
    return History(events, [*notes, *_cut_note(len(found), entries_max)], len(found) > entries_max)


async def name_at_bank(site: Site, bank_payout: str) -> str | None:
    """Our id of the intent that the bank calls `bank_payout`; None if there is none."""
    name = await site.ask_postgres(read.payout_at_bank, bank_payout)
    if name is not None:
        return name
    for partition in range(site.partitions):
        end = await site.ask_postgres(read.views_upto, partition)
        limit = SCAN_ENTRIES_MAX if end is None else TAIL_ENTRIES_MAX
        _, entries = await log_after(site, partition, end or ZERO, bank_payout.encode(), limit=limit)
        for event in [event for entry in entries for event in await readable(site, partition, entry, [])]:
            if _intent_paid_by(event) == bank_payout:
                return payout_of(event)
    return None


def _intent_paid_by(event: Event) -> str | None:
    """The bank's id of the payout that an event tells of as an intent's."""
    if type(event) is BankCommandAnswered and event.command == "create":
        return event.bank_payout
    return event.facts.id if type(event) is PayoutObserved and is_intent(event.payout) else None


async def history_until(site: Site, payout: str, limits: Mapping[int, int]) -> History:
    """The archived events of a payout up to a seq of each partition. Raises JobFailed while Postgres is away."""
    rows = await site.ask_postgres(read.payout_history, payout, STORY_ENTRIES_MAX + 1)
    if rows is None:
        raise JobFailed(f"the past is in the archive alone: {site.postgres_problem}")
    until = [row for row in rows if row.seq <= limits.get(row.partition, 0)]
    told = until[:STORY_ENTRIES_MAX]
    notes = _cut_note(len(until), STORY_ENTRIES_MAX)
    found = [event for row in told for event in await _events(site, row.partition, row, payout, notes)]
    return History(found, notes, len(until) > len(told))


def _cut_note(found: int, most: int) -> list[str]:
    if found <= most:
        return []
    return [f"it has more than {most:,} entries: what the later ones tell is missing here"]


async def log_after(
    site: Site, partition: int, after: str, needle: bytes, *, limit: int
) -> tuple[int, list[Entry]]:
    """How many entries after an id were read, `limit` at most, and those of them that contain `needle`."""
    view, seen, about = LogView(site.redis_url, partition), 0, list[Entry]()
    try:
        while seen < limit and (entries := await view.read(after, READ_AT_ONCE, 0)):
            about += [entry for entry in entries if needle in entry.e]
            after, seen = entries[-1].id, seen + len(entries)
    finally:
        await view.aclose()
    return seen, about


async def readable(site: Site, partition: int, entry: Stored, notes: list[str]) -> list[Event]:
    """An entry's events; none, with a note, if no version of ours can have written it, or a person disowned it.

    Raises Newer, naming the entry, for one that a later version may have written.
    """
    try:
        _, events = read_entry(entry.e, entry.m)
        return events
    except Unprocessable as problem:
        name, why = f"entry {partition}:{entry.id}", f"cannot be read and is left out: {problem}"
        if isinstance(problem, Newer):
            if not await site.ask_postgres(is_disowned, partition, entry):
                raise Newer(f"{name}: {problem}") from problem
            why = "was disowned and is left out"
        notes.append(f"{name} {why}")
        return []


async def _events(
    site: Site, partition: int, entry: Stored, payout: str, notes: list[str]
) -> list[StoryEvent]:
    return [
        StoryEvent(f"{partition}:{entry.id}:{index}", event)
        for index, event in enumerate(await readable(site, partition, entry, notes))
        if payout_of(event) == payout
    ]
