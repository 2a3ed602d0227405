"""Before the notary signs anything: the table of checkpoints and the file outside must tell one history.

The file may know more. A failover of Postgres to a standby that lagged loses the newest rows and their checkpoints; the
log still has the entries, and the projector archives them again, as they were. Their checkpoints are then taken back
from the file, if the archive has what they state. If it has something else, nothing more is signed.
"""

import asyncio
import heapq
import logging
from collections.abc import Iterable
from operator import attrgetter
from pathlib import Path

from msgspec import Struct

from streamproc.archive.attest import Maker
from streamproc.archive.checkpoint import Checkpoint, opened
from streamproc.archive.note import BadNote, Trusted
from streamproc.archive.outside import NotesFile, Outside, Stated, stated_in
from streamproc.errors import LogBroken, TryAgain
from streamproc.waiting import set_within

LOOK_S = 0.5
"""Interval between looks whether lost entries are archived again."""
TAKEN_AT_ONCE = 1_000
"""Checkpoints taken back for one reading of the file, some 1 kB each."""

log = logging.getLogger(__name__)


async def agree_with_outside(maker: Maker, outside: Outside, trusted: Trusted, ended: asyncio.Event) -> None:
    """Return when the table has what the file has, after taking back what it lost. Other places cannot be read.

    Waits for entries that are not archived again yet. Raises LogBroken for a contradiction, TryAgain if the file
    cannot be read, or at `ended` before.
    """
    if not isinstance(outside, NotesFile):
        return
    while True:
        try:
            found = await asyncio.to_thread(_read, outside.path, maker.origin, maker.size)
        except OSError as problem:
            raise TryAgain(f"{outside.where} cannot be read: {problem.strerror}") from problem
        if found.foreign is not None:
            raise LogBroken(
                f"{outside.where}, line {found.foreign.line}, holds a checkpoint of archive"
                f" {found.foreign.checkpoint.archive}, which is not this one ({maker.origin}): name another file by"
                " STREAMPROC_CHECKPOINT_TO, or find out why this archive has another name"
            )
        if found.newest is not None:
            _check(maker, outside, trusted, found.newest)
        if not found.later:
            return
        for one in found.later:
            await _take_back(maker, outside, trusted, one, ended)
        log.warning(
            "%s: checkpoints up to %d entries that only %s had are in the table again, since the archive has what they"
            " state", maker.origin, maker.size, outside.where,
        )  # fmt: skip


def _check(maker: Maker, outside: Outside, trusted: Trusted, one: Stated) -> None:
    where = f"{outside.where}, line {one.line},"
    try:
        opened(one.note, trusted)
    except BadNote as problem:
        raise LogBroken(f"{where} holds a checkpoint of {maker.origin}, and {problem}") from problem
    if maker.contradicts(one.checkpoint):
        raise LogBroken(
            f"{where} and the table hold two signed checkpoints of {one.checkpoint.size} entries that state different"
            " histories: a fork; run `streamproc audit verify`"
        )


async def _take_back(
    maker: Maker, outside: Outside, trusted: Trusted, one: Stated, ended: asyncio.Event
) -> None:
    _check(maker, outside, trusted, one)
    wanted, said = one.checkpoint.size, False
    if wanted == maker.size:  # a crash had it handed outside twice
        return
    while (at := (await maker.head()).seq) < wanted:
        problem = (
            f"{outside.where}, line {one.line}, holds a checkpoint of {wanted} entries, and the archive has {at}; what"
            " a failover of Postgres lost comes again from the log, and for all else run `streamproc audit verify`"
        )
        if not said:
            log.warning("%s: nothing is signed until then: %s", maker.origin, problem)
        said = True
        if await set_within(ended, LOOK_S):
            raise TryAgain(problem)
    await maker.take_back(one.checkpoint, one.note)


class _Found(Struct):
    """Of a file: a checkpoint of another archive, if there is any; the largest of an origin; and the next ones after
    a size, in order."""

    foreign: Stated | None = None
    newest: Stated | None = None
    later: list[Stated] = []


def _read(path: Path, origin: str, size: int) -> _Found:
    try:
        with path.open("rb") as file:
            return _found_in((one for one in stated_in(file, None) if isinstance(one, Stated)), origin, size)
    except FileNotFoundError:
        return _Found()


def _found_in(checkpoints: Iterable[Stated], origin: str, size: int) -> _Found:
    found, archive = _Found(), origin.rpartition("/")[0]
    for one in checkpoints:
        stated = one.checkpoint
        if stated.origin.rpartition("/")[0] != archive:
            found.foreign = one
            return found
        if stated.origin != origin:
            continue
        if _larger(stated, found.newest):
            found.newest = one
        if stated.size > size:
            _add(found.later, one)
    found.later = _first(found.later)
    return found


def _add(later: list[Stated], one: Stated) -> None:
    later.append(one)
    if len(later) > 2 * TAKEN_AT_ONCE:
        later[:] = _first(later)


def _first(later: list[Stated]) -> list[Stated]:
    return heapq.nsmallest(TAKEN_AT_ONCE, later, key=attrgetter("checkpoint.size"))


def _larger(one: Checkpoint, other: Stated | None) -> bool:
    return other is None or one.size >= other.checkpoint.size
