"""Holds for the HTTP API: pages of them, and a reviewer's answer with what becomes of it, many at a time."""

import asyncio

from streamproc.archive.lookup import held_page
from streamproc.domain.events import ReviewSubmitted
from streamproc.domain.holds import Answered, HeldPage, NotCounted, Place, place_of
from streamproc.domain.payouts import PayoutRecord
from streamproc.domain.wire import decode_events
from streamproc.ingress.door import Door
from streamproc.log.inspect import delivered_as, held_records
from streamproc.log.names import Names, partition_of
from streamproc.log.stream import Append
from streamproc.operate.gateway import SiteGateway
from streamproc.operate.holds import outcome_of

WAITS_MAX = 64
"""Answers that are waited for at once, each with a connection that reads the log; others wait, unrecorded."""
TURN_S_MAX = 10.0
"""For a turn among them; then it is 503, and nothing was recorded."""
APPEND_S_MAX = 10.0
HELD_MAX = 10_000
"""Holds of a partition that are looked at while Postgres is away: some 20 MB of records for one answer."""


class HoldDesk:
    """`producer` writes the answers."""

    def __init__(self, gateway: SiteGateway, producer: Door) -> None:
        self._gateway = gateway
        self._producer = producer
        self._turns = asyncio.Semaphore(WAITS_MAX)

    async def page(self, *, after: Place | None, limit: int, account: str, agent: str) -> HeldPage:
        """Holds behind a place, of an account and an agent where these are given. From the view, or from Redis while
        Postgres is away."""
        async with self._gateway.site() as site:
            found = await site.ask_postgres(
                held_page, after=after, account=account, agent=agent, limit=limit + 1
            )
            if found is not None:
                return _page(found, limit, "")
            note, seen = f"{site.postgres_problem}; listed from Redis", 0
            for partition in range(site.partitions):
                records = await held_records(site.client, Names(partition), limit=HELD_MAX)
                seen = max(seen, len(records))
                found = (found or []) + [
                    record
                    for record in records
                    if (after is None or place_of(record) > after)
                    and account in ("", record.account)
                    and agent in ("", record.agent)
                ]
            if seen >= HELD_MAX:
                note += f", of the first {HELD_MAX} that were found"
            return _page(sorted(found or [], key=place_of), limit, note)

    async def answered(self, account: str, answer: ReviewSubmitted, key: str) -> Answered | None:
        """Record an answer, once for its key, and wait for what becomes of it. None: the key was another answer's.

        Raises LogUnavailable, and TimeoutError where nothing was recorded, as far as is known.
        """
        async with asyncio.timeout(TURN_S_MAX):
            await self._turns.acquire()
        try:
            async with asyncio.timeout(APPEND_S_MAX):
                appended = await self._producer.append(Append(account, (key,), (answer,)))
            if not appended.new:
                earlier = await self._earlier(key)
                if earlier is None:
                    problem = "this Idempotency-Key was used before, and what came of it has left the log"
                    return NotCounted(answer.payout, appended.entry, "over", problem)
                if not _same(earlier, answer):
                    return None
            partition = partition_of(account, self._gateway.partitions)
            return await outcome_of(self._gateway.redis_url, partition, appended.entry, answer.payout)
        finally:
            self._turns.release()

    async def _earlier(self, key: str) -> ReviewSubmitted | None:
        async with self._gateway.site() as site:
            entry = await delivered_as(site.client, site.partitions, key)
        if entry is None:
            return None
        return next((event for event in decode_events(entry.e) if type(event) is ReviewSubmitted), None)


def _same(one: ReviewSubmitted, other: ReviewSubmitted) -> bool:
    return (one.payout, one.by, one.action, one.why) == (other.payout, other.by, other.action, other.why)


def _page(found: list[PayoutRecord], limit: int, note: str) -> HeldPage:
    more = len(found) > limit
    return HeldPage(found[:limit], place_of(found[limit - 1]) if more else None, note)
