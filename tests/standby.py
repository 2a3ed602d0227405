"""A second Postgres that follows the first, can be cut off from it, and can take over."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import asyncpg

from streamproc import embedded, processes
from streamproc.postgres_dir import find_postgres, write_private
from tests.ports import free_port
from tests.restartable import Restartable, restartable

DEADLINE_S = 60.0


@dataclass
class Pair:
    """A primary and its standby, which replicates asynchronously."""

    primary: Restartable
    standby: Restartable
    primary_dsn: str
    standby_dsn: str

    @property
    def dsn(self) -> str:
        """Both, and whichever can be written."""
        first, second = urlsplit(self.primary_dsn), urlsplit(self.standby_dsn).netloc.rpartition("@")[2]
        return first._replace(
            netloc=f"{first.netloc},{second}", query="target_session_attrs=read-write"
        ).geturl()

    async def in_step(self) -> None:
        """Wait until the standby has what the primary has now."""
        end = await _ask(self.primary_dsn, "SELECT pg_current_wal_flush_lsn()::text")
        await self._until(self.standby_dsn, f"SELECT pg_last_wal_replay_lsn() >= '{end}'")

    async def cut(self) -> None:
        """From here on the standby gets nothing."""
        await _ask(self.standby_dsn, "ALTER SYSTEM SET primary_conninfo = ''")
        await _ask(self.standby_dsn, "SELECT pg_reload_conf()")
        await self._until(self.standby_dsn, "SELECT count(*) = 0 FROM pg_stat_wal_receiver")

    async def take_over(self) -> None:
        """Make the standby the primary."""
        assert await _ask(self.standby_dsn, "SELECT pg_promote(true, 60)")

    async def _until(self, dsn: str, question: str) -> None:
        async with asyncio.timeout(DEADLINE_S):
            while not await _ask(dsn, question):
                await asyncio.sleep(0.02)


@asynccontextmanager
async def pair(home: Path) -> AsyncIterator[Pair]:
    """Both running and in step, their data below `home`."""
    first, second, ports = home / "primary", home / "standby", (free_port(), free_port())
    for place in (first, second):
        place.mkdir()
        place.chmod(0o711)
    async with (
        restartable(lambda: embedded.postgres(first, port=ports[0])) as primary,
        restartable(lambda: embedded.postgres(second, port=ports[1])) as standby,
    ):
        primary_dsn = await primary.up()
        await _copy(primary_dsn, second)
        both = Pair(primary, standby, primary_dsn, await standby.up())
        await both.in_step()
        yield both


async def _copy(dsn: str, home: Path) -> None:
    """A cluster below `home` that follows the server at `dsn`, with the same password."""
    place = find_postgres(home)
    write_private(home / "postgres.password", str(urlsplit(dsn).password))
    place.cluster.mkdir(mode=0o700)
    if place.account is not None:
        os.chown(place.cluster, place.account.pw_uid, place.account.pw_gid)
    copying = await processes.start(
        [place.programs / "pg_basebackup", "-D", place.cluster, "-R", "-c", "fast", "-d", dsn],
        env={"PATH": os.defpath, "LC_ALL": "C"},
        on_parent_death=signal.SIGKILL,
        output=asyncio.subprocess.PIPE,
        cwd=place.home,
        account=place.account,
    )
    said, _ = await copying.communicate()
    assert copying.returncode == 0, said.decode()


async def _ask(dsn: str, question: str) -> object:
    db = await asyncpg.connect(dsn)
    try:
        return await db.fetchval(question)
    finally:
        await db.close()
