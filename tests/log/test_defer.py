"""`defer.lua`: the longer an entry could not be handled, the longer it waits; attempts and waits are counted apart; and
that nothing was sent outside for it is known to whoever takes it up, as long as that is certain."""

from pathlib import Path

import pytest
from redis.asyncio import Redis
from redis.exceptions import ResponseError

from streamproc.log import claims, scripts
from streamproc.log.connection import connected
from streamproc.log.names import Names
from streamproc.log.scripts import Backoff, Deferral, Handover
from tests import servers
from tests.log.test_grant import pending
from tests.restartable import restartable

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
    assert (await scripts.due_retries(client, NAMES, "g", "c", limit=9)).entries == [], "nothing is due yet"


async def test_what_is_due_later_than_anything_is_deferred_is_due_since_the_clock_went_back(
    client: Redis,
) -> None:
    early, longest = [await pending(client) for _ in range(2)]
    asked = [Deferral(entry, least_s, False) for entry, least_s in ((early, 60.0), (longest, 1e6))]
    await scripts.defer(client, NAMES, "g", asked, BACKOFF)
    assert (
        await scripts.due_retries(client, NAMES, "g", "d", limit=9)
    ).entries == []  # by the clock as it was
    hour_us = 3_600_000_000
    await client.zincrby(NAMES.retries("g"), hour_us, early)  # as if the clock had gone back by an hour since
    assert [entry for entry, _ in (await scripts.due_retries(client, NAMES, "g", "d", limit=9)).entries] == [
        early
    ]
    assert await client.zrange(NAMES.retries("g"), 0, -1) == [longest]


async def test_one_look_for_what_is_due_takes_no_more_than_it_asks_for_the_longest_due_first(
    client: Redis,
) -> None:
    entries = [await pending(client) for _ in range(3)]
    for at, entry in enumerate(reversed(entries), 1):
        await client.zadd(NAMES.retries("g"), {entry: at})
    found = (await scripts.due_retries(client, NAMES, "g", "d", limit=2)).entries
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


# ---- what is known to be unsent ---------------------------------------------------------

AT_ONCE = Backoff(first_s=0.0, longest_s=0.0, longest_wait_s=0.0)


async def put_off(client: Redis, entry: bytes, *, unsent: bool = True, counts: bool = False) -> None:
    assert await scripts.defer(client, NAMES, "g", [Deferral(entry, 0.0, counts, unsent)], AT_ONCE, "c")


async def taken_up(client: Redis, entry: bytes) -> bool:
    """Take it up. Returns whether it is known that nothing was sent for it."""
    due = await scripts.due_retries(client, NAMES, "g", "c", limit=9)
    assert [found for found, _ in due.entries] == [entry]
    return entry in due.unsent


async def test_what_was_put_off_each_time_before_anything_was_sent_is_taken_up_as_that_and_leaves_no_trace(
    client: Redis,
) -> None:
    entry = await pending(client)
    for counts in (False, True, False):
        await put_off(client, entry, counts=counts)
        assert await taken_up(client, entry)
    await put_off(client, entry)
    await scripts.commit(client, NAMES, "g", [Handover(entry, taken=True)])
    assert await client.exists(NAMES.retries("g"), NAMES.tries("g")) == 0


async def test_what_was_deferred_after_something_may_have_been_sent_is_not_taken_for_unsent(
    client: Redis,
) -> None:
    entry = await pending(client)
    await put_off(client, entry)
    assert await taken_up(client, entry)
    await put_off(client, entry, unsent=False)
    assert not await taken_up(client, entry)


async def test_who_dies_with_an_entry_in_hand_may_have_sent_something_for_it(client: Redis) -> None:
    entry = await pending(client)
    await put_off(client, entry)
    assert await taken_up(client, entry)
    await client.execute_command("XCLAIM", NAMES.log, "g", "c", 0, entry, "JUSTID")  # of the dead one
    (up,) = await claims.take_up(client, NAMES, "g", "c", [entry], most=9)
    assert up.entry is not None
    await put_off(client, entry, unsent=False)
    assert not await taken_up(client, entry)


async def test_a_worker_of_an_earlier_version_that_had_it_meanwhile_may_have_sent_something(
    client: Redis,
) -> None:
    """It takes an entry up and defers it, or makes a dead letter that is given back, and leaves the note."""
    entry = await pending(client)
    await put_off(client, entry)
    await client.hincrby(NAMES.tries("g"), entry.decode() + ":waits", 1)
    assert not await taken_up(client, entry)
    await put_off(client, entry)
    assert not await taken_up(client, entry), "nor can it be known any more"

    other = await pending(client)
    await put_off(client, other)
    await client.hdel(NAMES.tries("g"), other, other.decode() + ":waits")
    assert not await taken_up(client, other)


async def test_a_deferral_that_comes_after_its_entry_was_taken_up_again_does_not_say_that_nothing_was_sent(
    client: Redis,
) -> None:
    """Its worker gave up waiting for the answer, and connected anew: what it sends from then on is not in the note."""
    entry = await pending(client)
    (up,) = await claims.take_up(client, NAMES, "g", "c", [entry], most=None)
    assert up.entry is not None
    await put_off(client, entry)
    assert not await taken_up(client, entry)


@pytest.mark.parametrize("is_put_off", [True, False], ids=["put it off", "died"])
async def test_who_had_it_before_another_one_cannot_say_that_nothing_was_sent(
    client: Redis, is_put_off: bool
) -> None:
    """The worker slept with the entry in hand and another one sent something. Then it was given the entry once more,
    before what it had begun came to its end."""
    entry = await pending(client)
    await client.execute_command("XCLAIM", NAMES.log, "g", "other", 0, entry, "JUSTID")
    (up,) = await claims.take_up(client, NAMES, "g", "other", [entry], most=9)
    assert up.entry is not None
    if is_put_off:
        await scripts.defer(client, NAMES, "g", [Deferral(entry, 0.0, False)], AT_ONCE, "other")
        assert not await taken_up(client, entry)
    else:
        await client.execute_command("XCLAIM", NAMES.log, "g", "c", 0, entry, "JUSTID")
    await put_off(client, entry)
    assert not await taken_up(client, entry)


async def test_a_deferral_that_comes_late_says_nothing_once_something_may_have_been_sent(
    client: Redis,
) -> None:
    """Its worker gave up waiting for the answer, and had the entry once more. As it counts too, there were as many
    deferrals as deliveries in the end."""
    entry = await pending(client)
    await client.execute_command("XCLAIM", NAMES.log, "g", "other", 0, entry, "JUSTID")
    (up,) = await claims.take_up(client, NAMES, "g", "other", [entry], most=9)
    assert up.entry is not None
    await scripts.defer(
        client, NAMES, "g", [Deferral(entry, 0.0, counts=False, unsent=False)], AT_ONCE, "other"
    )
    assert not await taken_up(client, entry)
    await put_off(client, entry, unsent=False)
    await put_off(client, entry)  # the late one
    assert not await taken_up(client, entry)


@pytest.mark.parametrize("is_earlier", [True, False], ids=["an earlier version", "this version"])
async def test_a_note_that_a_dead_letter_of_an_earlier_version_left_never_holds_again(
    client: Redis, is_earlier: bool
) -> None:
    """Given back, the entry was deferred as often as the note says, after something may have been sent."""
    entry = await pending(client)
    await put_off(client, entry)
    await client.xack(NAMES.log, "g", entry)
    await client.hdel(NAMES.tries("g"), entry, entry.decode() + ":waits")
    await client.execute_command("XCLAIM", NAMES.log, "g", "redrive", 0, entry, "FORCE", "JUSTID")
    if is_earlier:  # it does not look at the note when it takes the entry up
        await client.execute_command("XCLAIM", NAMES.log, "g", "c", 0, entry)
        await client.zrem(NAMES.retries("g"), entry)
    else:
        assert not await taken_up(client, entry)
    await put_off(client, entry, unsent=False)
    assert not await taken_up(client, entry)


async def test_another_run_of_the_server_may_have_been_set_back_to_before_something_was_sent(
    tmp_path: Path,
) -> None:
    async with restartable(lambda: servers.redis(tmp_path)) as store:
        async with connected(await store.up()) as client:
            await client.xgroup_create(NAMES.log, "g", id="0", mkstream=True)
            entry = await pending(client)
            await put_off(client, entry)
        await store.down()
        async with connected(await store.up()) as client:
            assert set(await client.hkeys(NAMES.tries("g"))) == {entry + b":waits", entry + b":unsent"}
            assert not await taken_up(client, entry)
