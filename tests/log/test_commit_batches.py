"""`commit.lua` acknowledges and appends each input exactly once, whatever it is sent."""

from collections.abc import AsyncIterator

import pytest
from redis.asyncio import Redis

from streamproc.log import scripts
from streamproc.log.connection import connected
from streamproc.log.names import Names
from streamproc.log.scripts import Committed, Handover

NAMES = Names(0)


@pytest.fixture
async def client(redis_url: str) -> AsyncIterator[Redis]:
    async with connected(redis_url) as client:
        yield client


async def taken(client: Redis, count: int) -> list[bytes]:
    """Entries that were read by a group and are pending."""
    await client.xgroup_create(NAMES.log, "g", id="0", mkstream=True)
    for _ in range(count):
        await client.xadd(NAMES.log, {"e": "[]", "m": "{}"})
    reply = await client.execute_command(
        "XREADGROUP", "GROUP", "g", "c", "COUNT", count, "STREAMS", NAMES.log, ">"
    )
    return [entry for entry, _ in reply[0][1]]


def output(entry: bytes, payout: str = "", version: bytes = b"-1") -> Handover:
    return Handover(entry=entry, payout=payout, version=version, record=b"{}" if payout else b"", e=b"[1]")


async def committed(client: Redis, *handovers: Handover) -> list[Committed]:
    return await scripts.commit(client, NAMES, "g", handovers)


async def test_a_batch_is_acknowledged_and_appended_once_even_when_it_is_sent_twice(client: Redis) -> None:
    batch = [output(entry) for entry in await taken(client, 5)]
    assert await committed(client, *batch) == [Committed.DONE] * 5
    assert await committed(client, *batch) == [Committed.ALREADY] * 5
    assert await client.xlen(NAMES.log) == 10
    assert (await client.xpending(NAMES.log, "g"))["pending"] == 0


async def test_an_input_that_is_named_twice_in_a_batch_is_appended_once(client: Redis) -> None:
    first, second = await taken(client, 2)
    batch = [output(first), output(second), output(first)]
    assert await committed(client, *batch) == [Committed.DONE, Committed.DONE, Committed.ALREADY]
    assert await client.xlen(NAMES.log) == 4


async def test_inputs_in_any_order_are_acknowledged(client: Redis) -> None:
    entries = await taken(client, 3)
    assert await committed(client, *map(output, reversed(entries))) == [Committed.DONE] * 3
    assert (await client.xpending(NAMES.log, "g"))["pending"] == 0


async def test_a_payout_that_moved_on_leaves_its_input_pending_and_its_neighbours_commit(
    client: Redis,
) -> None:
    first, second, third = await taken(client, 3)
    assert await committed(client, output(first, "pout_1", b"0")) == [Committed.DONE]
    late, other = output(second, "pout_1", b"0"), output(third, "pout_2", b"0")
    assert await committed(client, late, other) == [Committed.STALE, Committed.DONE]
    assert (await client.xpending(NAMES.log, "g"))["min"] == second


async def test_two_inputs_of_one_payout_in_a_batch_see_each_other(client: Redis) -> None:
    first, second = await taken(client, 2)
    batch = [output(first, "pout_1", b"0"), output(second, "pout_1", b"0")]
    assert await committed(client, *batch) == [Committed.DONE, Committed.STALE]


async def test_a_payout_hash_of_a_wrong_type_is_found_before_anything_is_written(client: Redis) -> None:
    first, second = await taken(client, 2)
    await client.set(NAMES.payout("pout_2"), "not a hash")
    with pytest.raises(Exception, match=r"wrong kind of value|WRONGTYPE"):
        await committed(client, output(first), output(second, "pout_2", b"0"))
    assert await client.xlen(NAMES.log) == 2
    assert (await client.xpending(NAMES.log, "g"))["pending"] == 2


async def test_a_load_tells_what_is_known_of_each_payout_and_nothing_where_none_is_known(
    client: Redis,
) -> None:
    (entry,) = await taken(client, 1)
    assert (await scripts.load(client, NAMES, ["pout_1", "pout_2"]))[2] == [scripts.NO_ROW] * 2
    assert await committed(client, output(entry, "pout_2", b"0")) == [Committed.DONE]
    _, _, rows, _ = await scripts.load(client, NAMES, ["pout_1", "pout_2", "pout_3"])
    assert rows == [scripts.NO_ROW, [b"1", b"{}", None], scripts.NO_ROW]
    assert (await scripts.load(client, NAMES, []))[2] == []
