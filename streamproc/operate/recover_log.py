"""Restores a partition's log: the archive's last entry, entries that a group may not have handled, and dead letters'
entries.

All have their old ids, so that event ids, the barrier and the projector still find them.
"""

from collections.abc import Sequence

from consumers import FROM_THE_END
from projections.letters import NAME as LETTERS
from streamproc.archive.sql import statements
from streamproc.domain.entry_ids import ZERO, id_key
from streamproc.domain.events import EntrySetAside
from streamproc.domain.wire import decode_events
from streamproc.log.restore import Restorer
from streamproc.log.stream import Entry
from streamproc.operate.recover_state import (
    SQL,
    Counts,
    OnStage,
    Sources,
    entries_of,
    rows_in_parts,
)

_LETTERS = statements("projections", f"{LETTERS}.sql")


async def restore_letters(sources: Sources, to: Restorer, counts: Counts) -> None:
    """Restore dead letters that nobody closed. Each gets the id of the entry that records that it was set aside."""
    async for rows in rows_in_parts(sources.place, _LETTERS["open"], sources.partition):
        said = {row.seq: row for row in await entries_of(sources, [row["seq"] for row in rows])}
        await sources.want([row["entry_id"] for row in rows])
        wanted = [row["entry_id"] for row in rows]
        originals = {entry.id: entry for entry in await _entries(sources, wanted)}
        for row in rows:
            aside = next(
                event
                for event in decode_events(said[row["seq"]].e)
                if type(event) is EntrySetAside and event.entry == row["entry_id"]
            )
            original = originals[row["entry_id"]]
            await to.letter(said[row["seq"]].id, original, aside.group, aside.problem)
            counts.letters += 1


async def _entries(sources: Sources, wanted: Sequence[str]) -> list[Entry]:
    keys = [id_key(entry) for entry in wanted]
    rows = await sources.archive.fetch(
        SQL["entries_of_ids"], sources.partition, [ms for ms, _ in keys], [n for _, n in keys]
    )
    return [Entry(*row) for row in rows]


async def restore_log(
    sources: Sources, to: Restorer, groups: Sequence[str], counts: Counts, say: OnStage
) -> None:
    """Write the entries, set the groups to the last of them, and give each group what it may not have handled."""
    async for rows in rows_in_parts(sources.archive, SQL["wanted_entries"], sources.partition):
        for row in rows:
            await to.entry(Entry(row["id"], row["e"], row["m"]))
        counts.entries += len(rows)
        say("log", counts.entries, 0)
    at = sources.head.entry if sources.head.seq else ZERO
    await to.groups(groups, at, counts.entries, late=FROM_THE_END)
    for group in groups:
        async for rows in rows_in_parts(sources.archive, SQL["wanted_pending"], group):
            await to.pending(group, [row["id"] for row in rows])
            counts.pending[group] = counts.pending.get(group, 0) + len(rows)
