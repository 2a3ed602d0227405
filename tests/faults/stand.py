"""The system under test: every role as a process behind proxies, real stores that can be killed, a bank sandbox.

A role that ends is started again, as by a supervisor. If no fault ended it, that is a finding.
"""

import asyncio
import contextlib
import itertools
import shutil
import signal
import sys
import tempfile
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

import asyncpg
import httpx

from ops.sandbox.config import SandboxConfig
from projections.schema import prepare
from streamproc import embedded, processes
from streamproc.archive.store import archived_heads
from streamproc.errors import JobFailed, TryAgain
from streamproc.log.connection import connect
from streamproc.log.names import partition_of
from tests.bank import CALL_MAX_S, Sandbox, free_port, running_sandbox, until
from tests.faults.full_disk import fill, free, small_disk
from tests.faults.lives import Life
from tests.faults.plan import CLAIM_IDLE_S, LINKS, SLOTS
from tests.faults.proxy import Proxy
from tests.faults.replica import Replica, replica_of
from tests.faults.witness import Witness
from tests.journeys.system import ACCOUNT, DRAIN_MAX_S, SECRET, System, environment
from tests.restartable import Restartable, restartable
from tests.signals import killed, terminate

START_MAX_S = 120.0
HALT_MAX_S = 90.0
"""Limit for draining a role, perhaps after it has finished starting, on a busy machine."""
AGAIN_S = 0.3
"""Delay before a role that ended is started again."""
API_S = 5.0
"""Limit for an answer of our own API, which gives a 503 earlier."""
FULL_AGAIN_S = 0.2
STOOD_LOOKS_MIN = 5
"""Looks, together a second, in which the archive does not move although the log grows."""
STOOD, STOOD_MAX_S = 8, 30.0
"""The log must grow by so many entries while the archive stands still. Until it has, the disk stays full for up to so
many seconds longer, since on a busy machine a look at the archive takes seconds."""
CALLS_PER_S = 100
"""At the bank's own pace of 8 the run would mostly wait for the bank."""


@dataclass
class Slot:
    """A place for a role: its process, its proxies, and the faults of the next process."""

    name: str
    wires: dict[str, Proxy]
    env: dict[str, str] = field(repr=False)
    output: Path
    process: asyncio.subprocess.Process | None = None
    wrong: tuple[str, ...] = ()
    armed: str = ""
    """The point at which it kills itself."""
    killed: bool = False
    restarting: bool = False
    ending: bool = False
    busy: asyncio.Lock = field(default_factory=asyncio.Lock)

    @property
    def role(self) -> str:
        """Its name without the number."""
        return self.name.partition("-")[0]


@dataclass
class Stand:
    """Everything that runs, and how to break it."""

    system: System
    slots: dict[str, Slot]
    redis: Restartable
    postgres: Restartable
    witnesses: list[Witness]
    """One for each partition."""
    reverts: tuple[str, ...]
    options: tuple[str, ...]
    """Further options of every role (tests/faults/role.py)."""
    home: Path
    exits: list[str] = field(default_factory=list)
    crashed: list[str] = field(default_factory=list)
    """Crash points that were reached."""
    replica: Replica | None = None
    """The replica that takes over, if the plan has a failover."""
    disk: Path | None = None
    """The disk of Postgres's data, if the plan fills it."""
    full_heads: list[tuple[str, int]] = field(default_factory=list)
    """At each look while it was full: the last entry of the archive, and the number of entries in the log."""
    regressed: bool = False
    """Whether the log has lost something and is not recovered yet."""
    alarms: list[str] = field(default_factory=list)
    """Roles that ended because of that, with their last line."""
    starts: int = 0
    lives: dict[int, Life] = field(default_factory=dict)
    """All processes of roles so far, by pid."""
    keepers: dict[str, "asyncio.Task[None]"] = field(default_factory=dict)
    redis_busy: asyncio.Lock = field(default_factory=asyncio.Lock)
    postgres_busy: asyncio.Lock = field(default_factory=asyncio.Lock)

    @property
    def witness(self) -> Witness:
        """The witness of the first partition."""
        return self.witnesses[0]

    @property
    def partitions(self) -> int:
        """One for each account."""
        return len(self.witnesses)

    @property
    def bank(self) -> Sandbox:
        """The bank sandbox."""
        return self.system.bank

    # ---- roles ----

    def keep(self, name: str) -> None:
        """Start a role, and start it again whenever it ends."""
        self.slots[name].ending = False
        self.keepers[name] = asyncio.create_task(self._keep(self.slots[name]), name=f"keep-{name}")

    async def _keep(self, slot: Slot) -> None:
        while not slot.ending:
            await self._start(slot)
            assert slot.process is not None
            status = await slot.process.wait()
            if slot.ending:
                return
            crashed = bool(slot.armed) and status == -signal.SIGKILL and not slot.killed
            if crashed:
                self.crashed.append(f"{slot.name} {slot.armed}")
            if not (slot.killed or crashed or (slot.restarting and status == 0)):
                last_line = processes.last_line(slot.output)
                alarm = self.regressed and "`streamproc recover`" in last_line
                (self.alarms if alarm else self.exits).append(
                    f"{slot.name} ended by itself with {status}: {last_line[:300]}"
                )
            await asyncio.sleep(AGAIN_S)

    async def _start(self, slot: Slot) -> None:
        wrong, slot.wrong = slot.wrong, ()
        slot.killed = slot.restarting = False
        slot.armed = wrong[wrong.index("--crash") + 1] if "--crash" in wrong else ""
        reverts = [part for revert in self.reverts for part in ("--revert", revert)]
        command = [sys.executable, "-m", "tests.faults.role", *wrong, *reverts, *self.options, slot.role]
        with slot.output.open("ab") as output:
            slot.process = await processes.start(
                command, env=slot.env, on_parent_death=signal.SIGKILL, output=output.fileno()
            )
        self.starts += 1
        if slot.killed:  # while it was being started
            self._signal(slot, signal.SIGKILL)

    def kill(self, name: str, *wrong: str) -> None:
        """SIGKILL. The next process gets these faults."""
        slot = self.slots[name]
        slot.wrong, slot.killed = wrong, True
        self._signal(slot, signal.SIGKILL)

    async def crash(self, name: str, point: str, within_s: float) -> None:
        """SIGKILL. The next process kills itself at a point; wait for that for up to `within_s`."""
        slot = self.slots[name]
        async with slot.busy:
            before = len(self.crashed)
            self.kill(name, "--crash", point)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(within_s):
                    while f"{name} {point}" not in self.crashed[before:]:
                        await asyncio.sleep(AGAIN_S)

    async def restart(self, name: str) -> None:
        """SIGTERM: it must finish its work and exit with 0."""
        slot = self.slots[name]
        slot.restarting = True
        if slot.process is not None:
            await terminate(slot.process)

    async def freeze(self, name: str, seconds: float) -> None:
        """SIGSTOP, then SIGCONT to the same process."""
        slot = self.slots[name]
        async with slot.busy:
            self._signal(slot, signal.SIGSTOP)
            try:
                await asyncio.sleep(seconds)
            finally:
                self._signal(slot, signal.SIGCONT)

    async def halt(self, name: str) -> None:
        """SIGTERM. The role is not started again until `keep`."""
        slot, keeper = self.slots[name], self.keepers[name]
        slot.ending = True
        loop = asyncio.get_running_loop()
        end = loop.time() + HALT_MAX_S
        while not keeper.done():
            if slot.process is not None:
                await terminate(slot.process)
            await asyncio.wait({keeper}, timeout=AGAIN_S)
            if loop.time() > end:
                self.exits.append(f"{name} did not end within {HALT_MAX_S:g} s")
                self._signal(slot, signal.SIGUSR2)
                await asyncio.sleep(AGAIN_S)
                self._signal(slot, signal.SIGKILL)

    @staticmethod
    def _signal(slot: Slot, number: signal.Signals) -> None:
        if slot.process is not None and slot.process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                slot.process.send_signal(number)

    async def drain(self, name: str) -> None:
        """SIGTERM. If the role does not exit with 0, that is a finding."""
        slot = self.slots[name]
        slot.ending = True
        if slot.process is None:
            return
        await terminate(slot.process)
        try:
            async with asyncio.timeout(DRAIN_MAX_S):
                status = await slot.process.wait()
        except TimeoutError:
            await killed(slot.process)
            self.exits.append(f"{name} did not drain within {DRAIN_MAX_S:g} s")
            return
        if status and not (slot.armed and status == -signal.SIGKILL):
            self.exits.append(f"{name} drained with {status}: {processes.last_line(slot.output)[:300]}")

    # ---- stores ----

    async def restart_redis(self, down_s: float) -> None:
        """SIGKILL, then a restart with the same data and port."""
        async with self.redis_busy:
            await self.redis.kill()
            await asyncio.sleep(down_s)
            await self.redis.up()

    async def fill_redis(self, seconds: float) -> None:
        """Put Redis over its memory limit, so that it refuses every write that it may refuse."""
        async with self.redis_busy:
            await self._limit_redis(1)
            try:
                await asyncio.sleep(seconds)
            finally:
                await self._limit_redis(0)

    async def _limit_redis(self, byte: int) -> None:
        client = connect(self.system.redis_url)
        try:
            await client.config_set("maxmemory", byte)
        finally:
            await client.aclose()

    async def restart_postgres(self, how: signal.Signals, down_s: float) -> None:
        """Kill Postgres or stop it at once, then restart it with the same data and port. It recovers from its WAL."""
        async with self.postgres_busy:
            await self.postgres.kill(how)
            await asyncio.sleep(down_s)
            await self.postgres.up()

    async def fill_postgres(self, seconds: float, *, killed: bool) -> None:
        """Fill Postgres's disk. A server that ends is started again until it runs, as by a supervisor.

        The disk is filled again and again, so that space that Postgres frees is taken at once.
        """
        assert self.disk is not None, "this stand has no small disk"
        loop = asyncio.get_running_loop()
        async with self.postgres_busy:
            end = loop.time() + seconds
            fill(self.disk)
            if killed:
                await self.postgres.kill()
            while loop.time() < end or (self.stood < STOOD and loop.time() < end + STOOD_MAX_S):
                if not self.postgres.alive:
                    await self._try_postgres()
                fill(self.disk)
                if not killed:
                    self.full_heads.append((await self._head(), len(self.witness.entries)))
                await asyncio.sleep(FULL_AGAIN_S)
            free(self.disk)
            while not self.postgres.alive:
                await self._try_postgres()

    @property
    def stood(self) -> int:
        """Entries by which the log grew while the archive stood still at its last known entry.

        0 after only a few looks, since an archive that is merely late also stands still for one or two.
        """
        counts = [count for head, count in self.full_heads if head == self.full_heads[-1][0]]
        return counts[-1] - counts[0] if len(counts) >= STOOD_LOOKS_MIN else 0

    async def _try_postgres(self) -> None:
        await self.postgres.down()
        with contextlib.suppress(JobFailed):
            await self.postgres.up()

    async def _head(self) -> str:
        """The archive's last entry; empty while Postgres is away."""
        try:
            return (await archived_heads(self.system.dsn))[0].entry
        except TryAgain:
            return ""

    async def fresh_connections(self) -> None:
        """Open new connections for our own queries, since the old ones ended with the store."""
        await self.system.redis.connection_pool.disconnect()
        await self.system.pool.expire_connections()


@asynccontextmanager
async def standing(
    seed: int,
    *,
    reverts: tuple[str, ...] = (),
    options: tuple[str, ...] = (),
    replica: bool = False,
    small: bool = False,
    direct: bool = False,
    settings: Mapping[str, str] = {},
    accounts: int = 1,
    **sandbox: object,
) -> AsyncIterator[Stand]:
    """Running stores, bank and proxies; `keep` starts the roles.

    `reverts` are known bugs in all roles, `options` further options of tests/faults/role.py, `settings` STREAMPROC_
    variables in lower case. `direct`: without proxies and witness, which would take the cores that are measured.
    """
    home = Path(tempfile.mkdtemp(prefix="streamproc-faults-"))
    home.chmod(0o711)  # under root Postgres runs as another user
    async with AsyncExitStack() as stack:
        stack.callback(shutil.rmtree, home, ignore_errors=True)
        redis_port, postgres_port, port = free_port(), free_port(), free_port()
        redis = await stack.enter_async_context(restartable(lambda: embedded.valkey(home, port=redis_port)))
        disk = await stack.enter_async_context(small_disk(home / "small")) if small else None
        postgres = await stack.enter_async_context(
            restartable(lambda: embedded.postgres(disk or home, port=postgres_port))
        )
        redis_url, dsn = await redis.up(), await postgres.up()
        await prepare(dsn)
        bank = await stack.enter_async_context(
            running_sandbox(
                alone=True,
                **{
                    "account_id": ACCOUNT,
                    "webhook_secret": SECRET,
                    "webhook_url": f"http://127.0.0.1:{port}/webhooks/razorpay",
                    "webhook_retry_base_s": 0.5,
                    "processing_s": 0.05,
                    "utr_s": 0.02,
                    "seed": seed,
                    "more_accounts": ",".join(
                        f"{account}={number}" for account, number in accounts_of(accounts)[1:]
                    ),
                    **sandbox,
                },
            )
        )
        pool = await asyncpg.create_pool(dsn, min_size=0, max_size=4, timeout=3.0, command_timeout=20.0)
        stack.callback(pool.terminate)
        api = await stack.enter_async_context(_http(f"http://127.0.0.1:{port}", API_S))
        bank.http = await stack.enter_async_context(_http(bank.url, CALL_MAX_S))
        given = {
            "data_dir": str(home / "data"),
            "claim_idle": f"{CLAIM_IDLE_S:g}s",
            "poll_interval": "1s",
            "drain": "10s",
            "razorpay_calls_per_s": str(CALLS_PER_S),
            "partitions": str(accounts),
            **settings,
        }
        system = System(
            environment(redis_url, dsn, port, bank, given),
            redis_url,
            dsn,
            bank,
            api,
            connect(redis_url),
            pool,
        )
        stack.push_async_callback(lambda: system.redis.aclose())  # a failover replaces it
        slots = {name: await _slot(name, system, home, stack, direct=direct) for name in SLOTS}
        for n, (account, number) in enumerate(accounts_of(accounts)[1:], 2):
            slots[f"poller-{n}"] = slot = await _slot(f"poller-{n}", system, home, stack, direct=direct)
            slot.env["STREAMPROC_RAZORPAY_ACCOUNT_ID"] = account
            slot.env["STREAMPROC_RAZORPAY_ACCOUNT_NUMBER"] = number
        witnesses = [Witness(redis_url, partition) for partition in range(accounts)]
        stand = Stand(system, slots, redis, postgres, witnesses, reverts, options, home)
        stand.disk = disk
        if replica:
            stand.replica = await stack.enter_async_context(replica_of(redis_url, home))
        stack.push_async_callback(_end, stand)
        for witness in witnesses if not direct else ():
            watching = asyncio.create_task(witness.watch(), name=f"witness-{witness.partition}")
            stack.callback(watching.cancel)
        yield stand


def accounts_of(count: int) -> list[tuple[str, str]]:
    """Accounts (id, number). The n-th one is on partition n. We pay from the first."""
    by_partition = {partition_of(ACCOUNT, count): (ACCOUNT, SandboxConfig().account_number)}
    for n in itertools.count(1):
        if len(by_partition) == count:
            break
        account = f"acc_Other{n:09d}"
        by_partition.setdefault(partition_of(account, count), (account, f"23232300{n:08d}"))
    assert by_partition[0][0] == ACCOUNT, f"with {count} partitions {ACCOUNT} is not on the first"
    return [by_partition[partition] for partition in range(count)]


def _http(url: str, timeout_s: float) -> httpx.AsyncClient:
    """A client with a new connection for each call, since a server may close an idle one just as it is used again."""
    limits = httpx.Limits(max_keepalive_connections=0)
    return httpx.AsyncClient(base_url=url, timeout=timeout_s, limits=limits, trust_env=False)


async def _slot(name: str, system: System, home: Path, stack: AsyncExitStack, *, direct: bool) -> Slot:
    """A role's proxies to its servers, and the environment that names them."""
    urls = {
        "redis": ("STREAMPROC_REDIS_URL", system.redis_url),
        "postgres": ("STREAMPROC_POSTGRES_DSN", system.dsn),
        "bank": ("STREAMPROC_RAZORPAY_BASE_URL", f"{system.bank.url}/v1"),
    }
    env, wires = dict(system.env), {}
    for link in () if direct else LINKS[name.partition("-")[0]]:
        variable, url = urls[link]
        parts = urlsplit(url)
        assert parts.port is not None
        proxy = await stack.enter_async_context(Proxy("127.0.0.1", parts.port).listening())
        wires[link] = proxy
        env[variable] = url.replace(f":{parts.port}", f":{proxy.port}")
    env["PYTHONPATH"] = str(Path.cwd())
    return Slot(name, wires, env, home / f"{name}.log")


async def ready(stand: Stand) -> None:
    """Wait until the API reports ready and every worker reads, since a fault before that would break nothing."""
    last_answer = "nothing"

    async def answers() -> bool:
        nonlocal last_answer
        try:
            answer = await stand.system.api.get("/readyz")
        except httpx.TransportError as problem:
            last_answer = repr(problem)
            return False
        last_answer = f"{answer.status_code} {answer.text}"
        return answer.status_code == 200

    async def read() -> bool:
        readers = await stand.system.redis.xinfo_consumers(stand.system.names.log, "execution")
        return len(readers) >= sum(name.startswith("worker") for name in stand.keepers)

    try:
        await until(answers, what="the API is ready", deadline_s=START_MAX_S)
        await until(read, what="every worker reads", deadline_s=START_MAX_S)
    except AssertionError as problem:
        last_lines = {
            name: slot.output.read_text()[-500:] for name, slot in stand.slots.items() if slot.output.exists()
        }
        raise AssertionError(
            f"{problem}; the API answered {last_answer}; ended: {sorted({*stand.exits})}; last lines: {last_lines}"
        ) from None


async def _end(stand: Stand) -> None:
    for task in stand.keepers.values():
        task.cancel()
    for slot in stand.slots.values():
        if slot.process is not None:
            await killed(slot.process)
