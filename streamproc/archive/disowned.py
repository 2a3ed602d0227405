"""Entries that nobody can read and that a person disowned, by stating that no version of streamproc wrote them (ADR
32).

A reader of the archive stops at what it cannot read, since skipping a fact is how money goes missing. A foreign writer
to Redis would stop it for good. A person's statement, itself an event of the log, lets every reader pass over those
very bytes.
"""

import hashlib
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from functools import partial

import asyncpg

from streamproc.archive.load import head_seq
from streamproc.archive.pool import acquired
from streamproc.archive.sql import statements
from streamproc.archive.store import Entry, connection
from streamproc.domain.events import EntryDisowned, Event
from streamproc.domain.wire import Meta, read_entry
from streamproc.errors import Unprocessable

ROWS_AT_ONCE = 20_000
"""Rows of the archive that one statement looks through, some 2 kB each: a second on a slow disk."""

_SQL = statements("streamproc.archive", "disowned.sql")


def digest_of(e: bytes, m: bytes) -> str:
    """SHA-256 of an entry's bytes, in hexadecimal; `e` is prefixed by its length."""
    return hashlib.sha256(len(e).to_bytes(8, "big") + e + m).hexdigest()


class Disowned:
    """The disowned entries of a partition, by its archive, which is looked through only when something cannot be
    read."""

    def __init__(
        self, partition: int, archive: Callable[[], AbstractAsyncContextManager[asyncpg.Connection]]
    ) -> None:
        """`archive` gives a connection to the archive's own schema, for each look."""
        self._partition, self._archive = partition, archive
        self._stated: set[tuple[str, str]] = set()
        """(entry, digest) of each statement. All count: a later one about the same entry does not replace an
        earlier."""
        self._begun = self._upto = -1

    async def read(self, entry: Entry) -> tuple[Meta, list[Event]]:
        """An entry's metadata and events; none if a person disowned it. Raises Unprocessable if it cannot be read
        otherwise."""
        try:
            return read_entry(entry.e, entry.m)
        except Unprocessable:
            if not await self.looked_for(entry):
                raise
            return Meta(), []

    def covers(self, entry: Entry) -> bool:
        """Whether a person disowned these very bytes under this id, by what was looked through so far."""
        return (entry.id, digest_of(entry.e, entry.m)) in self._stated

    async def look(self, after: int) -> None:
        """Look from the row `after`, or from where an earlier look that covers it ended, to the archive's end."""
        at = self._upto if 0 <= self._begun <= after else after
        async with self._archive() as db:
            head = await head_seq(db, self._partition)
            while at < head:
                upto = min(head, at + ROWS_AT_ONCE)
                for row in await db.fetch(_SQL["disowning"], self._partition, at, upto):
                    self._take(row["e"], row["m"])
                at = upto
        # Only now: a look that was interrupted must begin again.
        self._begun = after if self._begun < 0 else min(self._begun, after)
        self._upto = max(at, self._upto)

    async def looked_for(self, entry: Entry) -> bool:
        """Whether it is covered, after looking through the whole archive if it was not yet."""
        if not self.covers(entry):
            await self.look(0)
        return self.covers(entry)

    async def names(self, entry: str) -> bool:
        """Whether a person disowned anything under this id."""
        await self.look(0)
        return any(entry == stated for stated, _ in self._stated)

    def _take(self, e: bytes, m: bytes) -> None:
        try:
            _, events = read_entry(e, m)
        except Unprocessable:
            return  # it states nothing
        for event in events:
            if type(event) is EntryDisowned:
                self._stated.add((event.entry, event.digest))


def disowned_in(dsn: str, partition: int) -> Disowned:
    """The disowned entries of a partition, for a job or a role; opens connections of its own."""
    return Disowned(partition, partial(connection, dsn, name="streamproc disowned entries"))


async def is_disowned(pool: asyncpg.Pool, partition: int, entry: Entry) -> bool:
    """Whether a person disowned an entry, for one question. Raises TryAgain when Postgres is away."""
    return await Disowned(partition, partial(acquired, pool)).looked_for(entry)
