"""Disowning: a person states that no version of ours wrote an entry, and readers of the log then pass over it (ADR 32).

Only what cannot be read can be disowned. The statement is an event with the digest of the entry's bytes.
"""

from collections.abc import Sequence

import msgspec
from msgspec import Struct

from projections.fold import Unreadable, decode
from streamproc.archive.disowned import digest_of
from streamproc.archive.lookup import archived_entry
from streamproc.archive.rows import Row
from streamproc.domain.attribution import Attribution, checked
from streamproc.domain.events import EntryDisowned
from streamproc.domain.wire import Newer, encode_events
from streamproc.errors import JobFailed
from streamproc.log import disown as log
from streamproc.log import inspect
from streamproc.log.clock import clock_us
from streamproc.operate.dead import StreamId, discard, stream_id
from streamproc.operate.site import Site

ROUNDS_MAX = 10
"""How often an entry is taken from its groups: again whenever somebody closed one of its letters at the same time."""


class Statement(Struct, frozen=True):
    """A person's statement about an entry. `no_later_version`: even if a later version seems to have written it."""

    entry: StreamId
    attribution: Attribution
    no_later_version: bool = False


class Disowning(Struct, frozen=True):
    """What was done: the entry with the record, the groups that had the entry pending, and its dead letters, now
    discarded. `unread`: groups that have not come to the entry yet. Once they do, run this again: they set it aside,
    unless its event is of no concern to them."""

    entry: str
    recorded: str
    groups: list[str]
    letters: list[str]
    unread: list[str]


def statement(text: str, attribution: Attribution, *, no_later_version: bool = False) -> Statement:
    """The statement that was typed. Raises InputError."""
    entry = stream_id(text, of="log entry", shown_by="log tail")
    return Statement(entry, checked(attribution, by="--by", why="--why"), no_later_version)


def disowning(said: Statement, row: Row, at_us: int) -> EntryDisowned:
    """The event of a statement. Raises JobFailed if the entry can be read, or a later version may be able to."""
    try:
        decode(said.entry.partition, row)
    except Unreadable as problem:
        if isinstance(problem.__cause__, Newer) and not said.no_later_version:
            raise JobFailed(
                f"entry {said.entry}: {problem.__cause__}; where you know that no version of streamproc wrote it, say"
                " --no-later-version"
            ) from problem
        digest, attribution = digest_of(row.e, row.m), said.attribution
        return EntryDisowned(
            at=at_us,
            entry=row.id,
            digest=digest,
            by=attribution.by,
            why=attribution.why,
            channel=attribution.channel,
        )
    # Of an entry without fields the archive has no events, which is not unreadable; it is only a dead letter.
    raise JobFailed(
        f"entry {said.entry} can be read: only what cannot be read can be disowned."
        " If views stop at it: docs/runbook.md, StreamprocViewsStandStill;"
        " `streamproc dead discard` closes its dead letters"
    )


def recorded(event: EntryDisowned) -> tuple[bytes, bytes]:
    """The fields `e` (events) and `m` (metadata) of the entry that states that another one is not ours."""
    return encode_events([event]), msgspec.json.encode({"by": "operator", "actor": event.by})


async def disown(site: Site, said: Statement, groups: Sequence[str]) -> Disowning:
    """Record the statement, take the entry from the groups and discard its dead letters.

    May be killed anywhere and run again. Raises JobFailed if there is no such entry, or it can be read.
    """
    where = said.entry
    names = site.names_of(where.partition)
    row = await _entry(site, where)
    e, m = recorded(disowning(said, row, await clock_us(site.client)))
    record = await log.record(site.client, names, where.entry, e=e, m=m)
    held, letters = dict[str, None](), list[str]()
    for _ in range(ROUNDS_MAX):
        taken = await log.take_away(site.client, names, where.entry, groups)
        held |= dict.fromkeys(taken.held)
        closed = [
            f"{where.partition}:{one.id}"
            for one in taken.letters
            if await _discarded(site, where, one.id, said)
        ]
        letters += closed
        if not taken.all_seen:
            raise JobFailed(
                f"entry {where} was disowned, but only the first {log.LETTERS_MAX} dead letters of since were looked"
                " at for its own: close others (`streamproc dead list`), then run this again"
            )
        if len(closed) == len(taken.letters):
            return Disowning(str(where), f"{where.partition}:{record}", [*held], letters, taken.unread)
    raise JobFailed(
        f"entry {where} was disowned, but its dead letters were closed by others {ROUNDS_MAX} times meanwhile: run"
        " this again"
    )


async def _discarded(site: Site, where: StreamId, letter: str, said: Statement) -> bool:
    """Discard a dead letter. False if somebody else has just closed it, who may have given it back to its group."""
    try:
        await discard(
            site, f"{where.partition}:{letter}", Attribution(said.attribution.by, said.attribution.channel)
        )
    except JobFailed:
        return False
    return True


async def _entry(site: Site, where: StreamId) -> Row:
    entry = await inspect.entry_at(site.client, site.names_of(where.partition), where.entry)
    if entry is not None:
        return Row(0, entry.id, entry.e, entry.m)
    row = await site.ask_postgres(archived_entry, where.partition, where.entry)
    if row is None:
        away = f" and Postgres cannot be asked: {site.postgres_problem}" if site.postgres_problem else ""
        raise JobFailed(f"there is no entry {where} in Redis{away or ' and none in the archive'}")
    return row
