"""`defer.lua`: the longer an entry could not be handled, the longer it waits; attempts and waits are counted apart."""

import pytest
from redis.asyncio import Redis
from redis.exceptions import ResponseError

from streamproc.log import scripts
from streamproc.log.names import Names
from streamproc.log.scripts import Backoff, Deferral
from tests.log.test_grant import pending

NAMES = Names(0)
BACKOFF = Backoff(first_s=10.0, longest_s=60.0, longest_wait_s=30.0)
CALL_S = 5.0
"""How long a call may take here."""


async def delays(
    client: Redis, entry: bytes, times: int, *, counts: bool, least_s: float = 0.0
) -> list[float]:
    """How long it is deferred each time (s)."""
    found = []
    for _ in range(times):
        seconds, us = await client.time()
        await scripts.defer(client, NAMES, "g", [Deferral(entry, least_s, counts)], BACKOFF)
        due = await client.zscore(NAMES.retries("g"), entry)
        found.append(due / 1e6 - seconds - us / 1e6)
    return found


@pytest.mark.parametrize(
    ("counts", "steps"), [(True, [10.0, 20.0, 40.0, 60.0, 60.0]), (False, [10.0, 20.0, 30.0, 30.0, 30.0])]
)
async def test_each_delay_is_twice_the_one_before_less_up_to_half_of_it_as_far_as_the_longest(
    client: Redis, counts: bool, steps: list[float]
) -> None:
    found = await delays(client, await pending(client), len(steps), counts=counts)
    for step, delay in zip(steps, found, strict=True):
        assert step / 2 <= delay <= step + CALL_S


async def test_a_delay_is_never_shorter_than_what_was_asked_for(client: Redis) -> None:
    (delay,) = await delays(client, await pending(client), 1, counts=False, least_s=500.0)
    assert 500.0 <= delay <= 500.0 + CALL_S


async def test_after_a_thousand_times_an_entry_waits_as_long_as_after_ten(client: Redis) -> None:
    entry = await pending(client)
    await client.hset(NAMES.tries("g"), entry, 5_000)
    (delay,) = await delays(client, entry, 1, counts=True)
    assert BACKOFF.longest_s / 2 <= delay <= BACKOFF.longest_s + CALL_S


async def test_failed_attempts_and_waits_of_each_entry_are_counted_apart(client: Redis) -> None:
    first, second = await pending(client), await pending(client)
    batch = [Deferral(first, 0.0, True), Deferral(second, 0.0, False)]
    assert await scripts.defer(client, NAMES, "g", batch, BACKOFF) == [1, 1]
    assert await scripts.defer(client, NAMES, "g", list(reversed(batch)), BACKOFF) == [2, 2]
    other = [Deferral(first, 0.0, False), Deferral(second, 0.0, True)]
    assert await scripts.defer(client, NAMES, "g", other, BACKOFF) == [1, 1]


async def test_what_is_finished_or_in_other_hands_is_left_alone_and_the_others_are_deferred(
    client: Redis,
) -> None:
    mine, finished, elsewhere = [await pending(client) for _ in range(3)]
    await client.xack(NAMES.log, "g", finished)
    await client.execute_command("XCLAIM", NAMES.log, "g", "other", 0, elsewhere)
    batch = [Deferral(entry, 0.0, True) for entry in (finished, mine, elsewhere)]
    assert await scripts.defer(client, NAMES, "g", batch, BACKOFF, "c") == [0, 1, 0]
    assert await client.zrange(NAMES.retries("g"), 0, -1) == [mine]
    assert await client.hgetall(NAMES.tries("g")) == {mine: b"1"}
    assert await scripts.due_retries(client, NAMES, "g", "c", limit=9) == [], "nothing is due yet"


async def test_what_is_due_later_than_anything_is_deferred_is_due_since_the_clock_went_back(
    client: Redis,
) -> None:
    early, longest = [await pending(client) for _ in range(2)]
    asked = [Deferral(entry, least_s, False) for entry, least_s in ((early, 60.0), (longest, 1e6))]
    await scripts.defer(client, NAMES, "g", asked, BACKOFF)
    assert await scripts.due_retries(client, NAMES, "g", "d", limit=9) == []  # by the clock as it was
    hour_us = 3_600_000_000
    await client.zincrby(NAMES.retries("g"), hour_us, early)  # as if the clock had gone back by an hour since
    assert [entry for entry, _ in await scripts.due_retries(client, NAMES, "g", "d", limit=9)] == [early]
    assert await client.zrange(NAMES.retries("g"), 0, -1) == [longest]


async def test_one_look_for_what_is_due_takes_no_more_than_it_asks_for_the_longest_due_first(
    client: Redis,
) -> None:
    entries = [await pending(client) for _ in range(3)]
    for at, entry in enumerate(reversed(entries), 1):
        await client.zadd(NAMES.retries("g"), {entry: at})
    found = await scripts.due_retries(client, NAMES, "g", "d", limit=2)
    assert [entry for entry, _ in found] == [entries[2], entries[1]]
    assert await client.zrange(NAMES.retries("g"), 0, -1) == [entries[0]]


async def test_a_timer_fires_from_the_microsecond_on_in_which_it_is_due(client: Redis) -> None:
    seconds, us = await client.time()
    now = seconds * 1_000_000 + us
    await client.zadd(NAMES.timers, {"[1]": now, "[2]": now + 60_000_000})
    assert await scripts.fire_due(client, NAMES) == 1
    assert await client.zrange(NAMES.timers, 0, -1) == [b"[2]"]


async def test_one_look_at_the_timers_fires_no_more_than_a_batch_and_the_next_goes_on(
    client: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scripts, "BATCH_MAX", 2)
    await client.zadd(NAMES.timers, {f"[{n}]": n for n in (3, 1, 2)})
    assert [await scripts.fire_due(client, NAMES) for _ in range(3)] == [2, 1, 0]
    rows = await client.xrange(NAMES.log)
    assert [fields for _, fields in rows] == [
        [b"e", f"[{n}]".encode(), b"m", b'{"by":"timers"}'] for n in (1, 2, 3)
    ]


@pytest.mark.parametrize("limit", [0, -1])
async def test_a_look_without_a_limit_is_refused_and_takes_nothing(
    client: Redis, monkeypatch: pytest.MonkeyPatch, limit: int
) -> None:
    """Redis takes a negative count for all, which would hold up its one thread for as long as there are any."""
    monkeypatch.setattr(scripts, "BATCH_MAX", limit)
    await client.zadd(NAMES.timers, {"[1]": 1})
    await client.zadd(NAMES.retries("g"), {await pending(client): 1})
    with pytest.raises(ResponseError, match="not a whole number"):
        await scripts.fire_due(client, NAMES)
    with pytest.raises(ResponseError, match="not a whole number"):
        await scripts.due_retries(client, NAMES, "g", "d", limit=limit)
    assert (await client.zcard(NAMES.timers), await client.zcard(NAMES.retries("g"))) == (1, 1)
