"""Opening the log: made once by whoever comes first, and never made again over what was there."""

import asyncio
from collections.abc import Awaitable, Callable

import pytest
from redis.asyncio import Redis

from streamproc.domain.budget import Ask
from streamproc.errors import LogBroken, LogUnavailable, TryAgain
from streamproc.log import letters, scripts
from streamproc.log.connection import connected
from streamproc.log.health import logs_gone
from streamproc.log.names import META, Names
from streamproc.log.stream import Producer, open_log
from tests.log.test_letters import closing
from tests.words import delivery, observed

GROUPS = ("governance", "execution")
PROCESSES = 8
"""Roles of a first start, all at once."""
ROUNDS = 10
NAMES = Names(0)


async def test_processes_that_start_together_on_an_empty_redis_all_open_the_log(redis_url: str) -> None:
    async def one(steps_late: int) -> None:
        async with connected(redis_url) as client:
            for _ in range(steps_late):  # one round trip each, so that all their steps meet in many orders
                await client.ping()
            await open_log(client, partitions=1, groups=GROUPS)

    async with Redis.from_url(redis_url) as client:
        for _ in range(ROUNDS):
            await asyncio.gather(*(one(late) for late in range(PROCESSES)))
            groups = await client.xinfo_groups(NAMES.log)
            assert {row["name"].decode() for row in groups} == set(GROUPS)
            await client.delete(META, NAMES.log, NAMES.groups)


async def test_a_log_is_opened_on_a_full_server_and_none_is_begun_there(redis_url: str) -> None:
    """The projector's janitor frees memory, and so does a shorter retention, for which the projector starts again."""
    async with connected(redis_url) as client:
        await client.config_set("maxmemory", "1")
        try:
            with pytest.raises(LogUnavailable, match="refuses writes"):
                await open_log(client, partitions=1, groups=GROUPS)
            await client.config_set("maxmemory", "0")
            await open_log(client, partitions=1, groups=GROUPS)
            await client.config_set("maxmemory", "1")
            await open_log(client, partitions=1, groups=GROUPS)
        finally:
            await client.config_set("maxmemory", "0")


@pytest.mark.parametrize("lost", GROUPS)
async def test_a_group_that_was_there_and_is_gone_is_an_alarm(redis_url: str, lost: str) -> None:
    async with connected(redis_url) as client:
        await open_log(client, partitions=1, groups=GROUPS)
        await client.xgroup_destroy(NAMES.log, lost)

        with pytest.raises(LogBroken, match=lost):
            await open_log(client, partitions=1, groups=GROUPS)


async def test_a_group_made_by_a_process_that_died_before_it_was_marked_is_marked_then(
    redis_url: str,
) -> None:
    async with connected(redis_url) as client:
        await client.xgroup_create(NAMES.log, "governance", id="0", mkstream=True)
        await open_log(client, partitions=1, groups=GROUPS)
        await client.xgroup_destroy(NAMES.log, "governance")

        with pytest.raises(LogBroken, match="governance"):
            await open_log(client, partitions=1, groups=GROUPS)


# ---- what was there is never begun anew ----


async def archived_partition_0() -> set[int]:
    return {0}


async def nothing_archived() -> set[int]:
    return set()


async def test_an_empty_redis_is_no_first_start_where_the_archive_has_entries(redis_url: str) -> None:
    async with connected(redis_url) as client:
        with pytest.raises(LogBroken, match=r"holds no log.*streamproc recover"):
            await open_log(client, partitions=1, groups=GROUPS, archived=archived_partition_0)
        assert await client.dbsize() == 0
        await open_log(client, partitions=1, groups=GROUPS, archived=nothing_archived)
        assert await client.exists(NAMES.log)


async def test_while_the_archive_cannot_say_whether_there_was_a_log_none_is_made(redis_url: str) -> None:
    async def away() -> set[int]:
        raise TryAgain("Postgres is away")

    async with connected(redis_url) as client:
        with pytest.raises(TryAgain):
            await open_log(client, partitions=1, groups=GROUPS, archived=away)
        assert await client.dbsize() == 0
        await open_log(client, partitions=1, groups=GROUPS, archived=nothing_archived)
        # A log that is there needs no answer.
        await open_log(client, partitions=1, groups=GROUPS, archived=away)


async def test_a_partition_that_was_made_and_is_gone_is_not_made_again_even_without_an_archive(
    redis_url: str,
) -> None:
    async with connected(redis_url) as client:
        await open_log(client, partitions=2, groups=GROUPS)
        await client.delete(*await client.keys(f"{Names(1).base}:*"))
        with pytest.raises(LogBroken, match=r"partition 1 is gone.*streamproc recover"):
            await open_log(client, partitions=2, groups=GROUPS)
        assert not await client.exists(Names(1).log)


async def test_a_first_start_that_died_between_two_partitions_is_finished(redis_url: str) -> None:
    async with connected(redis_url) as client:
        await client.hset(META, mapping={"partitions": "2", "made:0": "1"})
        await scripts.open_partition(client, Names(0), GROUPS, made_before=False)
        await open_log(client, partitions=2, groups=GROUPS, archived=nothing_archived)
        assert await client.exists(Names(1).log)


async def test_no_role_opens_a_log_that_is_being_recovered(redis_url: str) -> None:
    async with connected(redis_url) as client:
        await open_log(client, partitions=1, groups=GROUPS)
        await client.hset(META, "recovering", "1")
        with pytest.raises(LogBroken, match="run it again"):
            await open_log(client, partitions=1, groups=GROUPS)


async def test_a_stream_is_not_made_under_a_recovery_that_began_meanwhile(redis_url: str) -> None:
    async with connected(redis_url) as client:
        await client.hset(NAMES.recovery, "run", "1")
        with pytest.raises(LogBroken, match="being recovered"):
            await scripts.open_partition(client, NAMES, GROUPS, made_before=False)
        assert not await client.exists(NAMES.log)


async def test_a_running_producer_never_begins_a_new_log_and_takes_up_again_when_there_is_one(
    redis_url: str,
) -> None:
    async with connected(redis_url) as client:
        await open_log(client, partitions=1, groups=GROUPS)
        async with Producer(redis_url, partitions=1, name="webhook") as producer:
            await producer.append(delivery(observed("pout_1")))
            await client.delete(NAMES.log)
            # A repeat is no more in the log than a new one.
            for event in (
                observed("pout_1"),
                observed("pout_2"),
            ):
                with pytest.raises(LogUnavailable, match="streamproc recover"):
                    await producer.append(delivery(event))
            assert not await client.exists(NAMES.log)
            await scripts.open_partition(client, NAMES, GROUPS[:0], made_before=False)
            await client.xgroup_create(NAMES.log, "governance", mkstream=True)
            assert (await producer.append(delivery(observed("pout_2")))).new


async def admit(client: Redis) -> None:
    await scripts.admit(client, NAMES, [Ask("pout_1", 1, 1, None, ())], keep_budgets_s=1)


async def commit(client: Redis) -> None:
    await scripts.commit(client, NAMES, "governance", [scripts.Handover(entry=b"1-0", e=b"[1]")])


async def fire_due(client: Redis) -> None:
    await client.zadd(NAMES.timers, {"[]": 1})
    await scripts.fire_due(client, NAMES)


async def change_state(client: Redis) -> None:
    await scripts.change_state(
        client, NAMES, NAMES.policy, rev=b"0", e=b"[]", m=b"{}", fields=[("defaults", b"{}")]
    )


async def close_letter(client: Redis) -> None:
    letter = await client.xadd(NAMES.dead, {"entry": "1-0", "group": "governance"})
    await letters.close_letter(client, NAMES, closing(letter.decode(), "1-0", group="governance"))


@pytest.mark.parametrize("write", [admit, commit, fire_due, change_state, close_letter])
async def test_a_script_that_finds_no_log_writes_nothing(
    redis_url: str, write: Callable[[Redis], Awaitable[None]]
) -> None:
    async with connected(redis_url) as client:
        with pytest.raises(LogBroken, match=r"sp:\{0\}:log is gone.*streamproc recover"):
            await write(client)
        left = {NAMES.timers.encode(), NAMES.dead.encode()}  # what this test put there
        assert set(await client.keys("*")) <= left
        assert await client.zcard(NAMES.timers) <= 1


async def test_a_probe_is_told_which_partition_has_no_stream(redis_url: str) -> None:
    async with connected(redis_url) as client:
        await open_log(client, partitions=3, groups=GROUPS)
        assert await logs_gone(client, 3) == []
        await client.delete(Names(1).log)
        assert await logs_gone(client, 3) == [1]


async def test_a_group_that_is_new_on_a_log_that_others_have_read_begins_at_its_end_and_is_marked(
    redis_url: str,
) -> None:
    async with connected(redis_url) as client:
        await open_log(client, partitions=1, groups=GROUPS)
        await client.xadd(NAMES.log, {"e": "[]", "m": "{}"})
        both = (*GROUPS, "notification")
        for _ in range(2):
            await open_log(client, partitions=1, groups=both, from_end=["notification"])
        rows = {row["name"].decode(): row for row in await client.xinfo_groups(NAMES.log)}
        last = (await client.xinfo_stream(NAMES.log))["last-generated-id"]
        assert rows["notification"]["last-delivered-id"] == last
        assert rows["governance"]["last-delivered-id"] == b"0-0"
        marks = await client.hgetall(NAMES.groups)
        assert marks == {b"governance": b"1", b"execution": b"1", b"notification": b"late"}


async def test_a_group_of_the_end_begins_at_the_beginning_of_a_log_that_is_new(redis_url: str) -> None:
    async with connected(redis_url) as client:
        await open_log(client, partitions=1, groups=(*GROUPS, "notification"), from_end=["notification"])
        rows = await client.xinfo_groups(NAMES.log)
        assert {row["last-delivered-id"] for row in rows} == {b"0-0"}
        assert (await client.hgetall(NAMES.groups))[b"notification"] == b"1"
