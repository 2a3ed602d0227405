"""The barriers: no money moves by a decision that only Redis has, nor while Redis lacks what the archive has.

Redis replicates asynchronously, so a failover may lose the log's tail. What Postgres has archived is not lost. But a
log that was set back has forgotten freezes too, and the outcome of what was sent before.
"""

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeAlias

import asyncpg

from streamproc.archive.read import archived_upto, entry_archived, last_archived
from streamproc.archive.store import Entry
from streamproc.domain.entry_ids import id_key
from streamproc.errors import TryAgain, kind_of

POLL_S = 0.01
"""How soon it is noticed that an entry is archived, which takes milliseconds."""
WAIT_S_MAX = 2.0
"""After this the entry is deferred: it waits in the group, not in a worker's hands."""
AGAIN_S = 0.5
NEVER_S = 60.0
"""Delay of an entry that the archive has skipped. The projector has stopped with an alarm by then; a person must
look."""
SET_BACK_S = 5.0
"""Delay while the log lacks the archive's last entry: it waits for a person to run `streamproc recover`."""

Logged: TypeAlias = Callable[[int, str], Awaitable[Entry | None]]
"""An entry of a partition, by its id, as the log has it now."""
Passed: TypeAlias = Callable[[int, str, bytes], Awaitable[None]]
"""A barrier: returns once the entry, with these events, is as durable as it asks for. Raises TryAgain."""


class ArchiveBarrier:
    """Waits until an entry is archived. Those that wait for one partition share one query at a time."""

    def __init__(self, pool: asyncpg.Pool, logged: Logged) -> None:
        self._pool = pool
        self._logged = logged
        self._upto: dict[int, tuple[int, int]] = {}
        self._asking: dict[int, asyncio.Lock] = {}

    async def __call__(self, partition: int, entry: str, e: bytes) -> None:
        """Return when `entry` of `partition`, with the events `e`, is archived. Raises TryAgain if it is not within
        WAIT_S_MAX, the log was set back, or Postgres is away, and as `logged` does."""
        wanted = id_key(entry)
        try:
            async with asyncio.timeout(WAIT_S_MAX):
                await self._until_past(partition, wanted)
                # That the head is past this id does not mean that the entry is archived: after a failover to a
                # server whose clock is behind, new ids are below those of the lost tail, or the same.
                archived = await entry_archived(self._pool, partition, entry, e)
                if not archived:
                    # Or Postgres failed over to a standby that had less: then the projector archives it once more.
                    self._upto.pop(partition, None)
                    await self._until_past(partition, wanted)
                    archived = await entry_archived(self._pool, partition, entry, e)
            is_whole = archived and await _is_whole(self._pool, self._logged, partition)
        except TimeoutError:
            problem = f"decision {partition}:{entry} is not archived yet; is the projector running?"
            raise TryAgain(problem, after_s=AGAIN_S) from None
        except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError) as problem:
            raise TryAgain(f"Postgres is away: {kind_of(problem)}", after_s=AGAIN_S) from problem
        if not archived:
            skipped = f"decision {partition}:{entry} is not in the archive, though the archive is past it"
            raise TryAgain(skipped, after_s=NEVER_S)
        if not is_whole:
            raise _waits_for_recovery(partition)

    async def _until_past(self, partition: int, wanted: tuple[int, int]) -> None:
        while not await self._passed(partition, wanted):  # noqa: ASYNC110  # Postgres sets no Event
            await asyncio.sleep(POLL_S)

    async def _passed(self, partition: int, wanted: tuple[int, int]) -> bool:
        if wanted <= self._upto.get(partition, (0, 0)):
            return True
        async with self._asking.setdefault(partition, asyncio.Lock()):
            if wanted > self._upto.get(partition, (0, 0)):
                self._upto[partition] = id_key(await archived_upto(self._pool, partition))
        return wanted <= self._upto[partition]


class WholeLogBarrier:
    """A weaker barrier, and behind it the check that the log has the archive's last entry.

    It is for operators whose money does not wait for Postgres. So an archive that is away holds nothing up, but where
    it has just said that the log was set back.
    """

    def __init__(self, pool: asyncpg.Pool, logged: Logged, weaker: Passed) -> None:
        self._pool = pool
        self._logged = logged
        self._weaker = weaker
        self._set_back = dict[int, bool]()
        """What was found last of a partition."""

    async def __call__(self, partition: int, entry: str, e: bytes) -> None:
        """Return when the weaker barrier is passed and the log is not known to be set back. Raises TryAgain, and as
        `logged` does."""
        await self._weaker(partition, entry, e)
        try:
            async with asyncio.timeout(WAIT_S_MAX):
                self._set_back[partition] = await _is_whole(self._pool, self._logged, partition) is False
        # An archive that is away or slow holds nothing up.
        except (OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError, TryAgain):
            pass
        if self._set_back.get(partition):
            raise _waits_for_recovery(partition)


async def _is_whole(pool: asyncpg.Pool, logged: Logged, partition: int) -> bool | None:
    """Whether the log has the archive's last entry, which is never trimmed, and no other one under its id; None where
    the archive has no entry."""
    last = await last_archived(pool, partition)
    if last is None:
        return None
    found = await logged(partition, last.id)
    return found is not None and (found.e, found.m) == (last.e, last.m)


def _waits_for_recovery(partition: int) -> TryAgain:
    return TryAgain(
        f"the log of partition {partition} lacks the archive's last entry, so it may lack a freeze: no money"
        " moves before `streamproc recover`",
        after_s=SET_BACK_S,
    )
