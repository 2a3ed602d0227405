"""What all benchmarks share: announcing progress, a directory for the servers, a new database."""

import shutil
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import asyncpg

from streamproc.embedded import Store

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
