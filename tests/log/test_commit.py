"""`commit.lua`: each input is handed over once, whoever holds it and however often the call is sent."""

import asyncio
from collections.abc import Sequence

import pytest
from redis.asyncio import Redis

from streamproc.domain.events import PayoutObserved, ReviewRefused, TimerFired
from streamproc.domain.wire import encode_events
from streamproc.log import claims, letters, scripts
from streamproc.log.batch import Handler, Limits
from streamproc.log.names import Names
from streamproc.log.scripts import Backoff, Committed, Deferral, Handover
from streamproc.log.work import BatchContext, Group, Item, Stage
from tests.engine import Engine
from tests.log.test_letters import closing
from tests.words import ACCOUNT, observed, reviewed

NAMES = Names(0)


async def delivered(client: Redis, count: int = 1, *, e: bytes = b'[{"in":1}]') -> list[bytes]:
    """Entries in the hands of one consumer."""
    for _ in range(count):
        await client.xadd(NAMES.log, {"e": e, "m": '{"by":"p"}'})
    reply = await client.execute_command(
        "XREADGROUP", "GROUP", "g", "a", "COUNT", count, "STREAMS", NAMES.log, ">"
    )
    return [entry[0] for entry in reply[0][1]]


async def outputs(client: Redis) -> list[bytes]:
    rows = await client.execute_command("XRANGE", NAMES.log, "-", "+")
    return [row[1][1] for row in rows if row[1][1] != b'[{"in":1}]']


async def test_the_same_commit_twice_appends_once(client: Redis) -> None:
    (entry,) = await delivered(client)
    handover = Handover(entry=entry, e=b"[1]", m=b'{"by":"g"')
    assert await scripts.commit(client, NAMES, "g", [handover]) == [Committed.DONE]
    assert await scripts.commit(client, NAMES, "g", [handover]) == [Committed.ALREADY]
    assert await outputs(client) == [b"[1]"]


async def test_of_two_workers_with_one_entry_one_appends_and_the_other_writes_nothing(client: Redis) -> None:
    (entry,) = await delivered(client)
    await client.execute_command("XCLAIM", NAMES.log, "g", "b", 0, entry)
    slow = Handover(entry=entry, payout="p", e=b"[1]", m=b'{"by":"g"', record=b"{}", timers=[(1, b"t")])
    quick = Handover(entry=entry, e=b"[2]", m=b'{"by":"g"')
    assert await scripts.commit(client, NAMES, "g", [quick]) == [Committed.DONE]
    assert await scripts.commit(client, NAMES, "g", [slow]) == [Committed.ALREADY]
    assert await outputs(client) == [b"[2]"]
    assert await client.exists(NAMES.payout("p"), NAMES.timers) == 0


async def test_who_took_up_what_was_deferred_leaves_no_trace_though_another_one_was_faster(
    client: Redis,
) -> None:
    """One that had stood still had the entry before it was deferred, and knew nothing of that: how often it was, stayed
    for ever."""
    (entry,) = await delivered(client)
    await scripts.defer(client, NAMES, "g", [Deferral(entry, 0.0, counts=False)], Backoff(0.0, 0.0, 0.0))
    assert (await scripts.due_retries(client, NAMES, "g", "b", limit=1)).entries
    assert await scripts.commit(client, NAMES, "g", [Handover(entry)]) == [Committed.DONE]
    assert await scripts.commit(client, NAMES, "g", [Handover(entry, taken=True)]) == [Committed.ALREADY]
    assert await client.exists(NAMES.retries("g"), NAMES.tries("g")) == 0


async def test_a_commit_that_saw_an_older_version_is_refused_and_its_entry_stays_pending(
    client: Redis,
) -> None:
    first, second = await delivered(client, 2)
    seen = {"payout": "p", "version": b"0", "record": b"{}", "e": b"[1]", "m": b'{"by":"g"'}
    statuses = await scripts.commit(
        client, NAMES, "g", [Handover(entry=first, **seen), Handover(entry=second, **seen)]
    )
    assert statuses == [Committed.DONE, Committed.STALE]
    assert (await client.xpending(NAMES.log, "g"))["pending"] == 1
    assert await outputs(client) == [b"[1]"]


async def test_a_dead_letter_keeps_what_the_entry_said_and_can_be_given_back(client: Redis) -> None:
    (entry,) = await delivered(client)
    handover = Handover(entry=entry, problem="because", e=b"[9]", m=b'{"by":"g"')
    assert await scripts.commit(client, NAMES, "g", [handover]) == [Committed.DONE]
    ((letter, fields),) = await client.execute_command("XRANGE", NAMES.dead, "-", "+")
    assert fields == [
        b"entry",
        entry,
        b"group",
        b"g",
        b"e",
        b'[{"in":1}]',
        b"m",
        b'{"by":"p"}',
        b"problem",
        b"because",
    ]
    redriven = closing(letter.decode(), entry.decode(), "redrive")
    assert await letters.close_letter(client, NAMES, redriven)
    assert await letters.close_letter(client, NAMES, redriven) is None
    assert await client.xlen(NAMES.dead) == 0
    again = (await scripts.due_retries(client, NAMES, "g", "b", limit=10)).entries
    assert [row[0] for row in again] == [entry]


@pytest.mark.parametrize("there", [{"x": "1"}, None], ids=["without our fields", "gone from the log"])
async def test_a_dead_letter_is_made_also_of_what_has_nothing_to_keep(
    client: Redis, there: dict[str, str] | None
) -> None:
    entry = await client.xadd(NAMES.log, there or {"x": "1"})
    await client.xreadgroup("g", "a", {NAMES.log: ">"})
    if there is None:
        await client.xdel(NAMES.log, entry)
    assert await scripts.commit(client, NAMES, "g", [Handover(entry, problem="why")]) == [Committed.DONE]
    ((_, fields),) = await client.execute_command("XRANGE", NAMES.dead, "-", "+")
    letter = dict(zip(fields[::2], fields[1::2], strict=True))
    assert (letter[b"entry"], letter[b"m"], letter[b"problem"]) == (entry, b"{}", b"why")


async def test_a_deferred_entry_comes_back_when_due_once_and_is_in_the_hands_of_who_took_it_up(
    client: Redis,
) -> None:
    """It was leased for the claim time, and whoever found its holder gone had to let it wait for the lease's end."""
    (entry,) = await delivered(client)
    assert await scripts.defer(client, NAMES, "g", [Deferral(entry, 0.0, True)], Backoff(0.0, 0.0, 0.0)) == [
        1
    ]
    taken = (await scripts.due_retries(client, NAMES, "g", "b", limit=10)).entries
    assert [row[0] for row in taken] == [entry]
    assert (await scripts.due_retries(client, NAMES, "g", "c", limit=10)).entries == []
    (row,) = await client.xpending_range(NAMES.log, "g", "-", "+", 9)
    assert (row["message_id"], row["consumer"]) == (entry, b"b")
    assert await client.zcard(NAMES.retries("g")) == 0
    await scripts.commit(client, NAMES, "g", [Handover(entry=entry, taken=True)])
    assert await client.exists(NAMES.retries("g"), NAMES.tries("g")) == 0


async def test_of_a_deferred_entry_that_was_acknowledged_meanwhile_nothing_is_left(client: Redis) -> None:
    (entry,) = await delivered(client)
    await scripts.defer(client, NAMES, "g", [Deferral(entry, 0.0, False)], Backoff(0.0, 0.0, 0.0))
    await client.xack(NAMES.log, "g", entry)
    assert (await scripts.due_retries(client, NAMES, "g", "b", limit=10)).entries == []
    assert await client.exists(NAMES.retries("g"), NAMES.tries("g")) == 0


async def test_of_a_deferred_entry_that_was_only_skipped_in_the_end_nothing_is_left(
    client: Redis,
) -> None:
    """A later version knows an event that an earlier one put off, and its group has nothing to do with it."""
    (entry,) = await delivered(client, e=encode_events([observed("pout_1", 100)]))
    await scripts.defer(client, NAMES, "g", [Deferral(entry, 0.0, False)], Backoff(0.0, 0.0, 0.0))
    taken = (await scripts.due_retries(client, NAMES, "g", "b", limit=10)).entries
    await Handler(0, Group(name="g", stages=()), Limits()).handle(client, taken, taken=True)
    assert (await client.xpending(NAMES.log, "g"))["pending"] == 0
    assert await client.exists(NAMES.retries("g"), NAMES.tries("g")) == 0
    assert await client.exists(NAMES.dead) == 0


async def hold(client: Redis, *ids: bytes, deliveries: int) -> None:
    """Entries that are in the hands of `b` and were delivered so often."""
    await client.execute_command("XCLAIM", NAMES.log, "g", "b", 0, *ids, "RETRYCOUNT", deliveries, "JUSTID")


async def test_what_was_delivered_too_often_is_told_of_and_not_taken_up(client: Redis) -> None:
    once, often = await delivered(client, 2)
    await hold(client, once, deliveries=1)
    await hold(client, often, deliveries=2)
    found = await claims.take_up(client, NAMES, "g", "b", [once, often], most=2)
    assert [(one.deliveries, one.id, one.entry is not None) for one in found] == [
        (2, once, True),
        (2, often, False),
    ]
    rows = await client.xpending_range(NAMES.log, "g", "-", "+", 9)
    assert [row["times_delivered"] for row in rows] == [2, 2]


async def test_a_delivery_after_which_an_entry_was_put_off_is_not_held_against_it(client: Redis) -> None:
    """A payout that waited for the bank was a dead letter in the end when its worker was killed."""
    (entry,) = await delivered(client)
    backoff = Backoff(0.0, 0.0, 0.0)
    for counts in (True, False, False):
        await scripts.defer(client, NAMES, "g", [Deferral(entry, 0.0, counts)], backoff)
        await scripts.due_retries(client, NAMES, "g", "b", limit=10)
    (found,) = await claims.take_up(client, NAMES, "g", "b", [entry], most=9)
    assert found.deliveries == 2
    (told,) = await claims.take_up(client, NAMES, "g", "b", [entry], most=2)
    assert (told.deliveries, told.entry) == (2, None)


async def test_what_is_put_off_or_in_other_hands_or_has_left_the_log_is_not_taken_up(client: Redis) -> None:
    off, elsewhere, trimmed = await delivered(client, 3)
    await hold(client, off, trimmed, deliveries=1)
    await scripts.defer(client, NAMES, "g", [Deferral(off, 60.0, False)], Backoff(0.0, 0.0, 0.0))
    await client.xdel(NAMES.log, trimmed)
    assert await claims.take_up(client, NAMES, "g", "b", [off, elsewhere, trimmed], most=9) == []
    rows = await client.xpending_range(NAMES.log, "g", "-", "+", 9)
    assert [(row["message_id"], row["times_delivered"]) for row in rows] == [(off, 1), (elsewhere, 1)]


async def test_a_timer_fires_once_and_only_when_it_is_due(client: Redis) -> None:
    (entry,) = await delivered(client)
    far = 2**52
    await scripts.commit(client, NAMES, "g", [Handover(entry=entry, timers=[(1, b"[3]"), (far, b"[4]")])])
    fired = await asyncio.gather(*(scripts.fire_due(client, NAMES) for _ in range(5)))
    assert sorted(fired) == [0, 0, 0, 0, 1]
    assert await outputs(client) == [b"[3]"]


async def test_a_timer_that_a_stage_sets_is_there_after_the_commit(client: Redis) -> None:
    timer = TimerFired(at=2**52, payout="pout_1", timer="hold_expiry")

    async def hold(items: Sequence[Item], _: BatchContext) -> None:
        for work, _event in items:
            work.set_timer(timer)

    stage = Stage(name="hold", consumes=frozenset({PayoutObserved}), handle=hold)
    await delivered(client, e=encode_events([observed("pout_1", 100)]))
    entries = await client.execute_command("XRANGE", NAMES.log, "-", "+")
    await Handler(0, Group(name="g", stages=(stage,)), Limits()).handle(client, entries, taken=False)
    assert await client.zrange(NAMES.timers, 0, -1, withscores=True) == [(encode_events([timer]), timer.at)]


async def test_a_consumer_that_owns_entries_is_not_removed_and_one_that_owns_none_is(client: Redis) -> None:
    async def consumers() -> list[tuple[bytes, int]]:
        return [(row["name"], row["pending"]) for row in await client.xinfo_consumers(NAMES.log, "g")]

    (entry,) = await delivered(client)
    assert not await scripts.leave(client, NAMES, "g", "a")
    assert await consumers() == [(b"a", 1)]
    await scripts.commit(client, NAMES, "g", [Handover(entry=entry)])
    assert await scripts.leave(client, NAMES, "g", "a")
    assert await consumers() == []


async def test_a_full_server_refuses_a_commit_whole(client: Redis) -> None:
    from streamproc.errors import LogUnavailable

    (entry,) = await delivered(client)
    await client.config_set("maxmemory", "1")
    try:
        with pytest.raises(LogUnavailable, match="refuses"):
            await scripts.commit(client, NAMES, "g", [Handover(entry=entry, e=b"[1]")])
    finally:
        await client.config_set("maxmemory", "0")
    assert (await client.xpending(NAMES.log, "g"))["pending"] == 1


async def test_a_review_that_two_workers_held_is_answered_once(redis_url: str) -> None:
    policies = "policies: {bot: {require_approval_above: 0}}\nreviewers: [asha]"
    async with Engine(redis_url, workers=3, claim_idle_s=0.001) as engine:
        await engine.apply(policies)
        await engine.deliver(observed("pout_1"))
        answer = reviewed("pout_1", at=engine.producer.now_us(), why="")
        await asyncio.gather(*(engine.append(ACCOUNT, answer) for _ in range(50)))
        await engine.settled()
        story = await engine.story("pout_1")
    assert sum(isinstance(event, ReviewRefused) for event in story) == 49
