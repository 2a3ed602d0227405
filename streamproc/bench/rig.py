"""What all benchmarks share: announcing progress, directories for servers, new servers and databases."""

import shutil
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import asyncpg
from redis.asyncio import Redis

from streamproc import embedded
from streamproc.embedded import Store
from streamproc.log.connection import connected

Announce = Callable[[str], None]
"""Called with what is being done now, for a person who waits."""


@contextmanager
def public_directory() -> Iterator[Path]:
    """A temporary directory that other users may enter, since Postgres under root runs as another user."""
    directory = Path(tempfile.mkdtemp(prefix="streamproc-bench-"))
    directory.chmod(0o711)
    try:
        yield directory
    finally:
        shutil.rmtree(directory, ignore_errors=True)


@contextmanager
def home_in(directory: Path, name: str) -> Iterator[Path]:
    """A directory for the servers of one run. It is removed afterwards, if all went well."""
    home = directory / name
    home.mkdir(mode=0o711)
    yield home
    shutil.rmtree(home, ignore_errors=True)


@asynccontextmanager
async def fresh_valkey(home: Path) -> AsyncIterator[tuple[Store, Redis]]:
    """A new Valkey in `home`, and a client of it."""
    async with embedded.valkey(home) as valkey, connected(valkey.url) as client:
        # A rewrite of the file would slow one run down and not the next.
        await client.config_set("auto-aof-rewrite-percentage", 0)
        yield valkey, client


@asynccontextmanager
async def fresh_database(postgres: Store, name: str, template: str = "template0") -> AsyncIterator[str]:
    """DSN of a new database of this server, copied from a template. It is dropped afterwards, if all went well."""
    admin = await asyncpg.connect(postgres.url)
    try:
        await admin.execute(f"CREATE DATABASE {name} TEMPLATE {template}")
        yield f"{postgres.url.rpartition('/')[0]}/{name}"
        await admin.execute(f"DROP DATABASE {name} WITH (FORCE)")
    finally:
        await admin.close()
