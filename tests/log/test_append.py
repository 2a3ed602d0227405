"""The producer's door: once, coalesced, and honest when Redis is away."""

import asyncio
import hashlib
import time
from collections.abc import AsyncIterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import uvloop
from msgspec.structs import replace
from redis.asyncio import Redis
from redis.exceptions import TimeoutError as RedisTimeoutError

from streamproc import embedded
from streamproc.domain.deliveries import derived_keys
from streamproc.domain.wire import decode_events, decode_meta
from streamproc.errors import LogBroken, LogUnavailable
from streamproc.log import scripts
from streamproc.log.clock import CLOCK_STEP_S, Clock
from streamproc.log.connection import connected
from streamproc.log.names import Names, partition_of
from streamproc.log.stream import Append, Appended, LogView, Producer, open_log
from tests.deadline import DEADLINE_S
from tests.faults.proxy import Proxy
from tests.words import delivery, observed


@pytest.fixture
async def log_url(redis_url: str) -> str:
    """URL of a Valkey that holds an empty log."""
    await opened(redis_url)
    return redis_url


async def opened(url: str) -> None:
    async with connected(url) as client:
        await open_log(client, partitions=1, groups=("governance",))


async def test_a_delivery_is_appended_once_however_often_it_comes(log_url: str) -> None:
    async with Producer(log_url, partitions=1, name="webhook") as producer:
        first = await producer.append(delivery(observed("pout_1")))
        again = await producer.append(delivery(observed("pout_1")))
    assert (first.new, again.new) == (True, False)
    assert first.entry == again.entry
    async with LogView(log_url, 0) as view:
        entries = await view.read("0-0", 10, 0)
    assert [decode_events(entry.e)[0].payout for entry in entries] == ["pout_1"]
    assert entries[0].m == b'{"by":"webhook"}', "payout and status are in the event"


async def test_an_entry_has_the_keys_that_it_does_not_tell_by_itself(log_url: str) -> None:
    event = replace(observed("pout_1"), delivery="evt_1")
    told = Append(
        event.account, ("wh:evt_1:0123456789abcdef", "st:pout_1:pending"), (event,), "0123456789abcdef"
    )
    own = delivery(observed("pout_2"))
    async with Producer(log_url, partitions=1, name="webhook") as producer:
        await producer.append(told)
        await producer.append(replace(own, keys=("ours:1", *own.keys)))
    async with LogView(log_url, 0) as view:
        entries = await view.read("0-0", 10, 0)
    assert [entry.m for entry in entries] == [
        b'{"by":"webhook","body":"0123456789abcdef"}',
        b'{"by":"webhook","keys":["ours:1","st:pout_2:pending"]}',
    ]
    meta = decode_meta(entries[0].m)
    assert derived_keys(decode_events(entries[0].e), meta.body) == told.keys


async def test_of_more_keys_than_one_look_takes_each_is_known_again(log_url: str) -> None:
    def deliveries(said: str) -> list[scripts.Delivery]:
        """As many as one call takes, with three keys each; only the last of them is in both."""
        keys = [(f"a:{said}:{n}", f"b:{said}:{n}", f"c:{n}") for n in range(scripts.BATCH_MAX)]
        return [scripts.Delivery(each, b"[]", b'{"by":"webhook"}') for each in keys]

    async with connected(log_url) as client:
        first = await scripts.append_once(client, Names(0), deliveries("first"))
        again = await scripts.append_once(client, Names(0), deliveries("second"))
    assert all(new for _, new in first)
    assert again == [(entry, False) for entry, _ in first]


@pytest.mark.parametrize("place", [0, 1, 2])
async def test_a_delivery_is_known_by_any_one_of_its_keys(log_url: str, place: int) -> None:
    async with connected(log_url) as client:
        known = scripts.Delivery(["known"], b"[]", b'{"by":"webhook"}')
        ((entry, _),) = await scripts.append_once(client, Names(0), [known])
        keys = [f"other:{n}" for n in range(2)]
        again = scripts.Delivery([*keys[:place], "known", *keys[place:]], b"[]", b'{"by":"webhook"}')
        assert await scripts.append_once(client, Names(0), [again]) == [(entry, False)]


@pytest.mark.parametrize("place", [0, 998, 999, 1_000, 3 * scripts.BATCH_MAX - 1])
async def test_of_more_keys_than_one_look_takes_the_only_one_that_is_known_is_found(
    log_url: str, place: int
) -> None:
    """Wherever it is: a look takes a thousand."""
    keys = [f"new:{n}" for n in range(3 * scripts.BATCH_MAX)]
    keys[place] = "known"
    async with connected(log_url) as client:
        known = scripts.Delivery(["known"], b"[]", b'{"by":"webhook"}')
        ((entry, _),) = await scripts.append_once(client, Names(0), [known])
        deliveries = [
            scripts.Delivery(keys[n : n + 3], b"[]", b'{"by":"webhook"}') for n in range(0, len(keys), 3)
        ]
        answers = await scripts.append_once(client, Names(0), deliveries)
    assert answers.pop(place // 3) == (entry, False)
    assert all(new for _, new in answers)


@pytest.fixture(params=["at once", "not allowed", "unknown"])
async def remembering_url(
    request: pytest.FixtureRequest, log_url: str, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[tuple[str, bool]]:
    """URL of a log, and whether keys are remembered with MSETEX there: not if this user may not call it, nor if the
    server does not have it."""
    if request.param == "unknown":
        script = scripts.Script("append_once", "checks")
        script.text = script.text.replace(b"'MSETEX'", b"'NO_SUCH_COMMAND'")
        script.sha = hashlib.sha1(script.text, usedforsecurity=False).hexdigest()
        monkeypatch.setattr(scripts, "_append_once", script)
    async with connected(log_url) as client:
        is_there = await client.execute_command("COMMAND LIST", "FILTERBY", "PATTERN", "msetex")
        if request.param != "not allowed" or not is_there:
            yield log_url, bool(is_there) and request.param == "at once"
            return
        await client.execute_command("ACL SETUSER", "narrow", "on", ">pw", "~*", "&*", "+@all", "-msetex")
        try:
            yield f"redis://narrow:pw@{urlsplit(log_url).netloc.rpartition('@')[2]}", False
            assert not await client.execute_command("ACL LOG"), "that it may not is no incident"
        finally:
            await client.execute_command("ACL DELUSER", "narrow")


async def test_every_key_of_a_call_is_remembered_with_its_own_entry_and_for_as_long(
    remembering_url: tuple[str, bool],
) -> None:
    url, at_once = remembering_url
    keys = [f"k:{n}" for n in range(3 * scripts.BATCH_MAX)]
    deliveries = [scripts.Delivery(keys[n : n + 3], b"[]", b"{}") for n in range(0, len(keys), 3)]
    seen = [Names(0).seen(key) for key in keys]
    async with connected(url) as client, connected(url) as admin:
        await admin.config_resetstat()
        before_s, _ = await client.time()
        answers = await scripts.append_once(client, Names(0), deliveries)
        after_s, _ = await client.time()
        calls = await admin.info("commandstats")
        until_ms = {await client.execute_command("PEXPIRETIME", key) for key in seen}
        assert await client.mget(seen) == [entry.encode() for entry, _ in answers for _ in range(3)]
        assert await scripts.append_once(client, Names(0), deliveries) == [(one, False) for one, _ in answers]
    (one_ms,) = until_ms
    assert before_s <= one_ms // 1000 - scripts.SEEN_TTL_S <= after_s
    made = {
        name: calls[f"cmdstat_{name}"]["calls"] for name in ("set", "msetex") if f"cmdstat_{name}" in calls
    }
    assert made == ({"msetex": 2} if at_once else {"set": len(keys)})


async def test_concurrent_appends_each_get_their_own_answer_from_few_calls(log_url: str) -> None:
    async with Producer(log_url, partitions=1, name="webhook") as producer, connected(log_url) as client:
        await producer.append(delivery(observed("pout_warm")))
        await client.config_resetstat()
        answers = await asyncio.gather(
            *(producer.append(delivery(observed(f"pout_{i % 50}"))) for i in range(200))
        )
        calls = (await client.info("commandstats"))["cmdstat_evalsha"]["calls"]
    assert sum(answer.new for answer in answers) == 50
    assert len({answer.entry for answer in answers}) == 50
    assert calls <= 3


async def test_an_append_while_redis_is_away_says_so_and_what_was_synced_is_there_afterwards(
    public_dir: Path,
) -> None:
    directory = public_dir / "away"
    async with embedded.valkey(directory) as first:
        port = urlsplit(first.url).port
        await opened(first.url)
        producer = await Producer(first.url, partitions=1, name="webhook").__aenter__()
        assert (await producer.append(delivery(observed("pout_1")))).new
    with pytest.raises(LogUnavailable):
        await producer.append(delivery(observed("pout_2")))
    async with embedded.valkey(directory, port=port):
        assert not (await producer.append(delivery(observed("pout_1")))).new
        assert (await producer.append(delivery(observed("pout_2")))).new
        await producer.__aexit__()


@pytest.mark.parametrize("off_s", [86_400, -86_400, 5])
async def test_what_was_told_by_a_wrong_clock_is_to_be_delivered_again(log_url: str, off_s: int) -> None:
    """Redis was away when the producer started, on a host whose clock is a day off; or the host slept for a day.
    A payout was charged to another day then, and where that was ahead its agent had no slot until the day had come."""
    async with Producer(log_url, partitions=1, name="test") as producer:
        producer.clock._offset_us += off_s * 1_000_000
        producer.clock._synced_at = float("-inf")
        first, last = observed("first", at=producer.now_us()), observed("last", at=producer.now_us())
        answers = await asyncio.gather(
            *(producer.append(delivery(event)) for event in (first, last)), return_exceptions=True
        )
        is_wrong = abs(off_s) > CLOCK_STEP_S
        assert [isinstance(answer, LogUnavailable) for answer in answers] == [is_wrong, is_wrong]
        again = [await producer.append(delivery(replace(e, at=producer.now_us()))) for e in (first, last)]
        assert [appended.new for appended in again] == [is_wrong, is_wrong]
        async with connected(log_url) as client:
            seconds, _ = await client.time()
    async with LogView(log_url, 0) as view:
        ats = [decode_events(entry.e)[0].at for entry in await view.read("0-0", 10, 0)]
    assert all(abs(at / 1e6 - seconds) < CLOCK_STEP_S + 60 for at in ats)


async def test_a_host_that_slept_a_moment_after_it_asked_asks_again_before_it_appends(
    log_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The monotonic clock stood still meanwhile: for ten seconds more what came was told by the time before."""
    async with Producer(log_url, partitions=1, name="test") as producer:
        assert not producer.clock.is_stale()
        producer.clock._offset_us -= 86_400_000_000
        wall = time.time
        monkeypatch.setattr(time, "time", lambda: wall() + 86_400)
        with pytest.raises(LogUnavailable, match="deliver again"):
            await producer.append(delivery(observed("first", at=producer.now_us())))
        assert (await producer.append(delivery(observed("first", at=producer.now_us())))).new


async def test_who_appends_nothing_can_have_the_clock_asked(
    log_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with Producer(log_url, partitions=1, name="test") as producer:
        right_us = producer.now_us()
        producer.clock._offset_us -= 86_400_000_000
        await producer.sync()
        assert producer.now_us() < right_us, "it was asked a moment ago"
        wall = time.time
        monkeypatch.setattr(time, "time", lambda: wall() + 86_400)
        await producer.sync()
        assert producer.now_us() >= right_us


@pytest.mark.parametrize(("said_ago_s", "waited_s", "steps"), [(30, 30, 0), (30, 1, 1), (-30, 30, 1)])
def test_an_answer_that_was_long_under_way_is_no_step(said_ago_s: int, waited_s: int, steps: int) -> None:
    """This process stood still before it read the answer: it is as old as that, and the clock is right."""
    clock = Clock()
    clock.set(clock.now_us() - said_ago_s * 1_000_000, waited_s * 1_000_000)
    assert clock.steps == steps


def test_a_connection_that_is_reset_between_two_appends_is_replaced(valkey: str) -> None:
    """Under uvloop, as roles run: it says RuntimeError where a write meets a transport that is gone."""

    async def body() -> list[Appended | LogUnavailable]:
        async with connected(valkey) as client:
            await client.flushall()
        await opened(valkey)
        where = urlsplit(valkey)
        assert where.port is not None
        async with (
            Proxy("127.0.0.1", where.port).listening() as wire,
            Producer(
                valkey.replace(f":{where.port}", f":{wire.port}"), partitions=1, name="webhook"
            ) as producer,
        ):
            answers: list[Appended | LogUnavailable] = [await producer.append(delivery(observed("pout_0")))]
            for n in range(1, 4):
                wire.reset()
                await asyncio.sleep(0.01)  # until our end has heard of it
                for _ in range(2):
                    try:
                        async with asyncio.timeout(DEADLINE_S):
                            answers.append(await producer.append(delivery(observed(f"pout_{n}"))))
                    except LogUnavailable as problem:
                        answers.append(problem)
            return answers

    first, *rest = uvloop.run(body())
    assert isinstance(first, Appended)
    assert [type(answer) for answer in rest] == 3 * [LogUnavailable, Appended]


async def test_a_connection_that_cannot_be_closed_costs_its_own_append_and_not_the_producer(
    log_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    aclose, append_once = Redis.aclose, scripts.append_once

    async def is_away(*_: object, **__: object) -> None:
        monkeypatch.setattr(scripts, "append_once", append_once)
        raise LogUnavailable("away")

    async def hears_nothing(_: Redis) -> None:
        monkeypatch.setattr(Redis, "aclose", aclose)
        raise RedisTimeoutError("Timed out closing connection")

    async with Producer(log_url, partitions=1, name="webhook") as producer:
        monkeypatch.setattr(scripts, "append_once", is_away)
        monkeypatch.setattr(Redis, "aclose", hears_nothing)
        with pytest.raises(LogUnavailable, match="away"):
            await producer.append(delivery(observed("pout_1")))
        async with asyncio.timeout(DEADLINE_S):
            assert (await producer.append(delivery(observed("pout_1")))).new


async def test_an_error_that_nobody_named_costs_its_own_append_and_not_the_producer(
    log_url: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    append_once = scripts.append_once

    async def fails_once(*_: object, **__: object) -> None:
        monkeypatch.setattr(scripts, "append_once", append_once)
        raise ZeroDivisionError

    async with Producer(log_url, partitions=1, name="webhook") as producer:
        monkeypatch.setattr(scripts, "append_once", fails_once)
        with pytest.raises(LogUnavailable, match="the append failed"):
            await producer.append(delivery(observed("pout_1")))
        async with asyncio.timeout(DEADLINE_S):
            assert (await producer.append(delivery(observed("pout_1")))).new
    assert "ALARM" in caplog.text


async def test_the_server_forgetting_its_scripts_is_not_noticed(log_url: str) -> None:
    async with Producer(log_url, partitions=1, name="webhook") as producer, connected(log_url) as client:
        await producer.append(delivery(observed("pout_1")))
        await client.script_flush()
        assert (await producer.append(delivery(observed("pout_2")))).new


async def test_another_partition_count_refuses_to_start(redis_url: str) -> None:
    async with connected(redis_url) as client:
        await open_log(client, partitions=4, groups=("governance",))
        await open_log(client, partitions=4, groups=("governance",))
        with pytest.raises(LogBroken, match="STREAMPROC_PARTITIONS is 8, but this log was made with 4"):
            await open_log(client, partitions=8, groups=("governance",))


async def test_a_group_that_is_gone_is_an_alarm_and_never_made_again(redis_url: str) -> None:
    async with connected(redis_url) as client:
        await open_log(client, partitions=1, groups=("governance",))
        await client.xgroup_destroy(Names(0).log, "governance")
        with pytest.raises(LogBroken, match="governance"):
            await open_log(client, partitions=1, groups=("governance",))


def test_an_account_always_has_the_same_partition() -> None:
    assert partition_of("123456789", 16384) == 0x31C3 % 16384
