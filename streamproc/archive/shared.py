"""One connection that several tasks of a process use in turn, for work that may wait: each is a process of Postgres,
which has a hundred by default.

It is opened for the first of them and closed after the last, and opened anew for those who join after it was lost.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import asyncpg

from streamproc.archive.store import AWAY, connection


class SharedConnection:
    """A connection, used by one task at a time, first come, first served. Once lost it stays lost: join anew."""

    def __init__(self, db: asyncpg.Connection) -> None:
        self._db = db
        self._lock = asyncio.Lock()

    @property
    def lost(self) -> bool:
        """Whether it can never be used again."""
        return bool(self._db.is_closed())

    def end(self) -> None:
        """Close it for everybody, whatever they do on it: what they wait for raises one of AWAY."""
        self._db.terminate()

    @asynccontextmanager
    async def exclusive(self) -> AsyncIterator[asyncpg.Connection]:
        """The connection to ourselves. Raises ConnectionResetError, which is one of AWAY, if it was lost."""
        async with self._lock:
            if self.lost:
                raise ConnectionResetError("the shared connection was lost")
            try:
                yield self._db
            except BaseException as problem:
                # Whoever is next must find no transaction of ours, and no statement that was given up half way.
                if not _is_refusal(problem) or self._db.is_in_transaction():
                    self._db.terminate()
                raise

    async def fetch(self, query: str, *values: object) -> list[Any]:
        """As asyncpg's, with the connection to ourselves; so are the following."""
        async with self.exclusive() as db:
            return list(await db.fetch(query, *values))

    async def fetchrow(self, query: str, *values: object) -> Any:
        async with self.exclusive() as db:
            return await db.fetchrow(query, *values)

    async def fetchval(self, query: str, *values: object) -> Any:
        async with self.exclusive() as db:
            return await db.fetchval(query, *values)

    async def execute(self, query: str, *values: object) -> str:
        async with self.exclusive() as db:
            return str(await db.execute(query, *values))


def _is_refusal(problem: BaseException) -> bool:
    """Whether the statement was answered, or never sent: then the connection is as it was before."""
    return isinstance(problem, Exception) and not isinstance(problem, AWAY)


class Shared:
    """A connection for several tasks, while any of them is here."""

    def __init__(self, dsn: str, *, name: str) -> None:
        """`name` shows in pg_stat_activity."""
        self._dsn = dsn
        self._name = name
        self._joining = asyncio.Lock()
        self._now: _Open | None = None

    @asynccontextmanager
    async def joined(self) -> AsyncIterator[SharedConnection]:
        """The connection, opened unless another task has it open. Raises what connecting raises."""
        async with self._joining:
            if self._now is None or self._now.connection.lost:
                stack = AsyncExitStack()
                db = await stack.enter_async_context(connection(self._dsn, name=self._name))
                self._now = _Open(SharedConnection(db), stack)
            here = self._now
            here.users += 1
        try:
            yield here.connection
        finally:
            here.users -= 1
            if not here.users:
                if self._now is here:
                    self._now = None
                await here.stack.aclose()


class _Open:
    """An open connection, what closes it, and how many use it."""

    def __init__(self, connection: SharedConnection, stack: AsyncExitStack) -> None:
        self.connection = connection
        self.stack = stack
        self.users = 0
