"""Processes that tell people, together, before a Slack that knows nothing of us: what they send it, and what not."""

import asyncio
import os
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

import pytest
from msgspec.json import encode

from consumers.inputs import EXECUTION, GOVERNANCE, NOTIFICATION
from streamproc.domain.events import NotificationSent
from streamproc.log.names import SHARED_PARTITION, Names
from streamproc.log.stream import open_log
from streamproc.operate.people import PACE
from tests.bank import until
from tests.clients.loopback import Asked, Loopback, loopback, response
from tests.engine import Engine
from tests.words import observed

WORKERS = 3
PAUSE_S = 6.0
POLICIES = """
defaults: {rate_limit: {count: 0, window: 60}}
policies: {bot: {daily_limit: 100_000_000, require_approval_above: 100_000}}
"""

pytestmark = [pytest.mark.faults, pytest.mark.timeout(300)]


def said(status: int, body: object, **headers: str) -> bytes:
    return response(status, encode(body), **headers)


class Channels:
    """Slack and ntfy; Slack asks for a pause at its `refuses`-th message."""

    def __init__(self, refuses: int = 0) -> None:
        self.refuses, self.refused_s = refuses, 0.0
        self.posted_s: list[float] = []
        """When each message came to Slack."""
        self.pushed = 0

    async def __call__(self, asked: Asked) -> bytes:
        if "ntfy" in asked.path:
            self.pushed += 1
            return said(200, {"id": f"push{self.pushed}"})
        self.posted_s.append(now_s := time.monotonic())
        if len(self.posted_s) == self.refuses:
            self.refused_s = now_s
        if self.refused_s and now_s < self.refused_s + PAUSE_S:
            return said(429, {"ok": False, "error": "ratelimited"}, retry_after=str(int(PAUSE_S)))
        return said(
            200, {"ok": True, "channel": "C0HOLDS", "ts": f"{1_790_000_000 + len(self.posted_s)}.0001"}
        )


def env_of(redis_url: str, channels: Loopback, data_dir: str) -> dict[str, str]:
    names = {
        "REDIS_URL": redis_url, "POSTGRES_DSN": "postgresql://nobody@127.0.0.1:1/none",
        "RAZORPAY_KEY_ID": "rzp_test_key", "RAZORPAY_KEY_SECRET": "a_secret_of_a_test", "SAFE_BROWSING_KEY": "key",
        "SLACK_BOT_TOKEN": "xoxb-test", "SLACK_CHANNEL_ID": "C0HOLDS", "SLACK_SIGNING_SECRET": "a_secret_of_a_test",
        "SLACK_BASE_URL": f"{channels.url}/api", "NTFY_URL": f"{channels.url}/ntfy", "NTFY_TOPIC": "holds",
        "DATA_DIR": data_dir,
    }  # fmt: skip
    return {**os.environ, **{f"STREAMPROC_{name}": value for name, value in names.items()}}


@asynccontextmanager
async def notifiers(redis_url: str, script: Channels, workers: int) -> AsyncIterator[Engine]:
    """An engine that decides, and processes that tell people. Slack has no burst left for them."""
    async with AsyncExitStack() as stack:
        engine = await stack.enter_async_context(Engine(redis_url))
        channels = await stack.enter_async_context(loopback(script))
        data_dir = stack.enter_context(tempfile.TemporaryDirectory(prefix="streamproc-notifiers-"))
        await open_log(engine.client, partitions=1, groups=[GOVERNANCE, EXECUTION, NOTIFICATION])
        await engine.apply(POLICIES)
        command = (sys.executable, "-m", "streamproc", "worker", "--groups", NOTIFICATION)
        env = env_of(redis_url, channels, data_dir)
        processes = [await asyncio.create_subprocess_exec(*command, env=env) for _ in range(workers)]
        try:

            async def all_are_there() -> bool:
                assert all(process.returncode is None for process in processes)
                return len(await engine.client.xinfo_consumers(engine.names.log, NOTIFICATION)) == workers

            await until(all_are_there, what="all have read from the log")
            await engine.client.set(Names(SHARED_PARTITION).pace(PACE), int(time.time() * 1e6))
            yield engine
        finally:
            for process in processes:
                process.terminate()
            await asyncio.gather(*(process.wait() for process in processes))


async def told_of(engine: Engine, holds: int) -> list[str]:
    """The channels by which people were told of so many holds, once they were."""
    payouts = [f"pout_{n}" for n in range(holds)]
    for payout in payouts:
        await engine.deliver(observed(payout, 200_000, url="https://vendor.example.com/inv/7"))

    async def all_are_told() -> bool:
        rows = await engine.client.xinfo_groups(engine.names.log)
        (row,) = [row for row in rows if row["name"] == NOTIFICATION.encode()]
        return row["lag"] == 0 and row["pending"] == 0

    await until(all_are_told, what="people are told of all", deadline_s=120)
    stories = [await engine.story(payout) for payout in payouts]
    return [event.channel for story in stories for event in story if type(event) is NotificationSent]


async def test_the_pause_that_slack_asks_one_process_for_is_kept_by_all(redis_url: str) -> None:
    """Each sent a message into it at its next turn, was refused too, and told people by ntfy, which has no buttons."""
    channels = Channels(refuses=2)
    async with notifiers(redis_url, channels, WORKERS) as engine:
        told = await told_of(engine, 8)
    into_it = [at for at in channels.posted_s if channels.refused_s < at < channels.refused_s + PAUSE_S]
    assert len(into_it) <= 1  # perhaps one whose turn came before the answer was heard
    assert len(told) == 8
    assert told.count("ntfy") <= 1 + len(into_it)


async def test_many_processes_wait_for_their_turns_and_every_hold_is_told_where_there_are_buttons(
    redis_url: str,
) -> None:
    """With eleven of them a turn came each eleven seconds, and what waited for eight went to ntfy: 17 holds of 60."""
    channels = Channels()
    async with notifiers(redis_url, channels, 10) as engine:
        assert await told_of(engine, 24) == ["slack"] * 24
    assert (len(channels.posted_s), channels.pushed) == (24, 0)
