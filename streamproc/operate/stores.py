"""The stores of DATA_DIR for a command while no `up` runs on them: started for as long as it takes."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

import msgspec

from streamproc import embedded
from streamproc.errors import ConfigError, JobFailed
from streamproc.run_file import forget_run_file
from streamproc.settings import PREFIX, Secret, Settings


@asynccontextmanager
async def reachable(settings: Settings) -> AsyncIterator[Settings]:
    """The settings with both stores' addresses. What neither they nor a running `up` name is started here, and stopped.

    Raises ConfigError where there is nothing that can be started, JobFailed where an `up` that is not ready holds it.
    """
    async with AsyncExitStack() as stack:
        if not (settings.redis_url and settings.postgres_dsn):
            await stack.enter_async_context(_locked(settings))
        if not settings.redis_url:
            store = await stack.enter_async_context(embedded.valkey(settings.data_dir))
            settings = msgspec.structs.replace(settings, redis_url=store.url)
        if not settings.postgres_dsn:
            store = await stack.enter_async_context(embedded.postgres(settings.data_dir))
            settings = msgspec.structs.replace(settings, postgres_dsn=Secret(store.url))
        yield settings


@asynccontextmanager
async def _locked(settings: Settings) -> AsyncIterator[None]:
    where = settings.data_dir
    if not where.is_dir():
        raise ConfigError(
            f"{where} is not there: set {PREFIX}DATA_DIR, or {PREFIX}REDIS_URL and {PREFIX}POSTGRES_DSN"
        )
    async with AsyncExitStack() as stack:
        try:
            await stack.enter_async_context(embedded.locked_for_up(where))
        except embedded.InUse as problem:
            raise JobFailed(
                f"an `up` runs on {where} and is not ready; stop it, and run this again"
            ) from problem
        forget_run_file(settings)
        yield
