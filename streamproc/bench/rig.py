"""What every benchmark stands on: word of how far it is, a directory for its servers, a database of its own."""

import shutil
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import asyncpg

from streamproc.embedded import Store

Said = Callable[[str], None]
"""Takes word of what is being done, for who waits."""


@contextmanager
def public_directory() -> Iterator[Path]:
    """Postgres under root runs as somebody else, who must be able to enter."""
    directory = Path(tempfile.mkdtemp(prefix="streamproc-bench-"))
    directory.chmod(0o711)
    try:
        yield directory
    finally:
        shutil.rmtree(directory, ignore_errors=True)


@asynccontextmanager
async def fresh_database(postgres: Store, name: str, template: str = "template0") -> AsyncIterator[str]:
    """DSN of a new database of the server, a copy of a template. Dropped afterwards, if all went well."""
    admin = await asyncpg.connect(postgres.url)
    try:
        await admin.execute(f"CREATE DATABASE {name} TEMPLATE {template}")
        yield f"{postgres.url.rpartition('/')[0]}/{name}"
        await admin.execute(f"DROP DATABASE {name} WITH (FORCE)")
    finally:
        await admin.close()
