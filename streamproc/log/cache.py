"""Answers of outside systems, kept in Redis until they are no longer fresh. Losing one costs a call, no more."""

from collections.abc import Mapping, Sequence
from typing import Any

from redis.asyncio import Redis

from streamproc.log.connection import named_errors
from streamproc.log.cursor import server_of
from streamproc.log.names import Names


class Cache:
    """The reputation cache of one partition, over a consumer's own connection."""

    def __init__(self, client: Redis, names: Names) -> None:
        self._client, self._names = client, names

    async def get_many(self, digests: Sequence[str]) -> list[bytes | None]:
        """What is kept for each digest."""
        with named_errors():
            values: list[Any] = await self._client.mget([self._names.reputation(d) for d in digests])
        return values

    async def put_many(self, values: Mapping[str, tuple[bytes, int]]) -> None:
        """Keep each value for a number of seconds."""
        with named_errors():
            async with self._client.pipeline(transaction=False) as pipe:
                for digest, (value, ttl_s) in values.items():
                    pipe.set(self._names.reputation(digest), value, ex=ttl_s)
                await pipe.execute()

    async def server(self) -> str:
        """The server that keeps them, in its present run: another one may have lost what was kept last."""
        with named_errors():
            return server_of(await self._client.execute_command("INFO", "server", "replication"))
