"""`trim.lua`: what somebody may still need stays, and it is said who that is."""

from collections.abc import AsyncIterator

import pytest
from redis.asyncio import Redis

from streamproc.errors import LogBroken
from streamproc.log import trim as trimming
from streamproc.log.connection import connected
from streamproc.log.health import group_states
from streamproc.log.names import Names
from streamproc.log.stream import open_log
from streamproc.log.trim import Trimmed, trim, trim_round

NAMES = Names(0)
GROUPS = ("governance", "execution")
ENTRIES = 300
"""More than a node of the stream holds (100), since whole nodes go."""


@pytest.fixture
async def client(redis_url: str) -> AsyncIterator[Redis]:
    async with connected(redis_url) as client:
        await open_log(client, partitions=1, groups=GROUPS)
        yield client


async def appended(client: Redis, ids: list[str] | None = None, count: int = ENTRIES) -> list[str]:
    """Entries with these ids, which are long ago; by default 1-1, 1-2, ..."""
    wanted = ids or [f"1-{n}" for n in range(1, count + 1)]
    for entry in wanted:
        await client.execute_command("XADD", NAMES.log, entry, "e", "[]", "m", "{}")
    return wanted


async def read(client: Redis, group: str, count: int, *, ack: bool) -> None:
    reply = await client.execute_command(
        "XREADGROUP", "GROUP", group, "a", "COUNT", count, "STREAMS", NAMES.log, ">"
    )
    if ack:
        await client.execute_command("XACK", NAMES.log, group, *(row[0] for row in reply[0][1]))


async def left(client: Redis) -> list[str]:
    return [row[0].decode() for row in await client.execute_command("XRANGE", NAMES.log, "-", "+")]


async def cut(client: Redis, anchor: str, *, retention_s: float = 0.0, look_only: bool = False) -> Trimmed:
    return await trim(client, NAMES, anchor=anchor, retention_s=retention_s, look_only=look_only)


async def test_what_all_have_done_with_goes_and_the_archives_last_entry_stays(client: Redis) -> None:
    ids = await appended(client)
    for group in GROUPS:
        await read(client, group, ENTRIES, ack=True)

    found = await cut(client, ids[-2])

    assert found.held_by.what == "archive"
    assert (found.first, found.cut) == (ids[0], ids[-2])
    assert found.removed == ENTRIES - len(await left(client)) > 0
    assert (await left(client))[-2:] == ids[-2:]
    assert [state.lag for state in await group_states(client, [0], GROUPS)] == [0, 0]


async def test_a_full_server_is_trimmed_also_by_a_process_that_has_just_started(client: Redis) -> None:
    """Nothing else of ours frees memory."""
    ids = await appended(client)
    for group in GROUPS:
        await read(client, group, ENTRIES, ack=True)
    await client.config_set("maxmemory", "1")
    try:
        await open_log(client, partitions=1, groups=GROUPS)
        assert (await cut(client, ids[-1])).removed > 0
    finally:
        await client.config_set("maxmemory", "0")


async def test_an_entry_in_somebodys_hands_stays_and_all_that_came_after_it(client: Redis) -> None:
    ids = await appended(client)
    await read(client, "governance", ENTRIES, ack=True)
    await read(client, "execution", 210, ack=True)
    await read(client, "execution", 10, ack=False)

    found = await cut(client, ids[-1])

    assert (found.held_by.what, found.held_by.entry) == ("pending execution", ids[210])
    assert (await left(client))[-90:] == ids[210:]


async def test_what_a_group_was_not_given_yet_stays(client: Redis) -> None:
    ids = await appended(client)
    await read(client, "governance", 250, ack=True)
    await read(client, "execution", ENTRIES, ack=True)

    found = await cut(client, ids[-1])

    assert (found.held_by.what, found.held_by.entry) == ("read governance", ids[249])
    assert set(ids[249:]) <= set(await left(client))


async def test_a_group_that_nobody_knows_holds_the_log_too_and_is_named(client: Redis) -> None:
    ids = await appended(client)
    for group in GROUPS:
        await read(client, group, ENTRIES, ack=True)
    await client.xgroup_create(NAMES.log, "somebody", id="0")

    found = await cut(client, ids[-1])

    assert (found.removed, found.held_by.what) == (0, "read somebody")


async def test_an_entry_younger_than_the_retention_stays_and_an_older_one_goes(client: Redis) -> None:
    now_ms = (await client.time())[0] * 1000
    two_hours_ms, half_an_hour_ms = 7_200_000, 1_800_000
    ids = await appended(client, [f"{now_ms - two_hours_ms}-{n}" for n in range(ENTRIES)])
    young = await appended(client, [f"{now_ms - half_an_hour_ms}-{n}" for n in range(ENTRIES)])
    for group in GROUPS:
        await read(client, group, 2 * ENTRIES, ack=True)

    found = await cut(client, young[-1], retention_s=3600)

    assert found.held_by.what == "retention"
    assert set(young) <= set(await left(client))
    assert ids[0] not in await left(client)


async def test_nothing_goes_before_anything_is_archived(client: Redis) -> None:
    await appended(client)
    for group in GROUPS:
        await read(client, group, ENTRIES, ack=True)
    assert (await cut(client, "0-0")).removed == 0


async def test_a_look_removes_nothing_and_finds_the_same(client: Redis) -> None:
    ids = await appended(client)
    for group in GROUPS:
        await read(client, group, ENTRIES, ack=True)

    looked = await cut(client, ids[-1], look_only=True)

    assert await left(client) == ids
    done = await cut(client, ids[-1])
    assert (done.first, done.cut, done.held_by.what) == (looked.first, looked.cut, looked.held_by.what)


async def test_ids_beyond_what_a_double_can_tell_apart_are_compared_exactly(client: Redis) -> None:
    ids = await appended(client, [f"1-{2**63 + n}" for n in range(300)])
    for group in GROUPS:
        await read(client, group, ENTRIES, ack=True)
    await client.execute_command("XGROUP", "SETID", NAMES.log, "execution", ids[-120])

    found = await cut(client, ids[-1])  # as a double it is where the group is

    assert found.cut == ids[-120]
    assert set(ids[-120:]) <= set(await left(client))
    assert found.removed > 0


async def test_one_call_is_bounded_and_the_next_goes_on(
    client: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trimming, "ENTRIES_MAX", 100)
    ids = await appended(client)
    for group in GROUPS:
        await read(client, group, ENTRIES, ack=True)
    assert [(await cut(client, ids[-1])).removed for _ in range(4)] == [100, 100, 0, 0]
    assert (await left(client)) == ids[200:]


@pytest.mark.parametrize(
    ("calls_max", "told", "more"),
    [(1, [100], True), (2, [100, 200], True), (3, [100, 200], False), (250, [100, 200], False)],
)
async def test_a_round_ends_with_the_log_or_by_its_limit_and_tells_what_went_so_far(
    client: Redis, monkeypatch: pytest.MonkeyPatch, calls_max: int, told: list[int], more: bool
) -> None:
    monkeypatch.setattr(trimming, "ENTRIES_MAX", 100)
    ids = await appended(client)
    for group in GROUPS:
        await read(client, group, ENTRIES, ack=True)
    heard: list[int] = []
    done, ended_by_limit = await trim_round(
        client, NAMES, anchor=ids[-1], retention_s=0.0, calls_max=calls_max, on_removed=heard.append
    )
    assert (heard, ended_by_limit) == (told, more)
    assert (done.removed, done.first, done.cut) == (told[-1], ids[0], ids[-1])
    assert await left(client) == ids[told[-1] :]


async def test_where_a_group_the_anchor_or_the_log_is_gone_nothing_is_trimmed(client: Redis) -> None:
    ids = await appended(client)
    for group in GROUPS:
        await read(client, group, ENTRIES, ack=True)

    with pytest.raises(LogBroken, match="last entry 1-9999"):
        await cut(client, "1-9999")
    await client.xgroup_destroy(NAMES.log, "execution")
    with pytest.raises(LogBroken, match="group execution"):
        await cut(client, ids[-1])
    assert await left(client) == ids
    await client.delete(NAMES.log)
    with pytest.raises(LogBroken, match="is gone"):
        await cut(client, ids[-1])
