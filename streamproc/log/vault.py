"""A sealed text that all processes share: Redis keeps the bytes, which only its writers can read."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from streamproc.log.connection import connected, session
from streamproc.log.lease import take_lease
from streamproc.log.names import SHARED_PARTITION, Names

LEASE_S = 20.0
"""How long a lease lasts: longer than an outside call takes. If a process dies holding it, the next one gets it after
this."""


class Vault:
    """One text by its name. `owner` is this process."""

    def __init__(self, url: str, *, name: str, owner: str) -> None:
        self._url, self._name, self._owner = url, name, owner
        self._names = Names(SHARED_PARTITION)
        self._key = self._names.vault(name)

    async def load(self) -> bytes | None:
        """The text; None where nothing was saved."""
        async with session(self._url) as client:
            found = await client.get(self._key)
        return found if isinstance(found, bytes) else None

    async def save(self, sealed: bytes) -> None:
        """Replace the text."""
        async with session(self._url) as client:
            await client.set(self._key, sealed)

    @asynccontextmanager
    async def lease(self) -> AsyncIterator[bool]:
        """The lease on changing it, for one process at a time; False: another process has it."""
        job = f"vault:{self._name}"
        async with connected(self._url) as client:
            term, _ = await take_lease(client, self._names, job, self._owner, lasts_s=LEASE_S)
        try:
            yield term > 0
        finally:
            if term > 0:
                async with connected(self._url) as client:
                    await take_lease(client, self._names, job, self._owner, lasts_s=0.0)
