"""A whole system for one measurement: servers, a log with policies in force, and roles as real processes.

The roles are the commands that operators start (`streamproc worker`, `streamproc projector`), with their metrics and
log lines. The reputations of all vendors are in Redis before the start, and nobody listens at the address of Safe
Browsing.
"""

import asyncio
import json
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from itertools import islice
from pathlib import Path
from signal import SIGKILL
from typing import Any

import asyncpg
import msgspec
from redis.asyncio import Redis

import consumers
from consumers.answers import cache_key
from projections.schema import prepare
from streamproc import ports, processes
from streamproc.bench import cost, job
from streamproc.bench.arguments import environment
from streamproc.bench.rig import fresh_valkey
from streamproc.bench.webhooks import HOST, SIGNED_WITH
from streamproc.domain.case import Reputation
from streamproc.domain.domains import vendor_of
from streamproc.domain.events import PolicyChanged
from streamproc.domain.policy import ScopeState, parse_policy_file, plan_changes
from streamproc.embedded import Store
from streamproc.errors import JobFailed
from streamproc.host_clock import host_clock_us
from streamproc.log.cache import Cache
from streamproc.log.names import Names
from streamproc.log.policies import put_in_force
from streamproc.log.stream import open_log

READY_MAX_S = 60.0
"""Limit for a role to start: it imports, connects, and opens the log."""
COMMAND_MAX_S = 120.0
POLL_S = 0.005
"""Between two looks whether something is done: 2 % of a turn of `bench scale`, which lasts a third of a second."""
VIEWS_AT = "SELECT min(seq) FROM view_heads WHERE partition = 0"
DAY_S = 86_400
AGENTS_AT_ONCE, SCOPES_AT_ONCE = 5_000, 500
"""Agents in one policy file, which may have 1 MB; scopes in one change, of 1 kB each."""
NOBODY = "http://127.0.0.1:9/nobody-listens-here"


class Used(msgspec.Struct, frozen=True):
    """Usage of a role: CPU seconds since `begin`, and peak memory in MB."""

    cpu_s: float
    peak_mb: float


class Role:
    """A running role. Its log lines are in the file `log`."""

    def __init__(self, name: str, process: asyncio.subprocess.Process, log: Path) -> None:
        self.name, self._process, self._log = name, process, log
        self._began_s = 0.0

    def begin(self) -> None:
        """Count CPU from now on."""
        self._began_s = cost.process_cpu_s(self._process.pid)

    def used(self) -> Used:
        """Usage until now. Raises JobFailed if the role has ended."""
        self.check()
        return Used(cost.process_cpu_s(self._process.pid) - self._began_s, cost.peak_mb(self._process.pid))

    def check(self) -> None:
        """Raise JobFailed if the role has ended."""
        if self._process.returncode is not None:
            raise JobFailed(f"{self.name} ended early; its last line: {processes.last_line(self._log)}")

    async def end(self) -> None:
        """Kill the role, since what it leaves behind is thrown away."""
        processes.kill(self._process)
        await self._process.wait()


class Site:
    """Servers with an open log, and the roles that were started on them."""

    def __init__(self, home: Path, valkey: Store, dsn: str, client: Redis, partitions: int) -> None:
        self.home, self.url, self.dsn, self.client = home, valkey.url, dsn, client
        self.partitions = partitions
        self.port = 0
        """Port of `serve`; 0: it was not started."""
        self.versions: dict[str, str] = {}

    async def learn_versions(self, postgres: Store | None) -> None:
        """Ask the servers for their versions."""
        self.versions["valkey"] = await cost.valkey_version(self.client)
        if postgres is not None:
            self.versions["postgres"] = await cost.postgres_version(postgres.url)

    @asynccontextmanager
    async def role(self, name: str, *arguments: str) -> AsyncIterator[Role]:
        """`streamproc NAME ARGUMENTS`, killed at the end."""
        number = len(list(self.home.glob(f"{name}-*.log"))) + 1
        log = self.home / f"{name}-{number}.log"
        with log.open("wb") as output:
            process = await self._start((name, *arguments), output.fileno())
        role = Role(f"{name} {number}", process, log)
        try:
            yield role
        finally:
            await role.end()

    def _environment(self) -> dict[str, str]:
        ours = {
            "REDIS_URL": self.url,
            "POSTGRES_DSN": self.dsn,
            "PARTITIONS": str(self.partitions),
            "DATA_DIR": str(self.home / "data"),
            "EXECUTE_AFTER": "archived" if self.dsn else "synced",
            "TIMEZONE": job.ZONE,
            # Required to start, but never used, since only governance works here.
            "SAFE_BROWSING_KEY": "unused",
            "SAFE_BROWSING_URL": NOBODY,
            "RAZORPAY_KEY_ID": "unused",
            "RAZORPAY_KEY_SECRET": "unused",
            "RAZORPAY_WEBHOOK_SECRETS": SIGNED_WITH,
            "HOST": HOST,
        }
        if self.port:
            ours["PORT"] = str(self.port)
        return environment() | {f"STREAMPROC_{name}": value for name, value in ours.items()}

    async def workers(self, stack: AsyncExitStack, count: int, concurrency: int) -> list[Role]:
        """Start workers of the governance group, which end with `stack`. Returns when all of them read."""
        options = ("--groups", consumers.GOVERNANCE, "--concurrency", str(concurrency))
        roles = [await stack.enter_async_context(self.role("worker", *options)) for _ in range(count)]
        for partition in range(self.partitions):
            await self.until(partial(self._has_consumers, partition, count * concurrency), roles)
        return roles

    async def _has_consumers(self, partition: int, count: int) -> bool:
        return len(await self.client.xinfo_consumers(Names(partition).log, consumers.GOVERNANCE)) >= count

    async def projector(self, stack: AsyncExitStack) -> Role:
        """Start the projector. Returns when the views show the whole log."""
        role = await stack.enter_async_context(self.role("projector"))
        db = await asyncpg.connect(self.dsn)
        try:
            entries = await self.client.xlen(Names(0).log)

            async def has_shown() -> bool:
                return bool((await db.fetchval(VIEWS_AT) or 0) >= entries)

            await self.until(has_shown, [role])
        finally:
            await db.close()
        return role

    async def serve(self, stack: AsyncExitStack) -> Role:
        """Start `serve`. Returns when it listens."""
        self.port = stack.enter_context(ports.reserved_port())
        role = await stack.enter_async_context(self.role("serve"))

        async def listens() -> bool:
            try:
                _, writer = await asyncio.open_connection(HOST, self.port)
            except OSError:
                return False
            writer.close()
            return True

        await self.until(listens, [role])
        return role

    async def until(
        self, done: Callable[[], Awaitable[bool]], roles: Sequence[Role], within_s: float = READY_MAX_S
    ) -> None:
        """Wait until `done`. Raises JobFailed if a role has ended, or after `within_s`."""
        try:
            async with asyncio.timeout(within_s):
                while not await done():
                    for role in roles:
                        role.check()
                    await asyncio.sleep(POLL_S)
        except TimeoutError as problem:
            names = ", ".join(role.name for role in roles)
            raise JobFailed(f"not done within {within_s:g} s: {names}") from problem

    async def command(self, *arguments: str) -> str:
        """Output of `streamproc ARGUMENTS`. Raises JobFailed with the output if the command fails."""
        process = await self._start(arguments, asyncio.subprocess.PIPE)
        try:
            async with asyncio.timeout(COMMAND_MAX_S):
                output, _ = await process.communicate()
        except TimeoutError as problem:
            raise JobFailed(f"{' '.join(arguments)} took longer than {COMMAND_MAX_S:g} s") from problem
        finally:
            processes.kill(process)
            await process.wait()
        text = output.decode(errors="replace")
        if process.returncode != 0:
            raise JobFailed(f"{' '.join(arguments)} failed: {text.strip()}")
        return text

    async def _start(self, arguments: Sequence[str], output: int) -> asyncio.subprocess.Process:
        return await processes.start(
            [sys.executable, "-m", "streamproc", *arguments],
            env=self._environment(),
            on_parent_death=SIGKILL,
            output=output,
        )

    async def server_cpu_s(self) -> float:
        """CPU seconds that Valkey has used in all its threads."""
        return await cost.valkey_cpu_s(self.client)


@asynccontextmanager
async def site(
    home: Path,
    *,
    postgres: Store | None = None,
    partitions: int = 1,
    policies: Mapping[str, Any] | None = None,
) -> AsyncIterator[Site]:
    """A Valkey in `home` with a log. `policies` (by default those of the job) are in force in every partition.

    With `postgres`, our schema is made in its database.
    """
    async with AsyncExitStack() as stack:
        valkey, client = await stack.enter_async_context(fresh_valkey(home))
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
    """Put the policies in force, and the reputations in the cache."""
    agents, shared = iter(file["policies"].items()), dict[str, ScopeState]()
    while some := dict(islice(agents, AGENTS_AT_ONCE)):
        changes = await _put_in_force(client, names, shared, {**file, "policies": some})
        # Policies of other agents do not matter to the next ones; 100,000 would be compared each time.
        shared |= {
            change.scope: ScopeState(version=change.version, own=change.after, effective=change.effective)
            for change in changes
            if not change.scope.startswith("agent:")
        }
    at_us = host_clock_us()
    clean = msgspec.json.encode(Reputation("clean", checked_at=at_us, fresh_until=at_us + DAY_S * 1_000_000))
    urls = [url for text in job.vendor_urls() if (url := vendor_of(text)) is not None]
    await Cache(client, names).put_many({cache_key(url.href): (clean, DAY_S) for url in urls})


async def _put_in_force(
    client: Redis, names: Names, scopes: Mapping[str, ScopeState], file: Mapping[str, Any]
) -> list[PolicyChanged]:
    parsed, at_us = parse_policy_file(json.dumps(file), name="bench.json"), host_clock_us()
    changes = plan_changes(scopes, parsed, prune=False, at=at_us, by="bench", why="bench")
    for start in range(0, len(changes), SCOPES_AT_ONCE):
        some = changes[start : start + SCOPES_AT_ONCE]
        rev = await client.hget(names.policy, "rev")
        if await put_in_force(client, names, rev or b"0", some, actor="bench") is None:  # type: ignore[arg-type]
            raise JobFailed("another process changed policies in the benchmark's own Valkey")
    return changes
