"""The lease on changing policies: one change reaches every partition before the next one begins.

Each partition takes a change by itself. Without it two changes at once would come to the partitions in different
orders, and leave an agent frozen on one and free on another, with nobody told.
"""

import asyncio
import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

from streamproc.domain.policy_changes import Contended, Overtaken
from streamproc.errors import LogUnavailable
from streamproc.log.lease import take_lease
from streamproc.log.names import Names
from streamproc.log.policies import still_in_force
from streamproc.operate.site import Site

LEASE_S = 5.0
"""How long a lease lasts after its last partition: a change waits that long for a process that died."""
FREEZE_WAIT_S = 0.5
"""How long a freeze waits for another change, which takes milliseconds; then it goes first."""
WAIT_S = 15.0
"""How long the lease is waited for: three that died, and below what an HTTP request has for a change."""
LOOK_S = 0.02
"""How often it is asked for; a change takes some milliseconds for each partition."""
_JOB, _PARTITION = "policies", 0
_FREEZE, _CHANGE = "freeze-", "change-"


class ChangeLease:
    """The lease, as `owner` holds it or asks for it."""

    def __init__(self, site: Site, owner: str) -> None:
        self._site, self._owner, self._term = site, owner, 0

    async def goes_on(self, partition: int) -> None:
        """Renew the lease, after a partition was read and before it is written to.

        Whoever gets it after that moves the partition's revision, so that a late write is refused. Raises Overtaken if
        it ran out, or was somebody else's since: others may have changed later partitions by then.
        """
        if await self._ask(LEASE_S) != self._term:
            raise Overtaken(
                f"partition {partition}: this change came to a halt for over {LEASE_S:g} s, or a freeze went first, and"
                " others may have changed policies since; it is not in force from this partition on: run it again"
            )

    async def take(self, *, gives_way: str = "") -> bool:
        """Take the lease, from an owner whose name begins with `gives_way` too; False if somebody else keeps it."""
        self._term = await self._ask(LEASE_S, gives_way)
        return self._term > 0

    async def passes(self, partition: int, rev: bytes) -> bool:
        """Leave a partition as it is at `rev`; False if it was changed since. Raises as `goes_on`."""
        await self.goes_on(partition)
        return await still_in_force(self._site.client, Names(partition), rev)

    async def give_back(self) -> None:
        """Let the next change begin; if Redis is away, it begins after LEASE_S."""
        with suppress(LogUnavailable):
            await self._ask(0.0)

    async def _ask(self, lasts_s: float, gives_way: str = "") -> int:
        names = Names(_PARTITION)
        term, _ = await take_lease(
            self._site.client, names, _JOB, self._owner, lasts_s=lasts_s, gives_way=gives_way
        )
        return term


@asynccontextmanager
async def change_lease(site: Site, *, freezes: bool = False) -> AsyncIterator[ChangeLease]:
    """The lease, waited for up to WAIT_S; a freeze takes it from any other change after FREEZE_WAIT_S, so that one that
    died or does not end holds no freeze up. Raises Contended if others have it all that time, and LogUnavailable."""
    mine = ChangeLease(site, (_FREEZE if freezes else _CHANGE) + secrets.token_hex(8))
    began = asyncio.get_running_loop().time()
    gives_way = ""
    try:
        while not await mine.take(gives_way=gives_way):
            waited = asyncio.get_running_loop().time() - began
            if waited > WAIT_S:
                raise Contended(
                    f"others have been changing policies for {WAIT_S:g} s; nothing was changed, run it again"
                )
            gives_way = _CHANGE if freezes and waited >= FREEZE_WAIT_S else ""
            await asyncio.sleep(LOOK_S)
        yield mine
    finally:
        await mine.give_back()
