"""Entries in the hands of a consumer that has no connection any more are taken over; anybody else's are left alone."""

import asyncio
from collections.abc import AsyncIterator, Collection, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

import pytest
from redis.asyncio import Redis

from streamproc.clients.razorpay import TIMEOUT_S
from streamproc.domain.events import PayoutObserved
from streamproc.domain.wire import encode_events
from streamproc.log import roster as roster_module
from streamproc.log.batch import Limits
from streamproc.log.connection import connect, connected
from streamproc.log.dead_consumers import CALLED_S, IDLE_MS, MISSING_S, DeadConsumers
from streamproc.log.group import Consumer
from streamproc.log.names import Names
from streamproc.log.roster import Presence, Roster
from streamproc.log.stream import open_log
from streamproc.log.upkeep import SUSPECT_DELIVERIES
from streamproc.log.work import BatchContext, Group, Item, Stage
from tests.bank import until
from tests.words import observed

NAMES = Names(0)
GROUP = "governance"
LATER = 2 * MISSING_S


@pytest.fixture
async def log(redis_url: str) -> str:
    """A log with a group that has three entries to read; its URL."""
    async with connected(redis_url) as client:
        await client.xgroup_create(NAMES.log, GROUP, "0", mkstream=True)
        for number in range(3):
            await client.execute_command("XADD", NAMES.log, f"{number + 1}-0", "e", "[]", "m", "{}")
    return redis_url


async def hold(client: Redis, consumer: str, count: int = 3) -> None:
    """Read entries, and wait until they are old enough to be looked at."""
    await client.execute_command(
        "XREADGROUP", "GROUP", GROUP, consumer, "COUNT", count, "STREAMS", NAMES.log, ">"
    )

    async def is_idle() -> bool:
        rows = await client.xinfo_consumers(NAMES.log, GROUP)
        return all(row["idle"] >= IDLE_MS for row in rows)

    await until(is_idle, what=f"{consumer} was not heard of lately")


@asynccontextmanager
async def looking(url: str, name: str | None = "me") -> AsyncIterator[tuple[DeadConsumers, Redis]]:
    async with connected(url, name=name) as client:
        yield DeadConsumers(NAMES, GROUP, "me"), client


async def taken(gone: DeadConsumers, client: Redis, now_s: float) -> list[str]:
    return [entry.decode() for entry in await gone.take(client, now_s)]


async def test_who_died_is_missed_for_a_moment_and_then_gives_up_its_entries(log: str) -> None:
    async with connected(log, name="other") as other:
        await hold(other, "other")
    async with looking(log) as (gone, client):
        assert await taken(gone, client, 0) == []
        assert await taken(gone, client, LATER) == ["1-0", "2-0", "3-0"]
        assert [
            row["consumer"] for row in await client.xpending_range(NAMES.log, GROUP, "-", "+", 9)
        ] == 3 * [b"me"]
        assert await taken(gone, client, 2 * LATER) == []  # they are ours now


async def test_who_is_connected_keeps_its_entries_however_long_it_takes(log: str) -> None:
    async with connected(log, name="other") as other, looking(log) as (gone, client):
        await hold(other, "other")
        assert [await taken(gone, client, at) for at in (0, LATER, 10 * LATER)] == [[], [], []]


async def test_who_was_back_meanwhile_is_missed_anew(log: str) -> None:
    async with connected(log, name="other") as other:
        await hold(other, "other")
    async with looking(log) as (gone, client):
        assert await taken(gone, client, 0) == []
        back = connect(log, name="other")
        await back.ping()
        assert await taken(gone, client, LATER) == []
        await back.aclose()

        async def is_away() -> bool:
            return "other" not in {row["name"] for row in await client.client_list()}

        await until(is_away, what="the server has noticed")
        assert await taken(gone, client, 2 * LATER) == []
        assert len(await taken(gone, client, 3 * LATER)) == 3


async def test_who_was_back_between_two_lists_and_is_away_again_is_missed_anew(log: str) -> None:
    """It may have called the bank meanwhile, and has shown that it lived: it asked for its entries."""
    async with connected(log, name="other") as other:
        await hold(other, "other")
    async with looking(log) as (gone, client):
        assert await taken(gone, client, 0) == []
        async with connected(log, name="other") as other:
            await other.execute_command("XREADGROUP", "GROUP", GROUP, "other", "STREAMS", NAMES.log, "0")
            await hold(other, "other")
        assert await taken(gone, client, LATER) == []
        assert await taken(gone, client, 2 * LATER) == ["1-0", "2-0", "3-0"]


class StandingStill(Roster):
    """Where this process stands still after each look; what others do meanwhile."""

    async def look(self, client: Redis, me: str, names: Collection[str], now_s: float) -> Presence:
        seen = await super().look(client, me, names, now_s)
        if me == "me" and now_s:
            key, other = NAMES.log, "other"
            await client.execute_command("XREADGROUP", "GROUP", GROUP, other, "STREAMS", key, "0")
            await client.execute_command("XCLAIM", key, GROUP, other, 0, "1-0", "IDLE", 2 * IDLE_MS, "JUSTID")
        return seen


async def test_who_is_back_while_the_one_who_misses_it_stands_still_keeps_its_entries(log: str) -> None:
    """They were taken from it while it was at the bank, which was called once more."""
    async with connected(log, name="other") as other:
        await hold(other, "other")
    async with connected(log, name="me") as client:
        gone = DeadConsumers(NAMES, GROUP, "me", roster=StandingStill())
        assert [await taken(gone, client, at) for at in (0, LATER)] == [[], []]


async def test_who_does_not_find_itself_in_the_list_believes_nothing_of_it(log: str) -> None:
    async with connected(log, name="other") as other:
        await hold(other, "other")
    async with looking(log, name=None) as (gone, client):
        assert [await taken(gone, client, at) for at in (0, LATER, 2 * roster_module.UNSEEN_S)] == [
            [],
            [],
            [],
        ]


class Listed(Roster):
    """Has these answers, one for each look."""

    def __init__(self, *looks: tuple[bool, float | None]) -> None:
        """Whether who looks is in the list, and when that was made."""
        super().__init__()
        self._looks = list(looks)

    async def look(self, client: Redis, me: str, names: Collection[str], now_s: float) -> Presence:
        is_in_it, at_s = self._looks.pop(0)
        return Presence(frozenset({me} if is_in_it else ()), at_s)


async def test_who_does_not_find_itself_any_more_misses_everybody_anew(log: str) -> None:
    async with connected(log, name="other") as other:
        await hold(other, "other")
        moments = (0.0, LATER, 2 * LATER, 3 * LATER)
        roster = Listed((True, 0), (False, LATER), (True, 2 * LATER), (True, 3 * LATER))
        gone = DeadConsumers(NAMES, GROUP, "me", roster=roster)
        found = [await taken(gone, other, at) for at in moments]
    assert found == [[], [], [], ["1-0", "2-0", "3-0"]]


async def test_a_look_that_told_nothing_of_the_others_takes_nothing_back(log: str) -> None:
    async with connected(log, name="other") as other:
        await hold(other, "other")
        roster = Listed((True, 0), (False, None), (True, LATER))
        gone = DeadConsumers(NAMES, GROUP, "me", roster=roster)
        found = [await taken(gone, other, at) for at in (0.0, LATER / 2, LATER)]
    assert found == [[], [], ["1-0", "2-0", "3-0"]]


async def test_who_was_heard_of_since_the_list_was_made_may_be_connected_since_then_too(log: str) -> None:
    hour_s = 3600.0
    async with connected(log, name="other") as other:
        await hold(other, "other")
        roster = Listed((True, 0), (True, LATER), (True, LATER))
        gone = DeadConsumers(NAMES, GROUP, "me", roster=roster)
        found = [await taken(gone, other, at) for at in (0.0, LATER + hour_s, LATER)]
    assert found == [[], [], ["1-0", "2-0", "3-0"]]


class WentBack:
    """A client of a server whose clock went back: whoever was heard of before it did is idle for 0 ms, like its
    entries."""

    def __init__(self, client: Redis) -> None:
        self._client = client

    def __getattr__(self, name: str) -> Any:
        return getattr(self._client, name)

    async def xinfo_consumers(self, log: str, group: str) -> list[dict[str, Any]]:
        return [{**row, "idle": 0} for row in await self._client.xinfo_consumers(log, group)]


async def test_who_died_before_the_servers_clock_went_back_is_missed_all_the_same(log: str) -> None:
    """Its entries would have waited until the clock had come there again."""
    async with connected(log, name="other") as other:
        await other.execute_command("XREADGROUP", "GROUP", GROUP, "other", "STREAMS", NAMES.log, ">")
    async with looking(log) as (gone, client):
        back: Any = WentBack(client)
        moments = (0, LATER, 2 * LATER)
        assert [await taken(gone, back, at) for at in moments] == [[], [], ["1-0", "2-0", "3-0"]]


async def test_who_is_connected_keeps_its_entries_after_the_servers_clock_went_back(log: str) -> None:
    async with connected(log, name="other") as other, looking(log) as (gone, client):
        await other.execute_command("XREADGROUP", "GROUP", GROUP, "other", "STREAMS", NAMES.log, ">")
        back: Any = WentBack(client)
        assert [await taken(gone, back, at) for at in (0, LATER, 2 * LATER)] == [[], [], []]


async def test_what_is_taken_over_was_not_delivered_by_that(log: str) -> None:
    """However often it was delivered: what that means is for who takes it up to say."""
    async with connected(log, name="other") as other:
        await hold(other, "other")
        await other.execute_command(
            "XCLAIM", NAMES.log, GROUP, "other", 0, "2-0", "IDLE", 2 * IDLE_MS, "RETRYCOUNT", 3
        )
        await hold(other, "other")
        before = await other.xpending_range(NAMES.log, GROUP, "-", "+", 9)
    async with looking(log) as (gone, client):
        assert await taken(gone, client, 0) == []
        assert await taken(gone, client, LATER) == ["1-0", "2-0", "3-0"]
        after = await client.xpending_range(NAMES.log, GROUP, "-", "+", 9)
    assert [row["times_delivered"] for row in after] == [row["times_delivered"] for row in before]
    assert after[1]["times_delivered"] > SUSPECT_DELIVERIES


@dataclass
class Counting:
    """What of CLIENT LIST a client was asked for."""

    all: int = 0
    by_id: list[int] = field(default_factory=list)
    """How many ids each time."""

    def watch(self, client: Redis) -> None:
        real = client.client_list

        async def counted(_type: str | None = None, client_id: Sequence[str] = ()) -> Any:
            if client_id:
                self.by_id.append(len(client_id))
            else:
                self.all += 1
            return await real(_type, list(client_id))

        client.client_list = counted  # type: ignore[method-assign, assignment]


async def test_who_stays_busy_is_asked_for_alone_and_all_connections_are_listed_once_for_a_process(
    log: str,
) -> None:
    """All of them were listed once a second by everybody, 1.5 ms of the server's one thread at 600 connections."""
    roster, asked = Roster(), Counting()
    async with (
        connected(log, name="other") as other,
        connected(log, name="one") as one,
        connected(log, name="two") as two,
    ):
        await one.ping()
        await two.ping()
        await hold(other, "other")
        for client in (one, two):
            asked.watch(client)
        eyes = [
            (DeadConsumers(NAMES, GROUP, name, roster=roster), client)
            for name, client in (("one", one), ("two", two))
        ]
        for second in range(20):
            assert [await taken(gone, client, second) for gone, client in eyes] == [[], []]
    assert asked.all == 1
    # The other's and one's own; who has asked at the same moment has found the other.
    assert asked.by_id == [2, 1] * 19


async def test_one_list_of_all_serves_every_consumer_of_a_process_and_each_finds_who_is_gone(
    log: str,
) -> None:
    roster, asked = Roster(), Counting()
    async with connected(log, name="other") as other:
        await hold(other, "other")
    async with connected(log, name="one") as one, connected(log, name="two") as two:
        await one.ping()
        await two.ping()
        for client in (one, two):
            asked.watch(client)
        first = DeadConsumers(NAMES, GROUP, "one", entries_max=1, roster=roster)
        second = DeadConsumers(NAMES, GROUP, "two", roster=roster)

        async def is_older() -> bool:
            (other,) = await two.xinfo_consumers(NAMES.log, GROUP)
            return bool(other["idle"] >= IDLE_MS + 500)

        await until(is_older, what="the other was not heard of since before all are listed")
        assert await taken(first, one, 0) == []
        assert await taken(second, two, 0.5) == []
        assert asked.all == 1
        assert await taken(first, one, LATER) == ["1-0"]
        assert await taken(second, two, LATER + 0.5) == ["2-0", "3-0"]
        assert asked.all == 2


async def test_the_longer_the_list_is_the_more_seldom_it_is_asked_for(
    log: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(roster_module, "ROWS_PER_S", 0.1)  # so that a few connections are many
    asked = Counting()
    async with connected(log, name="other") as other:
        await hold(other, "other")
    async with looking(log) as (gone, client):
        await client.ping()
        asked.watch(client)
        rows = len(await client.client_list())
        asked.all = 0
        assert await taken(gone, client, 0) == []
        assert [await taken(gone, client, at) for at in (1, LATER, 10 * rows - 1)] == [[], [], []]
        assert asked.all == 1
        assert len(await taken(gone, client, 10 * rows)) == 3
        assert asked.all == 2


async def test_whose_last_call_may_still_be_under_way_at_the_bank_is_missed_for_longer(log: str) -> None:
    """A call outlives its caller: it was sent again 1.5 s later, while the bank was at it."""
    async with connected(log, name="other") as other:
        await hold(other, "other")
    calls = Group(name=GROUP, stages=(), outputs_are_facts=True)
    gone = Consumer(log, 0, calls, name="me", limits=Limits())._upkeep._dead_consumers
    async with connected(log, name="me") as client:
        assert [await taken(gone, client, at) for at in (0, LATER, TIMEOUT_S)] == [[], [], []]
        assert len(await taken(gone, client, CALLED_S)) == 3


async def test_who_takes_over_has_no_more_in_hand_than_it_can_do(log: str) -> None:
    async with connected(log, name="one") as one, connected(log, name="two") as two:
        await hold(one, "one", 1)
        await hold(two, "two", 1)
        await hold(two, "three", 1)
    async with connected(log, name="me") as client:
        gone = DeadConsumers(NAMES, GROUP, "me", entries_max=2)
        assert await taken(gone, client, 0) == []
        first = await taken(gone, client, LATER)
        rest = await taken(gone, client, 2 * LATER)
        assert (len(first), len(rest)) == (2, 1)
        assert sorted(first + rest) == ["1-0", "2-0", "3-0"]


async def test_where_nobody_may_ask_who_is_connected_nothing_is_taken(
    log: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with connected(log, name="other") as other:
        await hold(other, "other")
        await other.execute_command("ACL", "SETUSER", "shy", "on", "nopass", "~*", "+@all", "-client|list")
    try:
        async with looking(log.replace(f":{urlsplit(log).password}@", "shy:x@")) as (gone, client):
            assert [await taken(gone, client, at) for at in (0, LATER)] == [[], []]
    finally:
        async with connected(log) as client:
            await client.execute_command("ACL", "DELUSER", "shy")
    assert caplog.text.count("does not say who is connected") == 1


@pytest.mark.parametrize("own", [False, True], ids=["new", "read before"])
async def test_who_loses_its_connections_while_a_batch_is_at_the_bank_is_connected_again_before_that_ends(
    redis_url: str, own: bool
) -> None:
    """A server that was restarted drops everybody at once; who is in a call of many seconds must not look dead."""
    called, answered, ended = asyncio.Event(), asyncio.Event(), asyncio.Event()

    async def call(items: Sequence[Item], ctx: BatchContext) -> None:
        called.set()
        try:
            await answered.wait()
        finally:
            ended.set()

    stage = Stage(name="call", consumes=frozenset({PayoutObserved}), handle=call)
    consumer = Consumer(redis_url, 0, Group(name="g", stages=(stage,)), name="busy", limits=Limits())
    stopping = asyncio.Event()
    async with connected(redis_url) as client:
        await open_log(client, partitions=1, groups=["g"])
        # The second is read while the first is in hand, then nothing is read any more.
        for number in range(2):
            e = encode_events([observed(f"pout_{number}", 100, agent="bot")])
            await client.xadd(NAMES.log, {"e": e, "m": b'{"by":"webhook"}'})
        if own:
            await client.xreadgroup("g", "busy", {NAMES.log: ">"})

        async def here() -> set[str]:
            return {row["id"] for row in await client.client_list() if row["name"] == "busy"}

        running = asyncio.create_task(consumer.run(stopping))
        try:
            await called.wait()
            before = await here()
            for identity in before:
                await client.client_kill_filter(_id=identity)

            async def is_back() -> bool:
                return bool(await here() - before)

            await until(is_back, what="the busy consumer is connected again", deadline_s=60)
            assert not ended.is_set()
        finally:
            answered.set()
            stopping.set()
            await running
