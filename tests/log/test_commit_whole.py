"""`commit.lua` writes all that an input leaves behind in one step, or none of it."""

from dataclasses import replace
from typing import Any

import pytest
from redis.asyncio import Redis
from redis.exceptions import ResponseError

from streamproc.domain.budget import Ask, Window
from streamproc.errors import LogBroken
from streamproc.log import scripts
from streamproc.log.names import Names
from streamproc.log.scripts import Backoff, Committed, Deferral, Handover
from tests.log.test_grant import everything, pending

NAMES = Names(0)
FAR = 4_000_000_000
WINDOWS = tuple(Window("agent:a", name, 500, FAR) for name in ("d1", "w1"))
SHOP, OTHER = NAMES.paid_at("acc", "shop.example"), NAMES.paid_for("acc", "fa_1")
NOTES = [(SHOP, "fa_1", 5, True), (OTHER, "shop.example", 6, False)]
TIMERS = [(2**52, b"[7]"), (2**52 + 1, b"[8]")]


async def commit(client: Redis, *handovers: Handover, rev: bytes = b"") -> list[Committed]:
    return await scripts.commit(client, NAMES, "g", handovers, rev=rev)


async def budgets(client: Redis) -> list[tuple[int, ...]]:
    """Reserved and committed paise of each window."""
    rows = [await client.hmget(NAMES.budget(w.scope, w.window), "r", "c") for w in WINDOWS]
    return [tuple(int(value or 0) for value in row) for row in rows]


async def much(client: Redis) -> Handover:
    """An input that leaves behind everything that an input can, of a payout that has a reservation."""
    entry = await pending(client)
    await scripts.admit(client, NAMES, [Ask("p", 100, 1, None, WINDOWS)], keep_budgets_s=60)
    await scripts.defer(client, NAMES, "g", [Deferral(entry, 9.0, True)], Backoff(9.0, 9.0, 9.0))
    await scripts.defer(client, NAMES, "g", [Deferral(entry, 9.0, False)], Backoff(9.0, 9.0, 9.0))
    return Handover(
        entry=entry,
        payout="p",
        version=b"0",
        record=b"{}",
        keep_s=1_000,
        e=b"[1]",
        m=b'{"by":"g"',
        settle="committed",
        fees=7,
        windows=WINDOWS,
        taken=True,
        problem="because",
        timers=TIMERS,
        notes=NOTES,
    )


async def test_all_that_an_input_leaves_behind_is_there_after_its_commit(client: Redis) -> None:
    one = await much(client)
    assert await commit(client, one) == [Committed.DONE]
    assert await client.xpending(NAMES.log, "g") == {"pending": 0, "min": None, "max": None, "consumers": []}
    (_, fields), *_ = await client.execute_command("XREVRANGE", NAMES.log, "+", "-", "COUNT", 1)
    assert fields == [b"e", b"[1]", b"m", b'{"by":"g","settled":2}']
    assert await client.hmget(NAMES.payout("p"), "v", "s", "q", "f") == [b"1", b"{}", b"committed", b"7"]
    assert 0 < await client.ttl(NAMES.payout("p")) <= 1_000
    assert await budgets(client) == [(0, 107)] * 2
    assert await client.zrange(NAMES.timers, 0, -1, withscores=True) == [(e, at) for at, e in TIMERS]
    assert await client.hgetall(SHOP) == {b"fa_1": b"5"}
    assert await client.hgetall(OTHER) == {b"shop.example": b"6"}
    assert await client.exists(NAMES.retries("g"), NAMES.tries("g")) == 0
    assert await client.xlen(NAMES.dead) == 1


async def test_sent_again_or_by_somebody_else_it_changes_nothing(client: Redis) -> None:
    one = await much(client)
    await commit(client, one)
    before = await everything(client)
    assert await commit(client, replace(one, version=b"1")) == [Committed.ALREADY]
    assert await commit(client, one) == [Committed.STALE]
    assert await everything(client) == before


async def test_what_was_decided_under_other_policies_or_for_a_payee_who_came_second_changes_nothing(
    client: Redis,
) -> None:
    one = await much(client)
    await client.hset(NAMES.policy, "rev", "7")
    await client.hset(SHOP, "fa_2", "1")
    before = await everything(client)
    assert await commit(client, replace(one, notes=[]), rev=b"6") == [Committed.STALE]
    assert await commit(client, one, rev=b"7") == [Committed.STALE]
    assert await everything(client) == before


async def test_before_the_first_policies_their_revision_is_0(client: Redis) -> None:
    """As a load says it: else no payout would ever be rejected for having no policy."""
    one = replace(await much(client), notes=[])
    _, rev, _, _ = await scripts.load(client, NAMES, [])
    assert await commit(client, one, rev=b"1") == [Committed.STALE]
    assert await commit(client, one, rev=rev) == [Committed.DONE]


@pytest.mark.parametrize("taken", [SHOP, OTHER], ids=["at the vendor", "for the account"])
async def test_a_payee_is_the_first_only_where_nobody_else_is_noted_on_either_side(
    client: Redis, taken: str
) -> None:
    one = replace(await much(client), notes=[(key, name, at, True) for key, name, at, _ in NOTES])
    await client.hset(taken, "somebody", "1")
    assert await commit(client, one) == [Committed.STALE]
    await client.delete(taken)
    assert await commit(client, one) == [Committed.DONE]


@pytest.mark.parametrize("what", ["no output", "of no payout", "a fact", "a payee who is there", "not first"])
async def test_but_neither_policies_nor_payees_stop_what_does_not_depend_on_them(
    client: Redis, what: str
) -> None:
    await client.hset(NAMES.policy, "rev", "7")
    await client.hset(SHOP, "fa_1" if what == "a payee who is there" else "fa_2", "1")
    one, rev = replace(await much(client), notes=[]), b"6"
    match what:
        case "no output":
            one = replace(one, e=b"")
        case "of no payout":
            one = Handover(entry=one.entry, e=b"[1]", m=b'{"by":"g"')
        case "a fact":
            rev = b""
        case "not first":
            one, rev = replace(one, notes=[(SHOP, "fa_1", 5, False)]), b"7"
        case _:
            one, rev = replace(one, notes=NOTES), b"7"
    assert await commit(client, one, rev=rev) == [Committed.DONE]


async def test_a_version_is_never_one_that_the_payout_had_before(client: Redis) -> None:
    """Else a worker that was frozen meanwhile would write over what came since."""
    had = {b"0"}
    for _ in range(4):
        handover = Handover(entry=await pending(client), payout="p", record=b"{}")
        assert await commit(client, handover) == [Committed.DONE]
        version = await client.hget(NAMES.payout("p"), "v")
        assert version not in had | {b"-1"}
        had.add(version)


STEPS: dict[str, tuple[list[tuple[str, int]], tuple[int, int], int]] = {
    "committed, then fees are told": ([("committed", 0), ("committed", 9)], (0, 109), 2),
    "committed, then fewer fees": ([("committed", 9), ("committed", 5)], (0, 109), 1),
    "committed twice": ([("committed", 9), ("committed", 9)], (0, 109), 1),
    "given back after fees": ([("committed", 9), ("released", 3)], (0, 0), 2),
    "given back at once, with fees": ([("released", 3)], (0, 0), 1),
    "given back twice": ([("released", 0), ("released", 0)], (0, 0), 1),
    "never committed again": ([("released", 0), ("committed", 9)], (0, 0), 1),
}


@pytest.mark.parametrize("steps", STEPS)
async def test_a_reservation_is_settled_once_and_a_settlement_that_changes_nothing_has_no_number(
    client: Redis, steps: str
) -> None:
    settlements, left, numbers = STEPS[steps]
    await scripts.admit(client, NAMES, [Ask("p", 100, 1, None, WINDOWS)], keep_budgets_s=60)
    for settle, fees in settlements:
        one = Handover(
            await pending(client), payout="p", record=b"{}", settle=settle, fees=fees, windows=WINDOWS
        )
        assert await commit(client, one) == [Committed.DONE]
    assert await budgets(client) == [left] * 2
    assert int(await client.hget(NAMES.payout("p"), "f") or 0) == max(0, left[1] - 100), (
        "fees with the amount"
    )
    assert await client.get(NAMES.number) == str(1 + numbers).encode()


async def test_without_a_reservation_nothing_is_settled(client: Redis) -> None:
    """There was no room, or nobody asked; other payouts' money is in those windows."""
    await scripts.admit(client, NAMES, [Ask("other", 450, 1, None, WINDOWS)], keep_budgets_s=60)
    await scripts.admit(client, NAMES, [Ask("no_room", 100, 1, None, WINDOWS)], keep_budgets_s=60)
    for payout in ("no_room", "never_asked"):
        for settle in ("committed", "released"):
            one = Handover(await pending(client), payout=payout, record=b"{}", settle=settle, windows=WINDOWS)
            assert await commit(client, one) == [Committed.DONE]
    assert await budgets(client) == [(450, 0)] * 2
    assert await client.get(NAMES.number) == b"2"


async def test_what_the_archive_has_of_a_reservation_is_put_back_only_where_redis_has_none(
    client: Redis,
) -> None:
    await scripts.admit(client, NAMES, [Ask("known", 100, 1, None, WINDOWS)], keep_budgets_s=60)
    known = await client.hget(NAMES.payout("known"), "a")
    kept = b'|9 40 -1 0 0 0 0|[["agent:a","d1",500,4000000000]]'
    for state, field in ((b"reserved", [None, None]), (b"committed", [b"committed", b"3"])):
        payout = state.decode()
        recalled = b"%s %d %s" % (state, 0 if state == b"reserved" else 3, kept)
        one = Handover(await pending(client), payout=payout, record=b"{}", recalled=recalled)
        assert await commit(client, one) == [Committed.DONE]
        assert await client.hmget(NAMES.payout(payout), "a", "q", "f") == [kept, *field]
        one = Handover(await pending(client), payout="known", record=b"{}", recalled=recalled)
        assert await commit(client, one) == [Committed.DONE]
        assert await client.hmget(NAMES.payout("known"), "a", "q", "f") == [known, None, None]


@pytest.mark.parametrize(
    "wrong",
    [
        NAMES.number,
        NAMES.timers,
        NAMES.dead,
        NAMES.retries("g"),
        NAMES.tries("g"),
        NAMES.budget("agent:a", "w1"),
        SHOP,
    ],
)
async def test_a_key_that_is_not_what_it_must_be_fails_the_commit_before_anything_is_written(
    client: Redis, wrong: str
) -> None:
    plain = Handover(await pending(client), payout="other", version=b"0", record=b"{}", e=b"[1]")
    one = await much(client)
    await client.delete(wrong)
    await client.set(wrong, "no number, and no hash, set or stream")
    before: dict[bytes, Any] = await everything(client)
    with pytest.raises((LogBroken, ResponseError)):
        await commit(client, plain, one)
    assert await everything(client) == before


NO_PAYOUT = {"payout": "", "version": b"-1", "recalled": b""}
WRONG: dict[str, dict[str, Any]] = {
    "an entry": {"entry": b"x"},
    "a record of no payout": {**NO_PAYOUT, "settle": ""},
    "a time to keep the record": {"keep_s": -2},
    "a settlement": {"settle": "x"},
    "a settlement of no payout": {**NO_PAYOUT, "record": b""},
    "fees": {"fees": "x"},
    "fees below 0": {"fees": -1},
    "a recalled reservation": {"recalled": b"reserved 0 |9 40"},
    "a recalled reservation of no payout": {
        **NO_PAYOUT,
        "record": b"",
        "settle": "",
        "recalled": b"reserved 0 |9 40 -1|",
    },
    "a timer": {"timers": [("x", b"[7]")]},
    "a note": {"notes": [(SHOP, "fa_1", "x", False)]},
}


@pytest.mark.parametrize("what", WRONG)
async def test_a_part_that_is_not_what_it_must_be_fails_the_commit_before_anything_is_written(
    client: Redis, what: str
) -> None:
    plain = Handover(await pending(client), payout="other", version=b"0", record=b"{}", e=b"[1]")
    one = await much(client)
    before = await everything(client)
    with pytest.raises(ResponseError, match="called wrongly"):
        await commit(client, plain, replace(one, **WRONG[what]))
    assert await everything(client) == before


async def test_a_payout_whose_version_is_no_number_fails_the_commit_before_anything_is_written(
    client: Redis,
) -> None:
    one = await much(client)
    await client.hset(NAMES.payout("p"), "v", "x")
    before = await everything(client)
    with pytest.raises(ResponseError, match="has no version"):
        await commit(client, replace(one, version=b"-1"))
    assert await everything(client) == before


async def test_without_a_log_nothing_is_committed(client: Redis) -> None:
    one = await much(client)
    await client.delete(NAMES.log)
    before = await everything(client)
    with pytest.raises(LogBroken, match="is gone"):
        await commit(client, one)
    assert await everything(client) == before
