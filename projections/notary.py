"""The notary: signs checkpoints of what is archived, beside the archive, and publishes them outside.

rows after the last one -> links of their bytes -> [ row in `checkpoints` ] -> outside -> [ `checkpoints_published` ]

What is in brackets is one transaction each. A kill anywhere leaves a checkpoint made or not made, and repeats at most
one publication. Checkpoints that a failover of Postgres lost are taken back from outside first (agree.py). The archive
never waits for this; what cannot be made or published now is tried again later. Only a contradiction ends it, with an
alarm: nothing is ever signed over one.
"""

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import asyncpg
from msgspec import Struct

from projections.agree import agree_with_outside
from projections.outage import Outage, heed_cancellation
from streamproc.archive.attest import Lately, Maker
from streamproc.archive.note import Signer, Trusted
from streamproc.archive.outside import Outside
from streamproc.archive.shared import Shared, SharedConnection
from streamproc.archive.store import (
    AWAY,
    CHECKPOINT_LOCK,
    FROZEN_MS,
    end_if_frozen,
    give_lock_back,
    take_lock,
)
from streamproc.errors import ConfigError, LogBroken, TryAgain, named
from streamproc.waiting import set_within

LOOK_S = 1.0
"""Interval between looks at the archive's head, and so how late a checkpoint by number of entries may be."""
GIVE_BACK_S = 1.0
"""Limit for giving a partition's lock back. A role that is cancelled at its drain's end has 2 s for all (drain.py)."""
ALIVE_S = 5.0
"""Interval at which something is asked beside the work. That may be long without a question: a file of checkpoints to
be read, a slow place outside. A process that is frozen asks nothing, and so loses the lock."""
BROKEN_RETRY_S = 15.0
"""Delay where Postgres refuses (no tables yet, no grant): a person has to do something first."""

assert ALIVE_S * 1000 < FROZEN_MS / 2

log = logging.getLogger(__name__)


class CheckpointTerms(Struct, frozen=True):
    """How to sign, and when: after so many entries, or after so many seconds if there is anything new."""

    signer: Signer
    trusted: Trusted
    outside: Outside
    every_entries: int
    every_s: float


async def keep_checkpoints(
    partition: int,
    shared: Shared,
    terms: CheckpointTerms,
    ended: asyncio.Event,
    lately: Lately | None = None,
) -> None:
    """Make and publish checkpoints until `ended`, and a last one then.

    `shared`: the connection, which serves other partitions' notaries too. `lately`: what this process archives.
    """
    outage = Outage(f"checkpoints of partition {partition}")
    said = ""
    tried_last = False
    while not tried_last:
        heed_cancellation()
        tried_last = ended.is_set()
        try:
            async with shared.joined() as db, _one_maker(db, partition, ended) as may:
                if may:
                    maker = await Maker.open(db, partition, terms.signer, terms.trusted, lately)
                    await agree_with_outside(maker, terms.outside, terms.trusted, ended)
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


@asynccontextmanager
async def _one_maker(db: SharedConnection, partition: int, ended: asyncio.Event) -> AsyncIterator[bool]:
    """Be the partition's one maker of checkpoints; False if ended before.

    The connection outlives this partition's notary, so the lock is given back: another process may have the partition
    next. One whose process is frozen ends, and the lock with it.
    """
    await end_if_frozen(db)
    if not await take_lock(db, partition, ended, lock=CHECKPOINT_LOCK):
        yield False
        return
    over = asyncio.Event()
    asking = asyncio.create_task(_show_life(db, over))
    try:
        yield True
    finally:
        over.set()
        try:
            async with asyncio.timeout(GIVE_BACK_S):
                await asking
                await give_lock_back(db, partition, lock=CHECKPOINT_LOCK)
        except TimeoutError:
            db.end()  # and the lock with it; whoever else uses the connection joins a new one
        except AWAY:
            pass  # the lock is gone with the connection


async def _show_life(db: SharedConnection, over: asyncio.Event) -> None:
    """Ask something at intervals until `over`, or the connection is lost, which whoever works on it will notice."""
    with suppress(*AWAY):
        while not await set_within(over, ALIVE_S):
            await db.execute("SELECT 1")


class _Rounds:
    """Makes and publishes checkpoints that are due, again and again, on one connection."""

    def __init__(self, maker: Maker, terms: CheckpointTerms, partition: int) -> None:
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
