"""Dead letters, that is, entries that a group could not handle: list or show them, give one back to its group, or
discard it."""

import re
from contextlib import suppress
from typing import Any, Literal

from msgspec import Struct

from streamproc.domain.attribution import Attribution
from streamproc.domain.entry_ids import id_key
from streamproc.domain.events import DeadLetterClosed
from streamproc.domain.intent import is_intent
from streamproc.domain.shown import event_json, iso
from streamproc.domain.wire import decode_events, payout_of
from streamproc.errors import InputError, JobFailed, Unprocessable
from streamproc.log import inspect, letters
from streamproc.log.clock import clock_us
from streamproc.log.inspect import DeadLetter
from streamproc.operate.site import Site

LIST_MAX = 1_000
"""Letters of one partition in one answer."""
LOOK_BACK = 1_000
"""Newest entries that are searched for who closed a letter: two people may be at it at the same time."""


class StreamId(Struct, frozen=True):
    """The place of a dead letter or an entry, written as `partition:stream-id`."""

    partition: int
    entry: str

    def __str__(self) -> str:
        return f"{self.partition}:{self.entry}"


_ID = re.compile(r"([0-9]{1,4}):([0-9]{1,20})-([0-9]{1,20})")
ID_PART_MAX = 2**64 - 1
"""Largest value of each half of a Redis stream id."""


def stream_id(text: str, *, of: str = "dead letter", shown_by: str = "dead list") -> StreamId:
    """Read `partition:stream-id`. Raises InputError for anything else."""
    if (found := _ID.fullmatch(text)) is not None:
        partition, ms, n = map(int, found.groups())
        if max(ms, n) <= ID_PART_MAX:
            return StreamId(partition, f"{ms}-{n}")
    raise InputError(
        f"{text[:60]!r} is not the id of a {of}: `streamproc {shown_by}` shows them, such as 0:1700000000000-0"
    )


async def list_letters(
    site: Site, *, partition: int | None = None, limit: int = LIST_MAX
) -> list[dict[str, Any]]:
    """The oldest dead letters of each partition, without their events."""
    rows = []
    for number in site.chosen(partition):
        letters = await inspect.dead_letters(site.client, site.names_of(number), limit=min(limit, LIST_MAX))
        rows += [_row(number, letter) for letter in letters]
    return rows


async def count_letters(site: Site, *, partition: int | None = None) -> int:
    """How many dead letters there are, of all partitions or of one."""
    names = [site.names_of(number) for number in site.chosen(partition)]
    return sum([(await inspect.newest_dead_letter(site.client, one))[0] for one in names])


async def show_letter(site: Site, text: str) -> dict[str, Any]:
    """One dead letter with its events; if these cannot be read, their bytes."""
    where = stream_id(text)
    letter = await inspect.dead_letter(site.client, site.names_of(where.partition), where.entry)
    if letter is None:
        raise await _gone(site, where)
    shown = _row(where.partition, letter)
    shown["meta"] = letter.m.decode(errors="replace")
    try:
        base = f"{where.partition}:{letter.entry}"
        shown["events"] = [
            event_json(f"{base}:{i}", event) for i, event in enumerate(decode_events(letter.e))
        ]
    except Unprocessable as problem:
        shown["unreadable"] = str(problem)
        shown["raw"] = letter.e.decode(errors="replace")
    return shown


async def redrive(site: Site, text: str, attribution: Attribution) -> str:
    """Give the letter's entry back to the group that could not handle it; the id of the entry that records it."""
    closed = await _close(site, text, "redrive", attribution)
    return f"{stream_id(text).partition}:{closed.record}"


async def discard(site: Site, text: str, attribution: Attribution) -> int:
    """Remove a dead letter; the log still has its entry, that it was set aside, who discarded it and why.

    Returns the paise that are not reserved any more, if it was of an intent that was admitted and never decided.
    """
    return (await _close(site, text, "discard", attribution)).freed


async def _close(
    site: Site, text: str, action: Literal["redrive", "discard"], attribution: Attribution
) -> letters.Closed:
    where = stream_id(text)
    names = site.names_of(where.partition)
    letter = await inspect.dead_letter(site.client, names, where.entry)
    if letter is None:
        raise await _gone(site, where)
    event = DeadLetterClosed(
        at=await clock_us(site.client),
        payout=_payout_in(letter),
        group=letter.group,
        entry=letter.entry,
        letter=str(where),
        action=action,
        by=attribution.by,
        why=attribution.why,
        channel=attribution.channel,
    )
    given_up = None
    if action == "discard" and is_intent(event.payout):  # of any other payout the bank tells how it ends
        given_up = await letters.reserved_for(site.client, names, event.payout)
    closed = await letters.close_letter(site.client, names, event, given_up=given_up)
    if closed is None:  # somebody else has just closed it
        raise await _gone(site, where)
    return closed


async def _gone(site: Site, where: StreamId) -> JobFailed:
    """The error that there is no such letter, with who closed it, if that was not long ago."""
    for entry in reversed(
        await inspect.newest_entries(site.client, site.names_of(where.partition), LOOK_BACK)
    ):
        if str(where).encode() not in entry.e:
            continue
        with suppress(Unprocessable):
            for event in decode_events(entry.e):
                if type(event) is DeadLetterClosed and event.letter == str(where):
                    done = {"redrive": "given back to its group", "discard": "discarded"}[event.action]
                    return JobFailed(f"dead letter {where} was {done} by {event.by} at {iso(event.at)}")
    return JobFailed(f"there is no dead letter {where} (any more)")


def _row(partition: int, letter: DeadLetter) -> dict[str, Any]:
    ms, _ = id_key(letter.id)
    return {
        "id": f"{partition}:{letter.id}",
        "at": iso(ms * 1_000),
        "group": letter.group,
        "entry": f"{partition}:{letter.entry}",
        "payout": _payout_in(letter),
        "problem": letter.problem,
    }


def _payout_in(letter: DeadLetter) -> str:
    try:
        return next((payout for payout in map(payout_of, decode_events(letter.e)) if payout), "")
    except Unprocessable:
        return ""
