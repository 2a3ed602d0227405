"""What the HTTP API asks of Redis and the archive: tokens, payouts and their events."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Any

from streamproc.archive.read import payout_at_bank, payout_known
from streamproc.domain.deliveries import request_key
from streamproc.domain.events import Event, PayoutRequested
from streamproc.domain.intent import is_intent
from streamproc.domain.payouts import PayoutRecord, fold
from streamproc.domain.tokens import Token
from streamproc.domain.wire import decode_events
from streamproc.errors import WHEN_LOST, LogUnavailable, TryAgain
from streamproc.log.inspect import delivered_as, forgot_nothing, log_exists, record_of
from streamproc.log.names import SHARED_PARTITION
from streamproc.log.pool import ClientPool
from streamproc.log.tokens import take_request, token_of
from streamproc.operate.history import history_of
from streamproc.operate.site import Site

SECOND_OPINION_S = 0.5
"""Limit for asking the archive if the log itself tells that a key is new: it answers in milliseconds, or hangs."""
STORY_ENTRIES_MAX = 500
"""Entries of one payout that are shown. Some 1 MB if each holds as many notes as fit: this process also answers the
bank's webhooks, and answers may wait for 64 readers."""
STORIES_MAX = 4
"""Stories at once. While Postgres is away each is looked for in the whole log; others wait."""
QUESTIONS_MAX = 64
"""Connections to Redis at once. More questions wait, and the API answers 503 if that takes too long."""


class SiteGateway:
    """Each question has a connection of its own, so that none gets another one's answer.

    `pool` None: no archive, so a key is new only where the log has forgotten nothing. `log_tells`: while the archive is
    away, a complete and young log is believed that a key is new; only if nothing is paid before its decision is
    archived, since a failover may have cost the log its end.
    """

    def __init__(self, redis_url: str, partitions: int, pool: Any, *, log_tells: bool = True) -> None:
        self.redis_url = redis_url
        self.partitions = partitions
        self._pool = pool
        self._log_tells = log_tells
        self._turns = asyncio.Semaphore(QUESTIONS_MAX)
        self._story_turns = asyncio.Semaphore(STORIES_MAX)
        self._kept = ClientPool(redis_url)

    @asynccontextmanager
    async def site(self) -> AsyncIterator[Site]:
        """A Site for one question."""
        async with self._turns, self._kept.acquire() as client:
            yield Site(self.redis_url, client, self.partitions, self._pool)

    async def aclose(self) -> None:
        """Close the connections that are kept."""
        await self._kept.aclose()

    async def token(self, digest: str) -> Token | None:
        """The token with this hash. Raises LogUnavailable if the log is lost, since then no token is known."""
        async with self.site() as site:
            found = await token_of(site.client, digest)
            if found is None and not await log_exists(site.client, SHARED_PARTITION):
                raise LogUnavailable(f"the log is gone; {WHEN_LOST}")
            return found

    async def request_wait_us(self, token: str, *, per_min: int, reads: bool) -> int:
        """Take one request of this token's rate: 0, or the µs until there is one."""
        async with self.site() as site:
            return await take_request(site.client, token, per_min=per_min, reads=reads)

    async def record(self, payout: str) -> PayoutRecord | None:
        """A payout, even if it was only asked for and no worker has handled it yet.

        Raises TryAgain if Redis may have forgotten it and no archive can be asked: a key that was used long ago must
        not be taken for a new one.
        """
        async with self.site() as site:
            found = await record_of(site.client, site.partitions, payout) or await _asked(site, payout)
            if found:
                return found
            if site.pool is None:
                if await forgot_nothing(site.client, site.partitions):
                    return None
                raise TryAgain("the log may have forgotten it, and STREAMPROC_POSTGRES_DSN names no archive")
            if self._log_tells and await forgot_nothing(site.client, site.partitions):
                with suppress(TimeoutError):  # asked all the same, but not waited for
                    async with asyncio.timeout(SECOND_OPINION_S):
                        return await site.ask_postgres(payout_known, payout)
                return None
            found = await site.ask_postgres(payout_known, payout)
            if found is None and site.postgres_problem:
                raise TryAgain(site.postgres_problem)
            return found

    async def shown(self, payout: str) -> PayoutRecord | None:
        """A payout by our id or, once the views show it, an intent by the bank's. Raises TryAgain as `record` does."""
        found = await self.record(payout)
        if found is not None or is_intent(payout) or self._pool is None:
            return found
        async with self.site() as site:
            name = await site.ask_postgres(payout_at_bank, payout)
            if name is None and site.postgres_problem:
                raise TryAgain(site.postgres_problem)
        return None if name is None else await self.record(name)

    async def history(self, payout: str) -> tuple[Sequence[tuple[str, Event]], list[str]]:
        """A payout's first events with their ids, and what may be missing."""
        async with self._story_turns, self.site() as site:
            found = await history_of(site, payout, entries_max=STORY_ENTRIES_MAX)
        return [(one.id, one.event) for one in found.events], found.notes


async def _asked(site: Site, payout: str) -> PayoutRecord | None:
    """The payout by its request in the log."""
    if not is_intent(payout):
        return None
    entry = await delivered_as(site.client, site.partitions, request_key(payout))
    return None if entry is None else fold(e for e in decode_events(entry.e) if type(e) is PayoutRequested)
