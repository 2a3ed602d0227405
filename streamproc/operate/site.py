"""The running system as operators' commands reach it: Redis, and Postgres if it is configured and there."""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

from projections.heads import outdated_views
from streamproc.archive.pool import acquired, opened_pool
from streamproc.archive.read import payout_view
from streamproc.archive.store import OtherColumns, refusals_as_job_failed
from streamproc.domain.payouts import PayoutRecord
from streamproc.errors import InputError, JobFailed, TryAgain
from streamproc.log.connection import connected
from streamproc.log.inspect import partitions_of_log, record_of
from streamproc.log.names import Names
from streamproc.settings import Settings

T = TypeVar("T")


@dataclass(slots=True)
class Site:
    """`client`: one connection to Redis; `pool`: Postgres (None: not configured).

    `postgres_problem`: after a question, why Postgres could not answer it.
    """

    redis_url: str
    client: Any
    partitions: int
    pool: Any = None
    postgres_problem: str = ""

    async def ask_postgres(
        self, question: Callable[..., Awaitable[T]], *arguments: Any, **named: Any
    ) -> T | None:
        """The answer, or None while Postgres is away. Raises JobFailed if it refuses, or a view is too old."""
        if self.pool is None:
            self.postgres_problem = "STREAMPROC_POSTGRES_DSN is not set"
            return None
        if self.postgres_problem:
            return None  # a command that waited once does not wait again
        try:
            return await self._answered(question, *arguments, **named)
        except TryAgain as problem:
            self.postgres_problem = str(problem)
            return None

    async def _answered(self, question: Callable[..., Awaitable[T]], *arguments: Any, **named: Any) -> T:
        try:
            with refusals_as_job_failed():
                return await question(self.pool, *arguments, **named)
        except OtherColumns as problem:
            with refusals_as_job_failed():
                async with acquired(self.pool) as db:
                    outdated = " ".join(await outdated_views(db))
            if not outdated:
                raise
            raise JobFailed(
                f"{problem}, and `streamproc replay {outdated}` makes those of another version anew"
            ) from problem

    async def record(self, payout: str) -> PayoutRecord | None:
        """A payout from Redis, or else from the view. If it is None and `postgres_problem` is set, the view was not
        asked."""
        found = await record_of(self.client, self.partitions, payout)
        return found or await self.ask_postgres(payout_view, payout)

    def names_of(self, partition: int) -> Names:
        """The keys of a partition. Raises InputError for a partition that this log does not have."""
        if not 0 <= partition < self.partitions:
            raise InputError(f"partition {partition}: this log has partitions 0 to {self.partitions - 1}")
        return Names(partition)

    def chosen(self, partition: int | None) -> list[int]:
        """The one partition that was named, or every partition for None. Raises InputError for an unknown one."""
        if partition is None:
            return list(range(self.partitions))
        return [self.names_of(partition).partition]


@asynccontextmanager
async def opened(settings: Settings) -> AsyncIterator[Site]:
    """Reach the system that the settings name.

    Raises LogUnavailable if Redis is away, JobFailed if it has no log. Postgres is connected to only when it is asked.
    """
    async with AsyncExitStack() as stack:
        client = await stack.enter_async_context(connected(settings.redis_url))
        partitions = await partitions_of_log(client)
        dsn = settings.postgres_dsn.reveal()
        pool = await stack.enter_async_context(opened_pool(dsn)) if dsn else None
        yield Site(settings.redis_url, client, partitions, pool)
