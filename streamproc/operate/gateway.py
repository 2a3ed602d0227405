"""What the HTTP API must know: tokens, payouts and their events, from Redis and the archive."""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

from streamproc.archive.read import payout_view
from streamproc.domain.events import Event, PayoutRequested
from streamproc.domain.payouts import PayoutRecord
from streamproc.domain.tokens import Token
from streamproc.domain.wire import decode_events
from streamproc.errors import TryAgain
from streamproc.log.connection import connected
from streamproc.log.inspect import entry_at, record_of
from streamproc.log.names import Names, partition_of
from streamproc.log.tokens import token_of
from streamproc.operate.history import history_of
from streamproc.operate.site import Site


class SiteGateway:
    """Each question has a connection of its own, so none can hear another's answer. `pool` None: no archive."""

    def __init__(self, redis_url: str, partitions: int, pool: Any) -> None:
        self._redis_url = redis_url
        self._partitions = partitions
        self._pool = pool

    @asynccontextmanager
    async def _site(self) -> AsyncIterator[Site]:
        async with connected(self._redis_url) as client:
            yield Site(self._redis_url, client, self._partitions, self._pool)

    async def token(self, digest: str) -> Token | None:
        """The token with this hash."""
        async with connected(self._redis_url) as client:
            return await token_of(client, digest)

    async def record(self, payout: str) -> PayoutRecord | None:
        """A payout. Raises TryAgain where Redis does not know it and the archive cannot be asked: a key that was used
        long ago must not be taken for a new one."""
        async with self._site() as site:
            found = await record_of(site.client, site.partitions, payout)
            if found is not None or site.pool is None:
                return found
            found = await site.ask_postgres(payout_view, payout)
            if found is None and site.postgres_problem:
                raise TryAgain(site.postgres_problem)
            return found

    async def request_at(self, account: str, entry: str) -> PayoutRequested | None:
        """The request in an entry of the account's log; None where it has left Redis."""
        names = Names(partition_of(account, self._partitions))
        async with connected(self._redis_url) as client:
            found = await entry_at(client, names, entry)
        events = decode_events(found.e) if found is not None else []
        return next((event for event in events if type(event) is PayoutRequested), None)

    async def history(self, payout: str) -> tuple[Sequence[tuple[str, Event]], list[str]]:
        """A payout's events with their ids."""
        async with self._site() as site:
            found = await history_of(site, payout)
        return [(one.id, one.event) for one in found.events], found.notes
