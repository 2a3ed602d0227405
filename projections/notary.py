"""The notary: signs checkpoints of what is archived, beside the archive, and publishes them outside.

rows after the last one -> computed anew -> [ row in `checkpoints` ] -> outside -> [ `checkpoints_published` ]

What is in brackets is one transaction each. A kill anywhere leaves a checkpoint made or not made, and repeats at most
one publication. The archive never waits for this; what cannot be made or published now is tried again later. Only a
contradiction ends it, with an alarm: nothing is ever signed over one.
"""

import asyncio
import logging
from pathlib import Path

import asyncpg
from msgspec import Struct

from projections.outage import Outage, heed_cancellation
from streamproc.archive.attest import Maker
from streamproc.archive.checkpoint import Checkpoint, opened
from streamproc.archive.note import BadNote, Signer, Trusted
from streamproc.archive.outside import NotesFile, Outside, Stated, stated_in
from streamproc.archive.store import AWAY, CHECKPOINT_LOCK, connection, take_lock
from streamproc.errors import ConfigError, LogBroken, TryAgain, named
from streamproc.waiting import set_within

LOOK_S = 1.0
"""Interval between looks at the archive's head, and so how late a checkpoint by number of entries may be."""
BROKEN_RETRY_S = 15.0
"""Delay where Postgres refuses (no tables yet, no grant): a person has to do something first."""

log = logging.getLogger(__name__)


class Terms(Struct, frozen=True):
    """How to sign, and when: after so many entries, or after so many seconds if there is anything new."""

    signer: Signer
    trusted: Trusted
    outside: Outside
    every_entries: int
    every_s: float


async def keep_checkpoints(partition: int, dsn: str, terms: Terms, ended: asyncio.Event) -> None:
    """Make and publish checkpoints until `ended`, and a last one then."""
    outage = Outage(f"checkpoints of partition {partition}")
    said = ""
    tried_last = False
    while not tried_last:
        heed_cancellation()
        tried_last = ended.is_set()
        try:
            async with connection(dsn, name=f"streamproc checkpoints {partition}") as db:
                if not await take_lock(db, partition, ended, lock=CHECKPOINT_LOCK):
                    return
                maker = await Maker.open(db, partition, terms.signer, terms.trusted)
                await _check_outside(maker, terms)
                await _Rounds(maker, terms, partition).run(ended, outage)
                return
        except (*AWAY, TryAgain) as problem:
            await outage.wait(problem, ended)
        except LogBroken as problem:
            log.error("ALARM, nothing more is signed: %s", problem)
            await ended.wait()
            return
        except (ConfigError, asyncpg.PostgresError) as problem:
            if (what := named(problem)) != said:
                log.error("no checkpoints of partition %d, the archive goes on: %s", partition, what)
                said = what
            await set_within(ended, BROKEN_RETRY_S)


class _Rounds:
    """Makes and publishes checkpoints that are due, again and again, on one connection."""

    def __init__(self, maker: Maker, terms: Terms, partition: int) -> None:
        self._maker = maker
        self._terms = terms
        self._publishing = Outage(
            f"publishing of partition {partition}'s checkpoints to {terms.outside.where}"
        )
        self._clock = asyncio.get_running_loop().time
        self._due_at = self._clock() + terms.every_s
        self._publish_at = 0.0

    async def run(self, ended: asyncio.Event, outage: Outage) -> None:
        """Run until `ended`; then sign whatever is left, and try once to publish it."""
        while True:
            last = ended.is_set()
            made = await self._make_one(everything=last)
            outage.over()
            if last or self._clock() >= self._publish_at:
                await self._publish_all()
            if made:
                continue
            if last:
                return
            await set_within(ended, min(LOOK_S, self._terms.every_s))

    async def _make_one(self, *, everything: bool) -> bool:
        """Make the next checkpoint if it is due. One that is far behind goes on in steps of a bounded size."""
        behind = (await self._maker.head()).seq - self._maker.size
        step = min(behind, self._terms.every_entries)
        if behind <= 0 or not (everything or step == self._terms.every_entries or await self._is_due()):
            return False
        await self._maker.make(self._maker.size + step)
        self._due_at = self._clock() + self._terms.every_s
        return True

    async def _is_due(self) -> bool:
        # How long something waits is read from the archive, so that it stays due however often these rounds restart.
        # Our own clock counts too, since the owner of the database could set a row's time into the future.
        return self._clock() >= self._due_at or await self._maker.waited_s() >= self._terms.every_s

    async def _publish_all(self) -> None:
        while (found := await self._maker.unpublished()) is not None:
            size, note = found
            try:
                await self._terms.outside.put(note)
            except TryAgain as problem:
                self._publish_at = self._clock() + self._publishing.failed(problem)
                return
            await self._maker.published(size)
        self._publishing.over()


async def _check_outside(maker: Maker, terms: Terms) -> None:
    """Raise LogBroken if the file has a longer history than the table: then the table was cut."""
    if not isinstance(terms.outside, NotesFile):
        return
    try:
        newest = await asyncio.to_thread(_newest, terms.outside.path, maker.origin)
    except OSError as problem:
        raise TryAgain(f"{terms.outside.where} cannot be read: {problem.strerror}") from problem
    if newest is None:
        return
    stated, where = newest.checkpoint, f"{terms.outside.where}, line {newest.line},"
    if stated.origin != maker.origin:
        raise LogBroken(
            f"{where} holds a checkpoint of archive {stated.archive}, which is not this one ({maker.origin}):"
            " name another file by STREAMPROC_CHECKPOINT_TO, or find out why this archive has another name"
        )
    try:
        opened(newest.note, terms.trusted)
    except BadNote as problem:
        raise LogBroken(f"{where} holds a checkpoint of {maker.origin}, and {problem}") from problem
    if stated.size > maker.size:
        raise LogBroken(
            f"{where} holds a checkpoint of {stated.size} entries, and the table's last is of {maker.size}:"
            " checkpoints were deleted; run `streamproc audit verify`"
        )
    if maker.contradicts(stated):
        raise LogBroken(
            f"{where} and the table hold two signed checkpoints of {stated.size} entries that state different"
            " histories: a fork; run `streamproc audit verify`"
        )


def _newest(path: Path, origin: str) -> Stated | None:
    """The largest checkpoint of an origin in the file; before it one of another archive, if there is any."""
    newest: Stated | None = None
    archive = origin.rpartition("/")[0]
    try:
        with path.open("rb") as file:
            for found in stated_in(file, None):
                if not isinstance(found, Stated):
                    continue
                if found.checkpoint.origin.rpartition("/")[0] != archive:
                    return found
                if found.checkpoint.origin == origin and _larger(found.checkpoint, newest):
                    newest = found
    except FileNotFoundError:
        return None
    return newest


def _larger(one: Checkpoint, other: Stated | None) -> bool:
    return other is None or one.size >= other.checkpoint.size
