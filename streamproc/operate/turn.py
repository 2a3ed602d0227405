"""A turn at changing policies: one change reaches every partition before the next one begins.

Each partition takes a change by itself. Without turns two changes at once would come to the partitions in different
orders, and leave an agent frozen on one and free on another, with nobody told.
"""

import asyncio
import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

from streamproc.errors import JobFailed, LogUnavailable
from streamproc.log import scripts
from streamproc.log.names import Names
from streamproc.operate.site import Site

TURN_S = 5.0
"""A turn lasts this long from its last partition on: so long a freeze may have to wait for a process that died."""
WAIT_S = 15.0
"""How long a turn is waited for: three that died, and below what an HTTP request has for a change."""
LOOK_S = 0.02
"""How often a turn is asked for; a change takes some milliseconds for each partition."""
_JOB, _PARTITION = "policies", 0


class Turn:
    """A turn that was given to `owner`."""

    def __init__(self, site: Site, owner: str) -> None:
        self._site, self._owner = site, owner

    async def goes_on(self, partition: int) -> None:
        """To be asked before each write to a partition. Raises JobFailed if the turn is over, since others may have
        changed later partitions by then."""
        if not await self._ask(TURN_S):
            raise JobFailed(
                f"partition {partition}: this change came to a halt for over {TURN_S:g} s, and others change policies"
                " now; run it again"
            )

    async def take(self) -> bool:
        """Whether nobody else has it."""
        return await self._ask(TURN_S)

    async def give_back(self) -> None:
        """Let the next one begin; if Redis is away, it begins after TURN_S."""
        with suppress(LogUnavailable):
            await self._ask(0.0)

    async def _ask(self, lasts_s: float) -> bool:
        names = Names(_PARTITION)
        term, _ = await scripts.lease(self._site.client, names, _JOB, self._owner, lasts_s=lasts_s)
        return term > 0


@asynccontextmanager
async def turn(site: Site) -> AsyncIterator[Turn]:
    """A turn, waited for up to WAIT_S. Raises JobFailed if others have it all that time, and LogUnavailable."""
    mine = Turn(site, secrets.token_hex(8))
    until = asyncio.get_running_loop().time() + WAIT_S
    try:
        while not await mine.take():
            if asyncio.get_running_loop().time() > until:
                raise JobFailed(
                    f"others have been changing policies for {WAIT_S:g} s; nothing was changed, run it again"
                )
            await asyncio.sleep(LOOK_S)
        yield mine
    finally:
        await mine.give_back()
