"""The whole system in a test: every role a real process, a real bank sandbox, real Valkey and Postgres.

async with running_system(redis_url, postgres) as system:
    await system.apply(POLICIES)
    payout = await system.bank.pay(250_000, notes={"agent_id": "bot"})
    await system.reaches(payout["id"], "processed")
"""

import asyncio
import hashlib
import hmac
import os
import signal
import sys
import tempfile
from collections import Counter
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import asyncpg
import httpx
from redis.asyncio import Redis

from projections.schema import prepare
from streamproc.archive.read import payout_view
from streamproc.clients.own_api import KEEP_ALIVE_S
from streamproc.domain.events import Event
from streamproc.domain.payouts import PayoutRecord, fold
from streamproc.domain.wire import decode_events, payout_of
from streamproc.errors import TryAgain
from streamproc.log.connection import connect
from streamproc.log.names import Names
from streamproc.log.stream import Append, Entry, LogView, Producer
from tests.bank import CALL_MAX_S, Sandbox, free_port, running_sandbox, until
from tests.forks import Forked, fork
from tests.signals import killed, terminate
from tests.words import NOON_ZONE, apply_policies, reviewed

START_MAX_S = 120.0
"""For all roles to load, on a machine that is busy with other things; a few seconds on one that is not."""
DRAIN_MAX_S = 60.0
"""Longer than a role gives itself."""
STEP_MAX_S = 90.0
"""For one payout to get from one state to the next, on a machine that is busy with other things."""
LOG_MAX = 1_000_000
SECRET = "journey_webhook_secret"
ACCOUNT = "acc_Journey0000001"


def signed(body: bytes, secret: str = SECRET) -> str:
    """The signature header of a body."""
    return hmac.new(secret.encode(), body, hashlib.sha256).hexdigest()


@dataclass
class System:
    """The running roles and how to look at them."""

    env: dict[str, str] = field(repr=False)
    redis_url: str
    dsn: str = field(repr=False)
    bank: Sandbox
    api: httpx.AsyncClient
    redis: Redis
    pool: asyncpg.Pool
    roles: dict[str, asyncio.subprocess.Process | Forked] = field(default_factory=dict)
    killed: set[str] = field(default_factory=set)
    names: Names = field(default_factory=lambda: Names(0))
    logs: Path | None = None
    """Where each role's output goes, one file a role; None: to the test's own."""
    anew: bool = False
    """Roles are started with their own command line, and not as forks (tests/forks.py)."""

    # ---- processes ----

    async def start(
        self, name: str, *arguments: str, module: tuple[str, ...] = ("streamproc",), home: Path | None = None
    ) -> None:
        """Start `python -m streamproc <arguments>`; the name without a number is the command if there is none.

        `home` is another check-out, whose code is run.
        """
        command = arguments or (name.partition("-")[0],)
        with (self.logs / f"{name}.log").open("ab") if self.logs else nullcontext() as out:
            if not self.anew and module == ("streamproc",) and home is None:
                self.roles[name] = fork(command, self.env, stdout=out, stderr=out)
                return
            self.roles[name] = await asyncio.create_subprocess_exec(
                sys.executable, "-m", *module, *command, env=self.env, cwd=home, stdout=out, stderr=out
            )

    async def kill(self, name: str) -> None:
        """SIGKILL: nothing is finished, nothing is said."""
        self.killed.add(name)
        status = await killed(self.roles.pop(name))
        assert status == -signal.SIGKILL, f"{name} had ended by itself with {status}"

    async def drain(self, name: str) -> int:
        """SIGTERM, and the exit status."""
        process = self.roles.pop(name)
        await terminate(process)
        return await asyncio.wait_for(process.wait(), DRAIN_MAX_S)

    async def stop(self) -> dict[str, int]:
        """Drain all in the supervisor's order; the exit status of each."""
        last = [name for name in self.roles if name.startswith("projector")]
        first = [name for name in self.roles if name not in last]
        return {name: await self.drain(name) for name in first + last}

    async def cli(self, *arguments: str, within_s: float = STEP_MAX_S) -> tuple[int, str, str]:
        """One command of an operator: exit code, stdout, stderr."""
        with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
            process = fork(arguments, self.env, stdout=out, stderr=err)
            status = await asyncio.wait_for(process.wait(), within_s)
            out.seek(0)
            err.seek(0)
            return status, out.read().decode(), err.read().decode()

    # ---- doing ----

    async def apply(self, policies: str) -> None:
        """Put a policy file in force."""
        await apply_policies(self.redis, policies)

    async def post(
        self, body: bytes, *, event_id: str = "", headers: Mapping[str, str] | None = None
    ) -> httpx.Response:
        """Deliver a body as the bank does, with its signature unless `headers` say otherwise."""
        sent = {"content-type": "application/json", "x-razorpay-signature": signed(body)}
        if event_id:
            sent |= {"x-razorpay-event-id": event_id, "request-id": event_id}
        return await self.api.post("/webhooks/razorpay", content=body, headers={**sent, **(headers or {})})

    async def review(
        self,
        payout: str,
        *,
        by: str,
        action: Literal["approve", "reject"] = "approve",
        why: str = "seen",
        account: str = ACCOUNT,
        partitions: int = 1,
    ) -> None:
        """A reviewer's answer in the log, as the command line would put it there."""
        async with Producer(self.redis_url, partitions=partitions, name="test") as producer:
            answer = reviewed(payout, by, action, at=producer.now_us(), why=why, channel="cli")
            await producer.append(Append(account, (), (answer,)))

    # ---- looking ----

    async def view(self, payout: str) -> PayoutRecord | None:
        """The payout as Postgres has it; None where it is not there yet, or Postgres is away."""
        try:
            return await payout_view(self.pool, payout)
        except TryAgain:
            return None

    async def reaches(self, payout: str, *states: str, deadline_s: float = STEP_MAX_S) -> PayoutRecord:
        """Wait until the view has the payout in one of these states."""
        seen: list[PayoutRecord | None] = [None]

        async def there() -> PayoutRecord | None:
            seen[0] = await self.view(payout)
            self.check_alive()
            return seen[0] if seen[0] is not None and seen[0].state in states else None

        try:
            record = await until(there, what=f"{payout} is {' or '.join(states)}", deadline_s=deadline_s)
        except AssertionError as problem:
            raise AssertionError(f"{problem}; last seen: {seen[0]}") from None
        assert record is not None
        return record

    def check_alive(self) -> None:
        """AssertionError when a role has ended by itself."""
        ended = {name: role.returncode for name, role in self.roles.items() if role.returncode is not None}
        assert not ended, f"ended by themselves: {ended}"

    async def entries(self) -> list[Entry]:
        """The log."""
        view = LogView(self.redis_url, 0)
        try:
            return list(await view.read("0-0", LOG_MAX, 0))
        finally:
            await view.aclose()

    async def events(self) -> list[Event]:
        """Every event of the log, in order."""
        return [event for entry in await self.entries() for event in decode_events(entry.e)]

    async def story(self, payout: str) -> list[Event]:
        """A payout's events, in log order."""
        return [event for event in await self.events() if payout_of(event) == payout]

    async def effects(self, payout: str) -> list[str]:
        """The commands about a payout that took effect at the bank."""
        return [line["command"] for line in await self.bank.record(payout=payout, effect="true")]

    async def pending(self) -> dict[str, int]:
        """Entries in somebody's hands, by group."""
        rows = await self.redis.xinfo_groups(self.names.log)
        return {row["name"].decode(): row["pending"] for row in rows}

    async def holder(self, group: str) -> str:
        """The role that alone has entries of the group in hand, once there is exactly one."""

        async def alone() -> str | None:
            rows = await self.redis.xinfo_consumers(self.names.log, group)
            holders = [row["name"].decode() for row in rows if row["pending"]]
            return holders[0] if len(holders) == 1 else None

        consumer = await until(alone, what=f"one consumer has entries of {group} in hand")
        [name] = [name for name, role in self.roles.items() if f"-{role.pid}-" in str(consumer)]
        return name

    async def settled(self, deadline_s: float = STEP_MAX_S, *, but: str = "") -> None:
        """Wait until every group has read everything, nothing is pending, and the archive is at the log's end.

        `but`: a group that may have entries in hand.
        """

        async def done() -> bool:
            self.check_alive()
            rows = await self.redis.xinfo_groups(self.names.log)
            last = (await self.redis.xinfo_stream(self.names.log))["last-generated-id"]
            upto = await self.pool.fetchval(
                "SELECT entry_id FROM view_heads WHERE partition = 0 ORDER BY seq LIMIT 1"
            )
            at_rest = (
                row["lag"] == 0 and (row["pending"] == 0 or row["name"] == but.encode()) for row in rows
            )
            return all(at_rest) and upto == last.decode()

        await until(done, what="every entry is handled, archived and in the views", deadline_s=deadline_s)

    async def folds(self) -> dict[str, PayoutRecord]:
        """Every payout as the fold of the log."""
        stories: dict[str, list[Event]] = {}
        for event in await self.events():
            if payout_of(event):
                stories.setdefault(payout_of(event), []).append(event)
        return {payout: record for payout, story in stories.items() if (record := fold(story)) is not None}

    async def dead(self) -> int:
        """Dead letters."""
        return int(await self.redis.xlen(self.names.dead))


@asynccontextmanager
async def running_system(
    redis_url: str,
    dsn: str,
    *,
    workers: int = 1,
    roles: tuple[str, ...] = ("serve", "projector"),
    sandbox: Mapping[str, Any] | None = None,
    otel: Mapping[str, str] | None = None,
    logs: Path | None = None,
    home: Path | None = None,
    anew: bool = False,
    **settings: str,
) -> AsyncIterator[System]:
    """Start the roles, of the check-out `home` if any, and wait until the API answers. `settings` are STREAMPROC_
    variables in lower case.

    At the end everything still running must drain with exit status 0.
    """
    port = free_port()
    bank_options = {"account_id": ACCOUNT, "webhook_secret": SECRET, "processing_s": 0.02, "utr_s": 0.02}
    bank_options["webhook_url"] = f"http://127.0.0.1:{port}/webhooks/razorpay"
    bank_options["webhook_retry_base_s"] = 0.5
    await prepare(dsn)
    async with AsyncExitStack() as stack:
        bank = await stack.enter_async_context(running_sandbox(**bank_options, **(sandbox or {})))
        redis = connect(redis_url)
        stack.push_async_callback(redis.aclose)
        pool = await asyncpg.create_pool(dsn, min_size=0, max_size=4, timeout=3.0, command_timeout=10.0)
        stack.callback(pool.terminate)
        api = await stack.enter_async_context(
            httpx.AsyncClient(
                base_url=f"http://127.0.0.1:{port}",
                timeout=CALL_MAX_S,
                limits=httpx.Limits(keepalive_expiry=KEEP_ALIVE_S),
                trust_env=False,
            )
        )
        data_dir = stack.enter_context(tempfile.TemporaryDirectory(prefix="streamproc-journey-"))
        settings = {"data_dir": data_dir, **settings}
        system = System(
            environment(redis_url, dsn, port, bank, settings) | dict(otel or {}),
            redis_url,
            dsn,
            bank,
            api,
            redis,
            pool,
            logs=logs,
            anew=anew,
        )
        try:
            for name in (*roles, *(f"worker-{n}" for n in range(1, workers + 1))):
                await system.start(name, home=home)
            await until(lambda: answers(system), what="the API is ready", deadline_s=START_MAX_S)
            yield system
            ended = await system.stop()
            assert not any(ended.values()), f"not all drained well: {ended}"
        finally:
            for process in system.roles.values():
                await killed(process)


def environment(
    redis_url: str, dsn: str, port: int, bank: Sandbox, settings: Mapping[str, str]
) -> dict[str, str]:
    clean = {
        name: value for name, value in os.environ.items() if not name.startswith(("STREAMPROC_", "OTEL_"))
    }
    ours = {
        "redis_url": redis_url,
        "postgres_dsn": dsn,
        "port": str(port),
        "razorpay_key_id": bank.config.key_id,
        "razorpay_key_secret": bank.config.key_secret,
        "razorpay_oauth_token": bank.config.oauth_token,
        "razorpay_webhook_secrets": SECRET,
        "razorpay_account_number": bank.config.account_number,
        "razorpay_account_id": ACCOUNT,
        "razorpay_base_url": f"{bank.url}/v1",
        "safe_browsing_key": "journey",
        "safe_browsing_url": f"{bank.url}/safebrowsing/v4/threatMatches:find",
        "poll_interval": "500ms",
        "timezone": NOON_ZONE,
    }
    return clean | {f"STREAMPROC_{name.upper()}": value for name, value in {**ours, **settings}.items()}


async def answers(system: System) -> bool:
    """Whether the API says that all is well."""
    system.check_alive()
    try:
        return (await system.api.get("/readyz")).status_code == 200
    except httpx.TransportError:
        return False


def kinds(events: list[Event]) -> Counter[str]:
    """How often each type of event is there."""
    return Counter(str(type(event).__struct_config__.tag) for event in events)
