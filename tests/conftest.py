"""Real servers for the tests: one Valkey and one Postgres for the session, emptied or made anew for each test."""

import asyncio
import itertools
import os
import shutil
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, contextmanager
from pathlib import Path
from typing import Any

import asyncpg
import pytest
from redis.asyncio import Redis

from streamproc.embedded import Store
from tests import servers
from tests.seeded import SeededHistory, drop_history, make_history

_database_number = itertools.count(1)

# Files whose tests share one seeded history, which takes most of a minute to make: one worker runs them all.
SEEDED_FILES = frozenset(
    {
        "tests/operate/test_replay_seeded.py",
        "tests/operate/test_whatif.py",
        "tests/projections/test_projector_killed.py",
    }
)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """With several workers (`make test`) a file's tests stay together, and so do all that need the seeded history.

    Not `--dist loadgroup`: with pytest 9.2 it forgets the groups (pytest-xdist issue 1386).
    """
    from xdist.scheduler import LoadFileScheduling

    class KeepTogether(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            path = nodeid.partition("::")[0]
            return "seeded" if path in SEEDED_FILES else path

    return KeepTogether(config, log)


@pytest.fixture(scope="session", autouse=True)
def nothing_is_left_here() -> Iterator[None]:
    """`make run` after `make test` must find the directory as a fresh clone has it."""
    was_there = Path("data").exists()
    yield
    assert was_there or not Path("data").exists(), "a test wrote to ./data: give it a STREAMPROC_DATA_DIR"


@pytest.fixture(scope="session")
def public_dir() -> Iterator[Path]:
    """A directory that every user may enter: under root Postgres runs as somebody else, and pytest's are private."""
    directory = Path(tempfile.mkdtemp(prefix="streamproc-test-"))
    directory.chmod(0o711)
    yield directory
    shutil.rmtree(directory, ignore_errors=True)


@contextmanager
def _served(server: Callable[[], AbstractAsyncContextManager[Store]]) -> Iterator[Store]:
    """Keep *server* running outside of any test's event loop."""
    with asyncio.Runner() as runner:
        context = server()
        store = runner.run(context.__aenter__())
        try:
            yield store
        finally:
            runner.run(context.__aexit__(None, None, None))


@pytest.fixture(scope="session")
def valkey(public_dir: Path) -> Iterator[str]:
    """URL of the session's Valkey; `redis_url` is the one that starts empty."""
    with _served(lambda: servers.redis(public_dir)) as store:
        yield store.url


@pytest.fixture(scope="session")
def postgres_server(public_dir: Path) -> Iterator[str]:
    """DSN of the session's Postgres, for making databases; `postgres` is the one for tests."""
    with _served(lambda: servers.postgres(public_dir)) as store:
        yield store.url


@pytest.fixture
async def redis_url(valkey: str) -> str:
    """URL of an empty Valkey."""
    async with Redis.from_url(valkey) as client:
        await client.flushall()
        await client.script_flush()
    return valkey


@pytest.fixture
async def postgres(postgres_server: str) -> AsyncIterator[str]:
    """DSN of a database that is new and empty, and dropped afterwards."""
    name = f"test_{os.getpid()}_{next(_database_number)}"
    admin = await asyncpg.connect(postgres_server)
    try:
        await admin.execute(f"CREATE DATABASE {name} TEMPLATE template0")
        yield f"{postgres_server.rpartition('/')[0]}/{name}"
        await admin.execute(f"DROP DATABASE {name} WITH (FORCE)")
    finally:
        await admin.close()


@pytest.fixture(scope="session")
def seeded(valkey: str, postgres_server: str) -> Iterator[SeededHistory]:
    """A long history that the real engine made, once for the session: its entries, and an archive of most of them."""
    history = asyncio.run(make_history(valkey, postgres_server))
    yield history
    asyncio.run(drop_history(postgres_server, history))


@pytest.fixture
async def seeded_archive(seeded: SeededHistory, postgres_server: str) -> AsyncIterator[str]:
    """DSN of a copy of the seeded archive with its views, dropped afterwards."""
    name = f"test_{os.getpid()}_{next(_database_number)}"
    admin = await asyncpg.connect(postgres_server)
    try:
        await admin.execute(f"CREATE DATABASE {name} TEMPLATE {seeded.database}")
        yield f"{postgres_server.rpartition('/')[0]}/{name}"
        await admin.execute(f"DROP DATABASE {name} WITH (FORCE)")
    finally:
        await admin.close()
