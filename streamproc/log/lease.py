"""A lease: of several processes that could do a job, one does it and the others stand by.

For jobs that two may do at once for a moment without harm, as a process that was frozen does after its lease ran out.
"""

import asyncio
import logging
from contextlib import suppress

from redis.asyncio import Redis

from streamproc.errors import LogUnavailable
from streamproc.log.connection import connected
from streamproc.log.names import Names
from streamproc.log.script import Script
from streamproc.waiting import set_within

LEASE_S = 15.0
"""After a process dies, another one has its job within this and a third of it."""
RENEW_S = LEASE_S / 3
"""Two renewals may be lost."""

_lease = Script("lease", "checks")

log = logging.getLogger(__name__)


async def take_lease(
    client: Redis, names: Names, job: str, owner: str, *, lasts_s: float, gives_way: str = ""
) -> tuple[int, str]:
    """Take or renew a job's lease, or give it back (`lasts_s` 0); our term (0: we do not have it) and its owner.

    It is taken from an owner whose name begins with `gives_way` as well.
    """
    keys = [names.lease(job), names.terms]
    term, holder = await _lease(client, keys, [owner, int(lasts_s * 1000), gives_way])
    return int(term), holder.decode()


class Lease:
    """Held or not, as of the last answer of Redis. `term` counts the holders: a new one has a higher term."""

    def __init__(self, url: str, names: Names, job: str, owner: str) -> None:
        self._url, self._names, self._job, self.owner = url, names, job, owner
        self.term = 0
        self._asked = asyncio.Event()

    @property
    def held(self) -> bool:
        """Whether the job is ours."""
        return self.term > 0

    async def keep(self, stopping: asyncio.Event) -> None:
        """Take it when it is free and renew it while it is ours, until `stopping`; then give it back."""
        while not stopping.is_set():
            await self._take()
            self._asked.set()
            await set_within(stopping, RENEW_S)
        self._asked.set()  # stopped before the first answer: `asked` must not wait for one
        with suppress(LogUnavailable):
            await self._ask(0.0)

    async def asked(self) -> None:
        """Wait for the first answer."""
        await self._asked.wait()

    async def _take(self) -> None:
        held = self.held
        try:
            self.term = await self._ask(LEASE_S)
        except LogUnavailable:
            self.term = 0
        if self.held != held:
            log.info("%s: %s", self._job, f"active, term {self.term}" if self.held else "standing by")

    async def _ask(self, lasts_s: float) -> int:
        async with connected(self._url) as client:
            term, _ = await take_lease(client, self._names, self._job, self.owner, lasts_s=lasts_s)
            return term
