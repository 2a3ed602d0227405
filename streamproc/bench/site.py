"""A system of its own for one measurement: servers, a log with policies in force, and roles as real processes.

The roles are the commands that people start (`streamproc worker`, `streamproc projector`), with their metrics and log
lines. Vendors' reputations are in Redis before the start, and nobody listens where Safe Browsing would be asked.
"""

import asyncio
import json
import os
import sys
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from itertools import islice
from pathlib import Path
from signal import SIGKILL
from typing import Any

import msgspec
from redis.asyncio import Redis

import consumers
from consumers.vet import cache_key
from projections.schema import prepare
from streamproc import embedded, processes
from streamproc.bench import cost, job
from streamproc.domain.governance import Reputation, vendor_of
from streamproc.domain.policy import parse_policy_file, plan_changes
from streamproc.embedded import Store
from streamproc.errors import JobFailed
from streamproc.log.cache import Cache
from streamproc.log.connection import connected
from streamproc.log.names import Names
from streamproc.log.policies import put_in_force, read_scopes
from streamproc.log.stream import open_log

READY_MAX_S = 60.0
"""For a role to begin: it imports, connects, and opens the log."""
POLL_S = 0.02
DAY_S = 86_400
SCOPES_AT_ONCE = 500
"""Policies in one change, of 1 kB each."""
NOBODY = "http://127.0.0.1:9/nobody-listens-here"


class Used(msgspec.Struct, frozen=True):
    """What a role has used since it was ready: CPU seconds, and the most memory that it ever had, in MB."""

    cpu_s: float
    peak_mb: float


class Role:
    """A role that runs. Its log lines are in `log`."""

    def __init__(self, name: str, process: asyncio.subprocess.Process, log: Path) -> None:
        self.name, self._process, self._log = name, process, log
        self._began_s = 0.0

    def begin(self) -> None:
        """From here on its CPU counts."""
        self._began_s = cost.process_cpu_s(self._process.pid)

    def used(self) -> Used:
        """CPU since `begin`, and peak memory. Raises JobFailed where it has ended."""
        self.check()
        return Used(
            cost.process_cpu_s(self._process.pid) - self._began_s, cost.peak_memory_mb(self._process.pid)
        )

    def check(self) -> None:
        """Raise JobFailed where it has ended."""
        if self._process.returncode is not None:
            raise JobFailed(f"{self.name} ended early; its last line: {processes.last_line(self._log)}")

    async def end(self) -> None:
        """Kill it: what it leaves behind is thrown away."""
        processes.kill(self._process)
        await self._process.wait()


class Site:
    """Servers with a log that is ready, and the roles that were started on them."""

    def __init__(self, home: Path, valkey: Store, dsn: str, client: Redis, partitions: int) -> None:
        self.home, self.url, self.dsn, self.client = home, valkey.url, dsn, client
        self.partitions = partitions
        self.versions: dict[str, str] = {}

    async def learn_versions(self, postgres: Store | None) -> None:
        """Of the servers."""
        info = await self.client.info("server")
        self.versions["valkey"] = str(info.get("valkey_version", info.get("redis_version")))
        if postgres is not None:
            self.versions["postgres"] = await cost.postgres_version(postgres.url)

    @asynccontextmanager
    async def role(self, name: str, *arguments: str) -> AsyncIterator[Role]:
        """`streamproc NAME ARGUMENTS`, killed at the end. `ready` says when it works."""
        number = len(list(self.home.glob(f"{name}-*.log"))) + 1
        log = self.home / f"{name}-{number}.log"
        with log.open("wb") as output:
            process = await processes.start(
                [sys.executable, "-m", "streamproc", name, *arguments],
                env=self._environment(),
                on_parent_death=SIGKILL,
                output=output.fileno(),
            )
        role = Role(f"{name} {number}", process, log)
        try:
            yield role
        finally:
            await role.end()

    def _environment(self) -> dict[str, str]:
        """Nothing of STREAMPROC_* comes from outside: the bench never comes near a system that is in use."""
        env = {
            name: value for name, value in os.environ.items() if not name.startswith(("STREAMPROC_", "OTEL_"))
        }
        ours = {
            "REDIS_URL": self.url,
            "POSTGRES_DSN": self.dsn,
            "PARTITIONS": str(self.partitions),
            "DATA_DIR": str(self.home / "data"),
            "EXECUTE_AFTER": "archived" if self.dsn else "synced",
            "TIMEZONE": job.ZONE,
            # Needed to start, and never used: only governance works here.
            "SAFE_BROWSING_KEY": "unused",
            "SAFE_BROWSING_URL": NOBODY,
            "RAZORPAY_KEY_ID": "unused",
            "RAZORPAY_KEY_SECRET": "unused",
        }
        return env | {f"STREAMPROC_{name}": value for name, value in ours.items()}

    async def workers_ready(self, roles: list[Role], consumers_each: int) -> None:
        """Until every worker reads: its consumers are in the group of each partition."""
        wanted = len(roles) * consumers_each
        async with _in_time(roles, "a worker"):
            for partition in range(self.partitions):
                while await _consumers(self.client, Names(partition)) < wanted:
                    for role in roles:
                        role.check()
                    await asyncio.sleep(POLL_S)

    async def server_cpu_s(self) -> float:
        """What Valkey has used, all its threads."""
        return await cost.valkey_cpu_s(self.client)


@asynccontextmanager
async def _in_time(roles: list[Role], what: str) -> AsyncIterator[None]:
    try:
        async with asyncio.timeout(READY_MAX_S):
            yield
    except TimeoutError as problem:
        raise JobFailed(f"{what} was not ready within {READY_MAX_S:g} s") from problem


async def _consumers(client: Redis, names: Names) -> int:
    rows = await client.xinfo_consumers(names.log, consumers.GOVERNANCE)
    return len(rows)


@asynccontextmanager
async def site(
    home: Path,
    *,
    postgres: Store | None = None,
    partitions: int = 1,
    policies: Mapping[str, Any] | None = None,
) -> AsyncIterator[Site]:
    """A Valkey in `home` with a log of which every partition has `policies` (those of the job) in force.

    With `postgres` its database gets our schema.
    """
    async with AsyncExitStack() as stack:
        valkey = await stack.enter_async_context(embedded.valkey(home))
        client = await stack.enter_async_context(connected(valkey.url))
        # A rewrite of the file would hit one run and not the next.
        await client.config_set("auto-aof-rewrite-percentage", 0)
        await open_log(
            client, partitions=partitions, groups=consumers.GROUPS, from_end=consumers.FROM_THE_END
        )
        for partition in range(partitions):
            await _govern(client, Names(partition), policies or job.policy_file())
        if postgres is not None:
            await prepare(postgres.url)
        made = Site(home, valkey, postgres.url if postgres else "", client, partitions)
        await made.learn_versions(postgres)
        yield made


async def _govern(client: Redis, names: Names, file: Mapping[str, Any]) -> None:
    """The policies in force, the reputations in the cache."""
    at_us = time.time_ns() // 1000
    _, scopes = await read_scopes(client, names)
    parsed = parse_policy_file(json.dumps(file), name="bench.json")
    changes = iter(plan_changes(scopes, parsed, prune=False, at=at_us, by="bench", why="bench"))
    while some := list(islice(changes, SCOPES_AT_ONCE)):
        rev, _ = await read_scopes(client, names)
        if await put_in_force(client, names, rev, some, actor="bench") is None:
            raise JobFailed("somebody else changes policies in the bench's own Valkey")
    clean = msgspec.json.encode(Reputation("clean", checked_at=at_us, fresh_until=at_us + DAY_S * 1_000_000))
    urls = [url for text in job.vendor_urls() if (url := vendor_of(text)) is not None]
    await Cache(client, names).put_many({cache_key(url.href): (clean, DAY_S) for url in urls})
