"""Slack's webhook in this installation, and its questions about requests and payouts."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from streamproc.clients.slack import open_slack
from streamproc.domain.events import ReviewSubmitted
from streamproc.domain.review import why_refused
from streamproc.errors import TryAgain
from streamproc.ingress.refusals import Refusals
from streamproc.ingress.slack_review import MODAL_S_MAX, Hold, NotConfigured, SlackReview
from streamproc.log.connection import connected
from streamproc.log.names import Names, partition_of
from streamproc.log.once import first_time
from streamproc.log.policies import Policies
from streamproc.log.stream import Producer
from streamproc.operate.site import Site
from streamproc.settings import Settings

QUESTIONS_MAX = 16
"""Connections to Redis at once. People click, so more would not be people."""


@asynccontextmanager
async def opened_slack_review(
    settings: Settings, pool: Any, refusals: Refusals
) -> AsyncIterator[SlackReview | NotConfigured]:
    """The application for POST /webhooks/slack, with the client that opens its modals."""
    if not settings.slack_signing_secret:
        yield NotConfigured()
        return
    url, partitions = settings.redis_url, settings.partitions
    token = settings.slack_bot_token.reveal()
    async with (
        Producer(url, partitions=partitions, name="slack") as producer,
        open_slack(settings.slack_base_url, token, timeout_s=MODAL_S_MAX) as modals,
    ):
        yield SlackReview(
            producer,
            SiteHolds(url, partitions, pool),
            modals,
            refusals,
            secret=settings.slack_signing_secret.reveal(),
            body_bytes_max=settings.body_limit,
        )


class SiteHolds:
    """Asks Redis first, which has every held payout; `pool` asks the archive for older ones (None: there is none)."""

    def __init__(self, redis_url: str, partitions: int, pool: Any) -> None:
        self._redis_url = redis_url
        self._partitions = partitions
        self._pool = pool
        self._turns = asyncio.Semaphore(QUESTIONS_MAX)

    async def first_time(self, key: str, remembered_s: int) -> bool:
        """Whether the key is new; all processes know it from now on. Raises LogUnavailable."""
        async with self._turns:
            return await first_time(self._redis_url, key, remembered_s=remembered_s)

    async def find(self, answer: ReviewSubmitted) -> Hold | None:
        """The payout, and whether an answer would count now. Raises LogUnavailable; TryAgain if Redis does not know
        the payout and the archive cannot be asked."""
        async with self._turns, connected(self._redis_url) as client:
            site = Site(self._redis_url, client, self._partitions, self._pool)
            record = await site.record(answer.payout)
            if record is None:
                if self._pool is not None and site.postgres_problem:
                    raise TryAgain(site.postgres_problem)
                return None
            partition = partition_of(record.account, self._partitions)
            people = (await Policies(Names(partition)).now(client)).people
            return Hold(record.account, record.amount, why_refused(record, answer, people))
