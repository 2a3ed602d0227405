"""Servers of the distribution, started like the embedded ones with the same settings.

With `TEST_REDIS_SERVER` and `TEST_POSTGRES_BIN` the whole suite runs on them:

    TEST_REDIS_SERVER=/usr/bin/redis-server TEST_POSTGRES_BIN=/usr/lib/postgresql/15/bin pytest tests/log tests/archive
"""

import os
import shutil
import subprocess
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, AbstractContextManager, ExitStack, asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias
from unittest.mock import patch

from streamproc import embedded, postgres_dir
from streamproc.embedded import Store

Server: TypeAlias = Callable[[], AbstractAsyncContextManager[Store]]
DEBIAN_POSTGRES = Path("/usr/lib/postgresql/15/bin")


def debian_redis() -> Path | None:
    """Path of a redis-server 7.0; None if there is none."""
    program = shutil.which("redis-server")
    if program is None:
        return None
    answer = subprocess.run([program, "--version"], capture_output=True, text=True, check=False)
    return Path(program) if " v=7.0." in answer.stdout else None


def debian_postgres() -> Path | None:
    """Directory with the programs of Postgres 15; None if there is none."""
    return DEBIAN_POSTGRES if (DEBIAN_POSTGRES / "initdb").exists() else None


@asynccontextmanager
async def started_as(server: Server, *changed: AbstractContextManager[Any]) -> AsyncIterator[Store]:
    """An embedded server. The patches `changed` apply to its start, and to nothing else."""
    with ExitStack() as patches:
        for change in changed:
            patches.enter_context(change)
        running = server()
        store = await running.__aenter__()
    try:
        yield store
    finally:
        await running.__aexit__(None, None, None)


@asynccontextmanager
async def redis(home: Path, program: Path | None = None) -> AsyncIterator[Store]:
    """Redis or Valkey with its data below `home`: `program`, or that of the environment, or the embedded one."""
    chosen = program or _named("TEST_REDIS_SERVER")
    changed = [patch.object(embedded, "_valkey_program", lambda: chosen)] if chosen else []
    async with started_as(partial(embedded.valkey, home), *changed) as store:
        yield store


@asynccontextmanager
async def postgres(
    home: Path, programs: Path | None = None, *, durable: bool = False
) -> AsyncIterator[Store]:
    """Postgres with its cluster below `home`, from the directory `programs` or chosen as above."""
    chosen = programs or _named("TEST_POSTGRES_BIN")
    find_postgres = embedded.find_postgres
    changed = (
        ()
        if chosen is None
        else (
            patch.object(
                embedded, "find_postgres", lambda data_dir: find_postgres(data_dir)._replace(programs=chosen)
            ),
            patch.object(postgres_dir, "POSTGRES_MAJOR", chosen.parent.name),
        )
    )
    async with started_as(partial(embedded.postgres, home, durable=durable), *changed) as store:
        yield store


def _named(variable: str) -> Path | None:
    given = os.environ.get(variable, "")
    return Path(given) if given else None
