"""What a consumer does beside its batches keeps no payout waiting, waits for no batch, and loses nothing."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import pytest
from redis.asyncio import Redis

from streamproc.domain.events import PayoutObserved
from streamproc.domain.wire import encode_events
from streamproc.errors import LogUnavailable
from streamproc.log import group as loop
from streamproc.log import scripts
from streamproc.log.batch import Limits
from streamproc.log.claims import Claims
from streamproc.log.group import Consumer
from streamproc.log.names import Names
from streamproc.log.scripts import Backoff, Deferral
from streamproc.log.upkeep import Found, Upkeep
from streamproc.log.work import BatchContext, Group, Item, Stage
from tests.bank import until
from tests.deadline import DEADLINE_S
from tests.words import observed

NAMES = Names(0)
NEVER_S = 3_600.0


class Bank:
    """A stage that holds each batch until it is let go, and says which payouts it was given."""

    def __init__(self) -> None:
        self.called, self.answers = asyncio.Event(), asyncio.Event()
        self.payouts: list[str] = []
        self.group = Group(
            name="g",
            stages=(Stage(name="call", consumes=frozenset({PayoutObserved}), handle=self._call),),
        )

    async def _call(self, items: Sequence[Item], _: BatchContext) -> None:
        self.payouts += [work.payout for work, _ in items]
        self.called.set()
        await self.answers.wait()


@pytest.fixture
def bank() -> Bank:
    return Bank()


@asynccontextmanager
async def consuming(url: str, bank: Bank) -> AsyncIterator[None]:
    stopping = asyncio.Event()
    consumer = Consumer(url, 0, bank.group, name="me", limits=Limits())
    running = asyncio.create_task(consumer.run(stopping))
    try:
        yield
    finally:
        bank.answers.set()
        stopping.set()
        await running


@asynccontextmanager
async def consuming_with_a_retry_found(client: Redis, url: str, bank: Bank) -> AsyncIterator[None]:
    """`pout_late` was put off, and was taken into the consumer's hands while `pout_1` is at the bank."""
    entry = await pay(client, "pout_late")
    await client.xreadgroup("g", "who_is_gone", {NAMES.log: ">"})
    async with consuming(url, bank):
        await pay(client, "pout_1")
        await bank.called.wait()
        await scripts.defer(client, NAMES, "g", [Deferral(entry, 0.0, False)], Backoff(0.0, 0.0, 0.0))

        async def is_taken_up() -> bool:
            rows = await client.xpending_range(NAMES.log, "g", entry, entry, 1)
            return bool(rows[0]["consumer"] == b"me")

        await until(is_taken_up, what="the retry is in the consumer's hands")
        yield


async def pay(client: Redis, payout: str) -> bytes:
    e = encode_events([observed(payout, 100, agent="bot")])
    entry: bytes = await client.xadd(NAMES.log, {"e": e, "m": b'{"by":"webhook"}'})
    return entry


async def say(client: Redis, count: int) -> None:
    """Entries that the group has nothing to do with."""
    for _ in range(count):
        await client.xadd(NAMES.log, {"e": b"[]", "m": b'{"by":"webhook"}'})


async def pending(client: Redis) -> int:
    return int((await client.xpending(NAMES.log, "g"))["pending"])


async def test_timers_fire_while_a_batch_is_at_the_bank(client: Redis, redis_url: str, bank: Bank) -> None:
    async with consuming(redis_url, bank):
        await pay(client, "pout_1")
        await bank.called.wait()
        await client.zadd(NAMES.timers, {"[]": 1})

        async def has_fired() -> bool:
            ((_, fields),) = await client.execute_command("XREVRANGE", NAMES.log, "+", "-", "COUNT", 1)
            return bool(fields[3] == b'{"by":"timers"}')

        await until(has_fired, what="the timer is in the log")


async def test_what_was_put_off_is_handled_after_the_batch_in_which_it_became_due(
    client: Redis, redis_url: str, bank: Bank
) -> None:
    async with consuming_with_a_retry_found(client, redis_url, bank):
        assert bank.payouts == ["pout_1"]
        bank.answers.set()

        async def is_done() -> bool:
            return await pending(client) == 0

        await until(is_done, what="all is acknowledged")
    assert bank.payouts == ["pout_1", "pout_late"]
    assert await client.exists(NAMES.retries("g"), NAMES.tries("g")) == 0


async def test_what_becomes_due_while_what_was_found_waits_for_a_batch_is_handled_after_that(
    client: Redis, redis_url: str, bank: Bank
) -> None:
    """And the looks go on meanwhile: a worker whose looks ended would end."""
    later = await pay(client, "pout_later")
    async with consuming_with_a_retry_found(client, redis_url, bank):
        await scripts.defer(client, NAMES, "g", [Deferral(later, 0.0, False)], Backoff(0.0, 0.0, 0.0))
        for timer in ("[]", "[[]]"):  # the second fires in a look that begins after one that could find it
            await client.zadd(NAMES.timers, {timer: 1})

            async def has_fired() -> bool:
                return await client.zcard(NAMES.timers) == 0

            await until(has_fired, what="the next look has begun")
        bank.answers.set()

        async def is_done() -> bool:
            return await pending(client) == 0

        await until(is_done, what="all is acknowledged")
    assert sorted(bank.payouts) == ["pout_1", "pout_late", "pout_later"]


async def test_who_stops_while_something_was_found_handles_that_too(
    client: Redis, redis_url: str, bank: Bank
) -> None:
    async with consuming_with_a_retry_found(client, redis_url, bank):
        pass
    assert bank.payouts == ["pout_1", "pout_late"]
    assert await pending(client) == 0


async def test_what_is_skipped_is_acknowledged_when_nothing_comes(
    client: Redis, redis_url: str, bank: Bank, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "SKIPPED_S", NEVER_S)
    async with consuming(redis_url, bank):
        await say(client, 3)

        async def is_done() -> bool:
            (row,) = await client.xinfo_groups(NAMES.log)
            return row["lag"] == 0 and row["pending"] == 0

        await until(is_done, what="all is read and acknowledged")


@pytest.mark.parametrize("limit", ["count", "age"])
async def test_what_is_skipped_waits_for_a_pause_only_until_it_is_much_or_old(
    client: Redis, redis_url: str, bank: Bank, limit: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "QUIET_S", NEVER_S)
    monkeypatch.setattr(loop, "SKIPPED_MAX", 5 if limit == "count" else 1_000)
    monkeypatch.setattr(loop, "SKIPPED_S", NEVER_S if limit == "count" else 0.0)
    bank.answers.set()
    async with consuming(redis_url, bank):
        await say(client, 4)
        await pay(client, "pout_1")
        if limit == "count":

            async def is_paid() -> bool:
                rows = await client.xpending_range(NAMES.log, "g", "-", "+", 10)
                return bank.payouts == ["pout_1"] and len(rows) == 4

            await until(is_paid, what="the payout is acknowledged, and what was skipped is not")
            await say(client, 1)

        async def is_done() -> bool:
            return bank.payouts == ["pout_1"] and await pending(client) == 0

        await until(is_done, what="all is acknowledged")


@pytest.mark.parametrize("end", ["stop", "lost connections"])
async def test_what_is_skipped_and_not_acknowledged_yet_is_not_left_behind(
    client: Redis, redis_url: str, bank: Bank, end: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "QUIET_S", NEVER_S)
    monkeypatch.setattr(loop, "SKIPPED_S", NEVER_S)
    async with consuming(redis_url, bank):
        await say(client, 3)

        async def is_read() -> bool:
            return await pending(client) == 3

        await until(is_read, what="all is read")
        if end == "lost connections":
            for row in await client.client_list():
                if row["name"] == "me":
                    await client.client_kill_filter(_id=row["id"])

            async def is_done() -> bool:
                return await pending(client) == 0

            await until(is_done, what="it is taken up again, and acknowledged")
    assert await pending(client) == 0


async def test_what_comes_at_the_last_moment_of_who_stops_is_handled_and_what_is_skipped_of_it_acknowledged(
    client: Redis, redis_url: str, bank: Bank, monkeypatch: pytest.MonkeyPatch
) -> None:
    unblock = Redis.client_unblock

    async def late(self: Redis, reader: int) -> None:
        async with client.pipeline(transaction=True) as both:  # the first of two would end the read by itself
            await say(both, 1)
            await pay(both, "pout_late")
            await both.execute()
        await unblock(self, reader)

    monkeypatch.setattr(Redis, "client_unblock", late)
    async with consuming(redis_url, bank):
        await pay(client, "pout_1")
        await bank.called.wait()
    (row,) = await client.xinfo_groups(NAMES.log)
    # It is left to others, or read and finished: the reader may have ended before.
    handled = {(): 2, ("pout_late",): 0}
    assert row["lag"] == handled[tuple(bank.payouts[1:])]
    assert row["pending"] == 0


async def test_what_the_last_look_of_who_stops_finds_is_handled(
    client: Redis, redis_url: str, bank: Bank, monkeypatch: pytest.MonkeyPatch
) -> None:
    look, stopping = Upkeep.look, asyncio.Event()

    async def only_the_last(self: Upkeep, beside: Redis, *, may_claim: bool = True) -> Found | None:
        return await look(self, beside, may_claim=may_claim) if stopping.is_set() else None

    monkeypatch.setattr(Upkeep, "look", only_the_last)
    entry = await pay(client, "pout_late")
    await client.xreadgroup("g", "me", {NAMES.log: ">"})
    await scripts.defer(client, NAMES, "g", [Deferral(entry, 0.0, False)], Backoff(0.0, 0.0, 0.0))
    bank.answers.set()
    consumer = Consumer(redis_url, 0, bank.group, name="me", limits=Limits())
    running = asyncio.create_task(consumer.run(stopping))

    async def is_reading() -> bool:
        return consumer._finding is not None

    await until(is_reading, what="it consumes")
    stopping.set()
    await running
    assert (bank.payouts, await pending(client)) == (["pout_late"], 0)


async def test_what_was_taken_over_and_then_not_heard_of_is_handled_at_once(
    client: Redis, redis_url: str, bank: Bank, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The connection for looking is lost between the claim and its answer; the two others are well."""
    taken_over, lost = Upkeep._taken_over, asyncio.Event()

    async def cut_once(self: Upkeep, beside: Redis, entries: list[bytes]) -> Found | None:
        if entries and not lost.is_set():
            lost.set()
            raise LogUnavailable("the connection was reset")
        return await taken_over(self, beside, entries)

    monkeypatch.setattr(Upkeep, "_taken_over", cut_once)
    await pay(client, "pout_left")
    await client.xreadgroup("g", "who_is_gone", {NAMES.log: ">"})
    bank.answers.set()
    async with consuming(redis_url, bank):
        async with asyncio.timeout(DEADLINE_S):
            await lost.wait()

        async def is_done() -> bool:
            return await pending(client) == 0

        await until(is_done, what="what was left behind is handled")
    assert bank.payouts == ["pout_left"]


async def test_looks_go_on_after_one_that_failed_while_a_batch_is_at_the_bank_and_one_new_connection_is_enough(
    client: Redis, redis_url: str, bank: Bank, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They fire timers and show that this worker is alive. What it may have claimed is taken up again once."""
    look, take_up_own, lost, connected = Upkeep.look, Consumer._take_up_own, asyncio.Event(), 0

    async def cut_once(self: Upkeep, beside: Redis, *, may_claim: bool = True) -> Found | None:
        if bank.called.is_set() and not lost.is_set():
            lost.set()
            raise LogUnavailable("the connection was reset")
        return await look(self, beside, may_claim=may_claim)

    async def counted(self: Consumer, one: Redis) -> None:
        nonlocal connected
        connected += 1
        await take_up_own(self, one)

    monkeypatch.setattr(Upkeep, "look", cut_once)
    monkeypatch.setattr(Consumer, "_take_up_own", counted)
    async with consuming(redis_url, bank):
        await pay(client, "pout_1")
        async with asyncio.timeout(DEADLINE_S):
            await lost.wait()
        await client.zadd(NAMES.timers, {"[]": 1})

        async def has_fired() -> bool:
            return await client.zcard(NAMES.timers) == 0

        await until(has_fired, what="the timer is in the log")
        assert bank.payouts == ["pout_1"]
        bank.answers.set()
        for payout in ("pout_2", "pout_3", "pout_4"):
            await pay(client, payout)

            async def is_done(payout: str = payout) -> bool:
                return payout in bank.payouts and await pending(client) == 0

            await until(is_done, what=f"{payout} is handled")
    assert bank.payouts == ["pout_1", "pout_2", "pout_3", "pout_4"]
    assert connected == 2


async def test_who_stops_leaves_the_group(client: Redis, redis_url: str, bank: Bank) -> None:
    """Else a group keeps the name of every process that ever ran, until others find it abandoned."""
    async with consuming(redis_url, bank):
        await pay(client, "pout_1")
        await bank.called.wait()
        assert [row["name"] for row in await client.xinfo_consumers(NAMES.log, "g")] == [b"me"]
    assert await client.xinfo_consumers(NAMES.log, "g") == []


async def test_who_cannot_connect_waits_twice_as_long_each_time_up_to_a_limit_and_not_after_all_was_well(
    client: Redis, redis_url: str, bank: Bank, monkeypatch: pytest.MonkeyPatch
) -> None:
    connected, waited_for, stopping = loop.connected, list[float](), asyncio.Event()
    away = [True] * 8 + [False] + [True] * 2
    left = iter(away)

    @asynccontextmanager
    async def connecting(url: str, **how: Any) -> AsyncIterator[Redis]:
        if how.get("blocking") and next(left):
            raise LogUnavailable("nobody listens")
        async with connected(url, **how) as one:
            yield one

    async def lost(*_: object) -> None:
        raise LogUnavailable("the connection was reset")

    async def waiting(event: asyncio.Event, seconds: float) -> None:
        if seconds == loop.UPKEEP_S and asyncio.current_task() is not running:
            await event.wait()  # the look beside it, which is cancelled
        waited_for.append(seconds)
        if len(waited_for) == len(away):
            stopping.set()

    monkeypatch.setattr(loop, "connected", connecting)
    monkeypatch.setattr(loop, "set_within", waiting)
    monkeypatch.setattr(Consumer, "_serve", lost)
    consumer = Consumer(redis_url, 0, bank.group, name="me", limits=Limits())
    running = asyncio.create_task(consumer.run(stopping))
    async with asyncio.timeout(DEADLINE_S):
        await running
    assert waited_for == [0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 5.0, 5.0, 0.1, 0.2, 0.4]


async def test_who_hangs_in_a_batch_lets_others_have_its_entries_and_renews_its_claims_again_afterwards(
    client: Redis, redis_url: str, bank: Bank, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "RENEW_MAX_S", 1e-9)
    renew, renewed, looks = Claims.renew, asyncio.Event(), 0

    async def heard(self: Claims, beside: Redis, *, late: int = 1) -> None:
        if late == 1:
            renewed.set()
        await renew(self, beside, late=late)

    async def counted(*_: object, **__: object) -> None:
        nonlocal looks
        if bank.called.is_set():
            if not looks:
                renewed.clear()  # by this look, which may have begun before the batch
            looks += 1

    monkeypatch.setattr(Upkeep, "look", counted)
    monkeypatch.setattr(Claims, "renew", heard)
    async with consuming(redis_url, bank):
        await pay(client, "pout_1")
        await bank.called.wait()

        async def has_looked() -> bool:
            return looks > 2

        await until(has_looked, what="it has looked a few times beside the batch")
        assert not renewed.is_set()
        bank.answers.set()
        async with asyncio.timeout(DEADLINE_S):
            await renewed.wait()


async def test_what_is_done_is_not_in_hand_any_more(client: Redis, redis_url: str, bank: Bank) -> None:
    """Else its claim would be renewed for ever, and a worker that was busy once would take nothing over any more."""
    stopping = asyncio.Event()
    consumer = Consumer(redis_url, 0, bank.group, name="me", limits=Limits())
    running = asyncio.create_task(consumer.run(stopping))
    await pay(client, "pout_1")
    await bank.called.wait()
    assert (len(consumer._claims._since), consumer._in_hand_since is None) == (1, False)
    bank.answers.set()

    async def is_done() -> bool:
        return await pending(client) == 0

    await until(is_done, what="it is acknowledged")
    stopping.set()
    await running
    assert (consumer._claims._since, consumer._in_hand_since) == ({}, None)
