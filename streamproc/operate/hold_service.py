"""Holds for the HTTP API: pages of them, and recording reviewers' answers, many at a time."""

import asyncio

from streamproc.domain.events import ReviewSubmitted
from streamproc.domain.holds import Answered, HeldPage, NotCounted, Position
from streamproc.domain.wire import decode_events
from streamproc.errors import TryAgain
from streamproc.log.inspect import delivered_as
from streamproc.log.names import partition_of
from streamproc.log.stream import Append, Producer
from streamproc.operate.gateway import SiteGateway
from streamproc.operate.holds import held, outcome_of

WAITS_MAX = 64
"""Answers whose outcome is awaited at once, each with a connection that reads the log; others wait, unrecorded."""
TURN_S_MAX = 10.0
"""How long they wait for a turn; then it is 503, and nothing was recorded."""
APPEND_S_MAX = 10.0
PAGE_S_MAX = 25.0
"""For a page of holds, waiting included; then it is 503. From Redis it takes 10 s with 200,000 payouts there, and
clients seldom wait longer than 30 s."""
REDIS_PAGES_MAX = 1
"""Pages from Redis at once: each reads every payout there, in the process that also answers the bank's webhooks."""
ATTEMPTS_MAX = 20
"""How often one key may be used again for an answer that could not be decided."""


class HoldService:
    """Lists holds and records answers, by `producer`."""

    def __init__(self, gateway: SiteGateway, producer: Producer) -> None:
        self._gateway = gateway
        self._producer = producer
        self._turns = asyncio.Semaphore(WAITS_MAX)
        self._redis_turn = asyncio.Semaphore(REDIS_PAGES_MAX)

    async def page(self, *, after: Position | None, limit: int, account: str, agent: str) -> HeldPage:
        """Holds after a position, of an account and an agent if these are given; from the view, or from Redis while
        Postgres is away. Raises TryAgain after PAGE_S_MAX."""
        try:
            async with asyncio.timeout(PAGE_S_MAX), self._gateway.site() as site:
                return await held(
                    site, after=after, limit=limit, account=account, agent=agent, turn=self._redis_turn
                )
        except TimeoutError as problem:
            raise TryAgain(f"there was no page of holds within {PAGE_S_MAX:g} s") from problem

    async def answered(self, account: str, answer: ReviewSubmitted, key: str) -> Answered:
        """Record an answer, once for its key, and wait for its outcome.

        Raises LogUnavailable, and TimeoutError if nothing was recorded, as far as is known.
        """
        async with asyncio.timeout(TURN_S_MAX):
            await self._turns.acquire()
        try:
            for attempt in range(ATTEMPTS_MAX):
                this = f"{key}:{attempt}"
                async with asyncio.timeout(APPEND_S_MAX):
                    appended = await self._producer.append(Append(account, (this,), (answer,)))
                if not appended.new and (wrong := await self._why_not_again(answer, this, appended.entry)):
                    return wrong
                partition = partition_of(account, self._gateway.partitions)
                found = await outcome_of(self._gateway.redis_url, partition, appended.entry, answer.payout)
                # "Not now" was the earlier one's answer, and this asks again.
                if appended.new or not (isinstance(found, NotCounted) and found.kind == "unavailable"):
                    break
            return found
        finally:
            self._turns.release()

    async def _why_not_again(self, answer: ReviewSubmitted, key: str, entry: str) -> NotCounted | None:
        """Why an answer under a known key is another answer; None if it is the same."""
        async with self._gateway.site() as site:
            found = await delivered_as(site.client, site.partitions, key)
        if found is None:
            problem = "this Idempotency-Key was used before, and what came of it has left the log"
            return NotCounted(answer.payout, entry, "over", problem)
        earlier = [event for event in decode_events(found.e) if type(event) is ReviewSubmitted]
        if any(_same(one, answer) for one in earlier):
            return None
        problem = "this Idempotency-Key was used for another answer to this payout; use another"
        return NotCounted(answer.payout, entry, "over", problem)


def _same(one: ReviewSubmitted, other: ReviewSubmitted) -> bool:
    return (one.payout, one.by, one.action, one.why) == (other.payout, other.by, other.action, other.why)
