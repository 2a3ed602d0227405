"""A group is not given what it wrote itself, where that comes next; and nothing else is ever passed over."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from redis.asyncio import Redis

from streamproc.domain.events import PayoutDecided
from streamproc.log import scripts
from streamproc.log.batch import Limits
from streamproc.log.connection import connected
from streamproc.log.group import Consumer
from streamproc.log.names import Names
from streamproc.log.scripts import Handover
from streamproc.log.stream import open_log
from streamproc.log.work import Group
from tests.engine import Engine
from tests.words import ACCOUNT, observed

NAMES = Names(0)
RUN_MIN = 8
"""Entries, as own.lua has it: fewer are not noted."""
RUNS_MAX = 1_000
"""Runs that are kept, as own.lua has it."""
CROWDS = (1, 1, 2, 1, 3, 1, 30, 1, 1, 9, 2, 2, 5, 300, 1, 1, 1, 12, 3, 1, 1)


@pytest.fixture
async def client(redis_url: str) -> AsyncIterator[Redis]:
    async with connected(redis_url) as client:
        await open_log(client, partitions=1, groups=("g", "other"))
        yield client


async def append(client: Redis, count: int) -> list[bytes]:
    """Entries of somebody else."""
    entries: list[bytes] = []
    for _ in range(count):
        entry: bytes = await client.xadd(NAMES.log, {"e": "[]", "m": '{"by":"p"}'})
        entries.append(entry)
    return entries


async def read(client: Redis, count: int, group: str = "g") -> list[bytes]:
    """What the group is given, as long as it is no output of its own."""
    reply = await client.execute_command(
        "XREADGROUP", "GROUP", group, "c", "COUNT", count, "STREAMS", NAMES.log, ">"
    )
    return [entry for entry, _ in reply[0][1]] if reply else []


async def commit(client: Redis, entries: Sequence[bytes]) -> None:
    """Each entry is acknowledged, and has one output."""
    outputs = [Handover(entry=entry, e=b"[1]", m=b'{"by":"g"') for entry in entries]
    await scripts.commit(client, NAMES, "g", outputs)


async def standing(client: Redis, group: str = "g") -> dict[str, Any]:
    (row,) = [row for row in await client.xinfo_groups(NAMES.log) if row["name"] == group.encode()]
    return dict(row)


async def test_what_is_written_where_everything_was_read_is_not_delivered_to_who_wrote_it(
    client: Redis,
) -> None:
    await append(client, 3)
    await commit(client, await read(client, 10))
    row = await standing(client)
    assert (row["lag"], row["pending"], row["entries-read"]) == (0, 0, 6)
    assert await read(client, 10) == []
    assert len(await read(client, 10, "other")) == 6


async def test_where_others_lie_before_it_it_is_passed_over_once_those_are_read(client: Redis) -> None:
    await append(client, RUN_MIN)
    mine = await read(client, RUN_MIN)
    before = await append(client, 2)
    await commit(client, mine)
    after = await append(client, 2)
    assert await scripts.pass_own(client, NAMES, "g") == 0
    assert await read(client, 2) == before
    assert await scripts.pass_own(client, NAMES, "g") == RUN_MIN
    assert await read(client, 100) == after
    assert (await standing(client))["lag"] == 0


async def test_a_run_that_was_read_in_part_is_passed_over_from_there(client: Redis) -> None:
    await append(client, RUN_MIN)
    mine = await read(client, RUN_MIN)
    before = await append(client, 1)
    await commit(client, mine)
    after = await append(client, 1)
    assert (await read(client, 4))[0] == before[0]
    assert await scripts.pass_own(client, NAMES, "g") == RUN_MIN - 3
    assert await read(client, 100) == after
    assert (await standing(client))["lag"] == 0


async def test_who_reads_on_from_its_own_outputs_is_given_what_comes_after_them(
    client: Redis, redis_url: str
) -> None:
    await append(client, RUN_MIN)
    mine = await read(client, RUN_MIN)
    before = await append(client, 1)
    await commit(client, mine)
    after = await append(client, 1)
    consumer = Consumer(redis_url, 0, Group(name="g", stages=(), read_max=4), name="c", limits=Limits())
    entries = (await consumer._read_on(client, [])).entries
    assert (len(entries), entries[0][0]) == (4, before[0])
    assert [entry for entry, _ in (await consumer._read_on(client, entries)).entries] == after


async def test_no_more_runs_are_kept_than_the_limit_and_what_is_not_kept_is_delivered(client: Redis) -> None:
    await append(client, RUN_MIN)
    mine = await read(client, RUN_MIN)
    before = await append(client, 1)
    await client.zadd(NAMES.own("g"), {f"{2**43}-{n} {2**43}-{n}": 2**43 for n in range(RUNS_MAX)})
    await commit(client, mine)
    assert await client.zcard(NAMES.own("g")) == RUNS_MAX
    assert await read(client, 1) == before
    assert await scripts.pass_own(client, NAMES, "g") == 0
    assert len(await read(client, 100)) == RUN_MIN


async def test_a_few_outputs_are_no_run_and_as_many_as_a_run_needs_are_one(client: Redis) -> None:
    for count, runs in ((RUN_MIN - 1, 0), (RUN_MIN, 1)):
        await append(client, count)
        mine = await read(client, 100)
        await append(client, 1)
        await commit(client, mine)
        assert await client.zcard(NAMES.own("g")) == runs
        await read(client, 100)


async def test_a_group_whose_lag_is_not_known_passes_over_nothing(client: Redis) -> None:
    await client.xadd(NAMES.log, {"e": "[]", "m": "{}"}, id="1-1")
    (entry,) = await read(client, 1)
    await client.execute_command("XGROUP", "SETID", NAMES.log, "g", entry)
    await commit(client, [entry])
    assert len(await read(client, 10)) == 1


async def test_a_group_that_was_set_past_the_logs_end_is_not_set_back_to_it(client: Redis) -> None:
    await append(client, 1)
    mine = await read(client, 1)
    ahead = f"{2**45}-0".encode()
    await client.execute_command("XGROUP", "SETID", NAMES.log, "g", ahead, "ENTRIESREAD", 1)
    await commit(client, mine)
    assert (await standing(client))["last-delivered-id"] == ahead


async def test_a_key_of_a_wrong_type_fails_a_commit_before_anything_is_written(client: Redis) -> None:
    await append(client, 1)
    (entry,) = await read(client, 1)
    await client.set(NAMES.own("g"), "x")
    with pytest.raises(Exception, match="not what it must be"):
        await commit(client, [entry])
    assert (await client.xlen(NAMES.log), (await standing(client))["pending"]) == (1, 1)


steps = st.lists(
    st.one_of(
        st.tuples(st.just("append"), st.integers(1, 12)),
        st.tuples(st.just("read"), st.integers(1, 12)),
        st.tuples(st.just("commit"), st.integers(1, 20)),
        st.tuples(st.just("pass"), st.just(0)),
    ),
    max_size=30,
)


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(history=steps)
async def test_everything_of_others_is_delivered_once_in_whatever_order_things_happen(
    client: Redis, history: list[tuple[str, int]]
) -> None:
    await client.flushdb()
    await open_log(client, partitions=1, groups=("g", "other"))
    theirs: list[bytes] = []
    given: list[bytes] = []
    in_hand: list[bytes] = []
    for step, count in [*history, ("pass", 0), ("read", 10_000)]:
        if step == "append":
            theirs += await append(client, count)
        elif step == "read":
            entries = await read(client, count)
            given += entries
            in_hand += [entry for entry in entries if entry in theirs]
        elif step == "commit":
            await commit(client, in_hand[:count])
            in_hand = in_hand[count:]
        else:
            await scripts.pass_own(client, NAMES, "g")
    assert [entry for entry in given if entry in theirs] == theirs
    assert len(set(given)) == len(given)
    row = await standing(client)
    assert (row["lag"], row["entries-read"] or 0) == (0, await client.xlen(NAMES.log))
    assert len(await read(client, 10_000, "other")) == await client.xlen(NAMES.log)


async def test_two_workers_over_payouts_that_come_alone_and_in_crowds_are_given_each_once_and_leave_nothing(
    redis_url: str,
) -> None:
    """Outputs of one lie between what the other reads: whatever is passed over, it is never a payout."""
    async with Engine(redis_url, workers=2) as engine:
        await engine.apply("policies: {bot: {daily_limit: 100000000, rate_limit: {count: 0, window: 60}}}")
        payouts = [f"pout_{n}" for n in range(sum(CROWDS))]
        waiting = iter(payouts)
        for crowd in CROWDS:
            events = [observed(next(waiting), 100, agent="bot") for _ in range(crowd)]
            await asyncio.gather(*(engine.append(ACCOUNT, event) for event in events))
            if crowd % 3 == 0:  # else the next come while these are in hand
                await engine.settled()
        await engine.settled()
        decided = Counter(
            event.payout
            for entry in await engine.entries()
            for event in entry
            if isinstance(event, PayoutDecided)
        )
        row = await standing(engine.client, "governance")
        assert (row["lag"], row["pending"]) == (0, 0)
        assert row["entries-read"] == await engine.client.xlen(NAMES.log)
    assert decided == Counter(payouts)
