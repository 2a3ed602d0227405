"""A pool of connections: each serves one question at a time and is kept for the next one.

A new connection costs more than most questions: 15 times the CPU of an HGET. Keeping them is safe since none is shared,
one whose question failed or was cut off is closed (an answer may still be on its way), and one that the server has
closed meanwhile is not used again.
"""

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

from redis.asyncio import Redis
from redis.exceptions import RedisError

from streamproc.log.connection import connect, is_quiet

KEPT_MAX = 16
"""Idle connections that are kept; one more is closed after its question."""
KEPT_S = 10.0
"""An idle connection this old is closed when another is given back: after a burst there are more than are needed."""


class ClientPool:
    """Connections to one server or cluster. Close with `aclose()`."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._idle: deque[tuple[float, Redis]] = deque()
        """(idle since, connection), the longest idle first; the most recently used is taken first."""

    @asynccontextmanager
    async def acquire(self) -> AsyncIterator[Redis]:
        """A client for one question."""
        client = await self._well() or connect(self._url)
        try:
            yield client
        except BaseException:
            await _closed(client)
            raise
        if len(self._idle) < KEPT_MAX:
            now = asyncio.get_running_loop().time()
            self._idle.append((now, client))
            if self._idle[0][0] < now - KEPT_S:  # one at a time, so that no caller waits until all are closed
                await _closed(self._idle.popleft()[1])
        else:
            await _closed(client)

    async def aclose(self) -> None:
        """Close the idle ones."""
        while self._idle:
            await _closed(self._idle.pop()[1])

    async def _well(self) -> Redis | None:
        """The most recently used connection on which the server has said nothing since: there is nothing for it to
        say."""
        while self._idle:
            client = self._idle.pop()[1]
            is_well = False
            try:
                with suppress(RedisError, OSError):
                    is_well = await is_quiet(client)
            finally:  # also if the caller is cancelled meanwhile
                if not is_well:
                    await _closed(client)
            if is_well:
                return client
        return None


async def _closed(client: Redis) -> None:
    with suppress(RedisError, OSError):  # a peer that does not answer is not waited for
        await client.aclose()
