"""What the scripts count is kept for as long as it counts, and no longer: memory is bounded, and no limit forgets."""

import time
from collections.abc import Awaitable, Callable, Sequence

import pytest
from redis.asyncio import Redis

from streamproc.domain.budget import Ask, RateAsk, Window
from streamproc.log import scripts
from streamproc.log.names import Names
from streamproc.log.scripts import FOR_GOOD, RATE_BACKLOG_S, SEEN_TTL_S, Committed, Delivery, Handover
from tests.log.test_grant import granted, pending, send
from tests.words import NOW

NAMES = Names(0)
KEEP_S = 60
"""As `send` has it."""
SLACK_S = 30
"""How long a script's call may take here."""
RATE = RateAsk("a", 9, 60_000_000, False)
RATE_S = 60 + RATE_BACKLOG_S


async def by_admit(client: Redis, asks: Sequence[Ask]) -> None:
    await scripts.admit(client, NAMES, asks, keep_budgets_s=KEEP_S)


async def by_grant(client: Redis, asks: Sequence[Ask]) -> None:
    fates = await send(client, [await granted(client, ask) for ask in asks])
    assert {fate.name for fate in fates} == {"DONE"}


Way = Callable[[Redis, Sequence[Ask]], Awaitable[None]]
ways = pytest.mark.parametrize("admitted", [by_admit, by_grant])


def asks(*windows: Window, payout: str = "pout_1", second: int = 0) -> list[Ask]:
    return [Ask(payout, 100, NOW + second * 1_000_000, RATE, windows)]


@ways
async def test_a_budget_outlives_its_window_by_the_time_it_is_kept_and_no_payout_moves_that(
    client: Redis, admitted: Way
) -> None:
    now = int(time.time())
    open_, over = Window("agent:a", "d1", 500, now + 5_000), Window("agent:a", "d0", 500, now - 5_000)
    await admitted(client, asks(open_, over))
    kept = [await client.expiretime(NAMES.budget("agent:a", window)) for window in ("d1", "d0")]
    assert kept[0] == now + 5_000 + KEEP_S
    assert now + KEEP_S <= kept[1] <= now + KEEP_S + SLACK_S
    await client.expireat(NAMES.budget("agent:a", "d1"), kept[0] + 1)
    await admitted(client, asks(open_, payout="pout_2"))
    assert await client.expiretime(NAMES.budget("agent:a", "d1")) == kept[0] + 1


@ways
async def test_slots_outlive_their_window_by_a_day_and_each_payout_begins_that_anew(
    client: Redis, admitted: Way
) -> None:
    window = Window("agent:a", "d1", 500, 4_000_000_000)
    for payout in ("pout_1", "pout_2"):
        await admitted(client, asks(window, payout=payout))
        assert RATE_S - SLACK_S <= await client.ttl(NAMES.rate("a")) <= RATE_S
        await client.expire(NAMES.rate("a"), 100)


@ways
async def test_slots_that_have_left_the_window_are_removed(client: Redis, admitted: Way) -> None:
    window = Window("agent:a", "d1", 500, 4_000_000_000)
    for payout, second in (("pout_1", 0), ("pout_2", 1), ("pout_3", 61)):
        await admitted(client, asks(window, payout=payout, second=second))
    assert await client.zrange(NAMES.rate("a"), 0, -1) == [b"pout_3"]


async def test_a_delivery_is_remembered_for_longer_than_the_bank_can_send_it_again(client: Redis) -> None:
    await scripts.append_once(client, NAMES, [Delivery(["k:1", "k:2"], b"[]", b"{}")])
    for key in ("k:1", "k:2"):
        assert SEEN_TTL_S - SLACK_S <= await client.ttl(NAMES.seen(key)) <= SEEN_TTL_S


async def test_a_record_has_the_time_that_its_last_commit_gives_it(client: Redis) -> None:
    key = NAMES.payout("p")

    async def commit(keep_s: int) -> int:
        handover = Handover(entry=await pending(client), payout="p", record=b"{}", keep_s=keep_s)
        assert await scripts.commit(client, NAMES, "g", [handover]) == [Committed.DONE]
        return int(await client.ttl(key))

    assert await commit(0) == -1
    assert KEEP_S - SLACK_S <= await commit(KEEP_S) <= KEEP_S
    assert 0 < await commit(0) <= KEEP_S, "a look that says nothing of it leaves it"
    assert await commit(FOR_GOOD) == -1


async def test_what_is_settled_after_its_window_has_left_redis_makes_no_budget_that_nobody_removes(
    client: Redis,
) -> None:
    gone, there = (Window("agent:a", name, 500, 4_000_000_000) for name in ("d1", "w1"))
    await by_admit(client, asks(gone, there, payout="p"))
    await client.delete(NAMES.budget("agent:a", "d1"))
    for settle, left in (("committed", (b"0", b"100")), ("released", (b"0", b"0"))):
        handover = Handover(
            entry=await pending(client), payout="p", record=b"{}", settle=settle, windows=(gone, there)
        )
        assert await scripts.commit(client, NAMES, "g", [handover]) == [Committed.DONE]
        assert await client.exists(NAMES.budget("agent:a", "d1")) == 0
        assert tuple(await client.hmget(NAMES.budget("agent:a", "w1"), "r", "c")) == left
