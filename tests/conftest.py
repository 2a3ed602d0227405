"""Real servers for the tests: one Valkey and one Postgres for the session, with an empty store for each test."""

import asyncio
import fcntl
import gc
import itertools
import os
import shutil
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, contextmanager, suppress
from pathlib import Path
from typing import Any

import asyncpg
import pytest
from hypothesis import HealthCheck, settings
from redis.asyncio import Redis

from projections.schema import prepare
from streamproc.embedded import Store
from tests import left, patience, servers
from tests.databases import copy_of, template
from tests.seeded import SeededHistory, drop_history, make_history

_database_number = itertools.count(1)

# Random tests try the same cases each time, so that a failure is due to the change. `make explore` tries new ones.
# No case is timed (hypothesis allows 200 ms by itself): on a busy machine such a test fails by chance.
_untimed = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("same", _untimed, derandomize=True)
settings.register_profile("others", _untimed, derandomize=False, print_blob=True)
settings.load_profile("same")

gc.disable()  # until all tests are collected, since scanning imported objects took a third of that time

# Files that share one seeded history, which takes half a minute to make. One worker runs them all.
SEEDED_FILES = frozenset(
    {
        "tests/operate/test_replay_seeded.py",
        "tests/operate/test_whatif.py",
        "tests/projections/test_projector_killed.py",
    }
)


# Files of long tests that share nothing. Each test is its own group, since otherwise one file would outlast all others.
APART_FILES = frozenset(
    {
        "tests/journeys/test_gateway.py",
        "tests/journeys/test_kill.py",
        "tests/journeys/test_people.py",
        "tests/journeys/test_slack.py",
        "tests/journeys/test_traces.py",
    }
)

# The longest start first, so that short tests fill the gaps at the end.
LONGEST_FIRST = (
    "tests/journeys/test_disk_lost.py",
    "tests/journeys/test_chaos.py",
    "tests/journeys/test_postgres_away.py",
    "tests/journeys/",
    *sorted(SEEDED_FILES),
    "tests/faults/test_run.py",
    "tests/faults/",
    "tests/consumers/test_create.py",
    "tests/consumers/test_notify.py",
    "tests/test_supervisor.py",
    "tests/test_embedded.py",
    "tests/operate/",
    "tests/projections/",
    "tests/properties/",
    "tests/bench/",
)

WORKERS_PER_CORE = 2
"""For `-n auto`, since tests wait for processes, servers and timers more than they compute."""


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    """More workers than cores. `--maxprocesses` limits them, since each has its own Valkey and Postgres."""
    return WORKERS_PER_CORE * (os.cpu_count() or 1)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """With several workers (`make test`) a file's tests stay together, and so do all tests of the seeded history.

    `--dist loadgroup` is not used, since it forgets the groups with pytest 9.2 (pytest-xdist issue 1386).
    """
    from xdist.scheduler import LoadFileScheduling

    marks = config.option.markexpr
    # These tests share nothing, and all take long.
    is_faults = "faults" in marks and "not faults" not in marks

    class KeepTogether(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            path = nodeid.partition("::")[0]
            if path in APART_FILES or is_faults:
                return nodeid
            return "seeded" if path in SEEDED_FILES else path

    return KeepTogether(config, log)


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """With several workers, put the longest first, since groups are given out in the order of collection."""
    if hasattr(config, "workerinput"):
        items.sort(key=lambda item: _rank(item.nodeid))


def pytest_collection_finish() -> None:
    """Keep the collector from scanning imported objects again, since they live as long as the process."""
    gc.collect()
    gc.freeze()
    gc.enable()


def _rank(nodeid: str) -> int:
    return next(
        (rank for rank, begin in enumerate(LONGEST_FIRST) if nodeid.startswith(begin)), len(LONGEST_FIRST)
    )


@pytest.fixture(scope="session", autouse=True)
def nothing_is_left_here() -> Iterator[None]:
    """Check that tests leave nothing in the repository, which must be like a fresh clone for `make run`."""
    was_there = Path("data").exists()
    yield
    assert was_there or not Path("data").exists(), "a test wrote to ./data: give it a STREAMPROC_DATA_DIR"


@pytest.fixture(autouse=True)
def next_test_finds_the_process_as_this_one_did() -> Iterator[None]:
    """Whether a test passes depends on no test before it. Set up first, so that other fixtures have put back theirs."""
    before = left.process_state()
    with left.logging_put_back(), left.collector_put_back():
        yield
    now = left.changed(before)
    assert not now, f"this test left the process changed; put it back: {now}"


@pytest.fixture(scope="session", autouse=True)
def a_machine_that_pauses_is_no_store_that_is_away() -> Iterator[None]:
    """Long limits, also while what a session's tests share is made."""
    with patience.limits(own=False):
        yield


@pytest.fixture(autouse=True)
def limits_of_the_product(request: pytest.FixtureRequest) -> Iterator[None]:
    """The product's own limits for a test that is about one."""
    if request.node.get_closest_marker("own_limits") is None:
        yield
        return
    with patience.limits(own=True):
        yield


MEMORY = Path("/dev/shm")
MEMORY_FREE_MIN = 8 * 1024**3
"""Bytes. The stores of one test process used 130 MB, and Postgres lets its WAL grow to 1 GB; there may be eight."""
PREFIX, IN_USE = "streamproc-test-", "in-use.lock"
LEFT_S = 3600.0
"""Seconds. A younger directory may be new, with its lock not held yet."""


def _parent() -> Path | None:
    """A directory in memory, if there is room. Tests kill stores but not the machine, so no store needs a disk."""
    there = MEMORY.is_dir() and os.access(MEMORY, os.W_OK | os.X_OK)
    return MEMORY if there and shutil.disk_usage(MEMORY).free >= MEMORY_FREE_MIN else None


def _remove_what_was_left() -> None:
    """Remove what killed runs left in memory, where it would stay until the next boot. A live run holds its lock."""
    for lock in MEMORY.glob(f"{PREFIX}*/{IN_USE}"):
        with suppress(OSError), lock.open() as left:
            if time.time() - lock.stat().st_mtime > LEFT_S:
                fcntl.flock(left, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(lock.parent, ignore_errors=True)


@pytest.fixture(scope="session")
def public_dir() -> Iterator[Path]:
    """A directory that every user may enter, since under root Postgres runs as another user; pytest's are private."""
    _remove_what_was_left()
    directory = Path(tempfile.mkdtemp(prefix=PREFIX, dir=_parent()))
    directory.chmod(0o711)
    with (directory / IN_USE).open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
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
    """URL of the session's Valkey. Tests use `redis_url`, which is empty at the start of each."""
    with _served(lambda: servers.redis(public_dir)) as store:
        yield store.url


@pytest.fixture(scope="session")
def postgres_server(public_dir: Path) -> Iterator[str]:
    """DSN of the session's Postgres, for making databases. Tests use `postgres`."""
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
    """DSN of a new, empty database, which is dropped afterwards."""
    name = f"test_{os.getpid()}_{next(_database_number)}"
    admin = await asyncpg.connect(postgres_server)
    try:
        await admin.execute(f"CREATE DATABASE {name} TEMPLATE template0")
        yield f"{postgres_server.rpartition('/')[0]}/{name}"
        await admin.execute(f"DROP DATABASE {name} WITH (FORCE)")
    finally:
        await admin.close()


@pytest.fixture(scope="session")
def newest_schema(postgres_server: str) -> Iterator[str]:
    """Name of a database with the newest schema, to be copied: to make one takes four times as long."""

    async def make(dsn: str) -> None:
        await prepare(dsn)

    with template(postgres_server, make) as name:
        yield name


@pytest.fixture
async def prepared(postgres_server: str, newest_schema: str) -> AsyncIterator[str]:
    """DSN of a new database as `streamproc migrate` leaves it, which is dropped afterwards."""
    async with copy_of(postgres_server, newest_schema) as dsn:
        yield dsn


@pytest.fixture(scope="session")
def seeded(valkey: str, postgres_server: str) -> Iterator[SeededHistory]:
    """A long history made by the real engine, once per session: its entries, and an archive of most of them."""
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
