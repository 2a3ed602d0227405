"""`admit.lua` and the model in `streamproc/domain/budget.py` give the same answers to the same history."""

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from redis.asyncio import Redis

from streamproc.domain.budget import Ask, Ledger, RateAsk, Window
from streamproc.domain.money import AMOUNT_MAX_PAISE, WINDOW_MAX_PAISE
from streamproc.log import scripts
from streamproc.log.names import Names
from streamproc.log.stream import open_log

NAMES = Names(0)
FAR = 4_000_000_000
"""Unix s; windows that do not end during a test."""


amounts = st.sampled_from([1, 50, 100, 101, 10**15 - 1, 10**15])
limits = st.sampled_from([None, 0, 100, 150, 300, 10**15])
windows = st.lists(
    st.builds(
        Window,
        st.sampled_from(["agent:a", "agent:b", "account:x"]),
        st.sampled_from(["d1", "w1"]),
        limits,
        st.just(FAR),
    ),
    max_size=3,
    unique_by=lambda w: (w.scope, w.window),
).map(tuple)
rates = st.builds(
    RateAsk,
    st.sampled_from(["a", "b"]),
    st.integers(1, 3),
    st.just(60_000_000),
    st.booleans(),
)
asks = st.builds(
    Ask,
    st.integers(0, 12).map("pout_{}".format),
    amounts,
    st.integers(0, 200).map(lambda s: 1_790_000_000_000_000 + s * 1_000_000),
    st.none() | rates,
    st.none() | windows,
)
histories = st.lists(
    st.one_of(
        st.lists(asks, min_size=1, max_size=5, unique_by=lambda a: a.payout),
        st.tuples(
            st.integers(0, 12).map("pout_{}".format),
            st.sampled_from(["committed", "released"]),
            st.sampled_from([0, 0, 7, 9]),
        ),
    ),
    max_size=12,
)


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(history=histories)
async def test_lua_and_model_agree_on_every_history(client: Redis, history: list) -> None:  # type: ignore[type-arg]
    await client.flushdb()
    await open_log(client, partitions=1, groups=("g",))
    model = Ledger()
    for step in history:
        if isinstance(step, list):
            answers = await scripts.admit(client, NAMES, step, keep_budgets_s=60)
            assert answers == [model.admit(ask) for ask in step]
        else:
            payout, settlement, fees = step
            settled = await settle_in_redis(client, model, payout, settlement, fees)
            assert settled == model.settle(payout, settlement, fees)
    for (scope, window), (reserved, committed) in model.budgets.items():
        row = await client.hmget(NAMES.budget(scope, window), "r", "c")
        assert [int(value or 0) for value in row] == [reserved, committed]
    assert int(await client.get(NAMES.number) or 0) == model.number


async def settle_in_redis(client: Redis, model: Ledger, payout: str, settlement: str, fees: int) -> bool:
    """Settle by a commit of an entry of its own; True if it was numbered."""
    before = int(await client.get(NAMES.number) or 0)
    entry = await client.xadd(NAMES.log, {"e": "[]", "m": "{}"})
    await client.xreadgroup("g", "c", {NAMES.log: ">"}, count=1)
    budget = model.admissions[payout].budget if payout in model.admissions else None
    handover = scripts.Handover(
        entry=entry,
        payout=payout,
        record=b"{}",
        settle=settlement,
        fees=fees,
        windows=budget.windows if budget else (),
        m=b'{"by":"g"',
    )
    assert await scripts.commit(client, NAMES, "g", [handover]) == [scripts.Committed.DONE]
    return int(await client.get(NAMES.number) or 0) > before


async def test_the_amount_that_exactly_fills_a_window_is_admitted_and_one_more_is_not(client: Redis) -> None:
    day = (Window("agent:a", "d1", 500, FAR),)
    first, full, over = await scripts.admit(
        client,
        NAMES,
        [Ask("p1", 400, 1, None, day), Ask("p2", 100, 2, None, day), Ask("p3", 1, 3, None, day)],
        keep_budgets_s=60,
    )
    assert [first.budget.granted, full.budget.granted, over.budget.granted] == [True, True, False]
    assert over.budget.before == ((500, 0),)


async def test_a_window_that_nobody_limits_holds_as_much_as_can_be_counted_exactly(client: Redis) -> None:
    day = (Window("agent:a", "d1", None, FAR),)
    asks = [Ask(f"p{n}", AMOUNT_MAX_PAISE, n, None, day) for n in range(9)]
    left = WINDOW_MAX_PAISE - 9 * AMOUNT_MAX_PAISE
    asks += [
        Ask("over", left + 1, 9, None, day),
        Ask("full", left, 10, None, day),
        Ask("more", 1, 11, None, day),
    ]
    model = Ledger()
    answers = await scripts.admit(client, NAMES, asks, keep_budgets_s=60)
    assert answers == [model.admit(ask) for ask in asks]
    granted = [answer.budget.granted for answer in answers if answer.budget is not None]
    assert granted == [True] * 9 + [False, True, False]
    assert await client.hgetall(NAMES.budget("agent:a", "d1")) == {b"r": str(WINDOW_MAX_PAISE).encode()}


async def test_a_payout_that_asks_again_gets_its_recorded_answer_and_is_charged_once(client: Redis) -> None:
    day = (Window("agent:a", "d1", 500, FAR),)
    ask = Ask("p1", 300, 1, RateAsk("a", 1, 60_000_000, False), day)
    first = await scripts.admit(client, NAMES, [ask], keep_budgets_s=60)
    again = await scripts.admit(client, NAMES, [ask], keep_budgets_s=60)
    assert first == again
    assert await client.hgetall(NAMES.budget("agent:a", "d1")) == {b"r": b"300"}


async def test_a_payout_that_asks_twice_in_one_call_is_charged_once(client: Redis) -> None:
    day = (Window("agent:a", "d1", 500, FAR),)
    ask = Ask("p1", 300, 1, RateAsk("a", 1, 60_000_000, False), day)
    first, again = await scripts.admit(client, NAMES, [ask, ask], keep_budgets_s=60)
    assert first == again
    assert await client.hgetall(NAMES.budget("agent:a", "d1")) == {b"r": b"300"}
    assert await client.get(NAMES.number) == b"1"


async def test_a_slot_leaves_the_window_in_the_microsecond_in_which_it_is_as_old_as_the_window(
    client: Redis,
) -> None:
    """Also for those who come together, and whichever call has taken it."""
    asked = [
        Ask(f"p{n}", 1, 1_790_000_000_000_000 + us, RateAsk("a", 2, 60_000_000, False), None)
        for n, us in enumerate((0, 10_000_000, 59_999_999, 60_000_000, 69_999_999, 70_000_000, 90_000_000))
    ]
    before = await scripts.admit(client, NAMES, asked[:2], keep_budgets_s=60)
    after = await scripts.admit(client, NAMES, asked[2:], keep_budgets_s=60)
    answers = [admission.rate for admission in (*before, *after)]
    assert [(rate.used, rate.limited) for rate in answers if rate] == [
        (0, False),
        (1, False),
        (2, True),
        (1, False),
        (2, True),
        (1, False),
        (2, True),
    ]


async def test_slots_outlast_their_window_by_a_day_so_that_who_comes_late_finds_them(client: Redis) -> None:
    day_s, window_s = 86_400, 60
    ask = Ask("p1", 1, 1_790_000_000_000_000, RateAsk("a", 2, window_s * 1_000_000, False), None)
    await scripts.admit(client, NAMES, [ask], keep_budgets_s=1)
    assert day_s < await client.ttl(NAMES.rate("a")) <= day_s + window_s


async def test_slots_that_no_window_reaches_any_more_are_removed_by_the_next_that_is_taken(
    client: Redis,
) -> None:
    for n in range(5):
        ask = Ask(
            f"p{n}", 1, 1_790_000_000_000_000 + n * 60_000_000, RateAsk("a", 2, 60_000_000, False), None
        )
        await scripts.admit(client, NAMES, [ask], keep_budgets_s=1)
    assert await client.zrange(NAMES.rate("a"), 0, -1) == [b"p4"]


async def test_a_budget_is_kept_after_its_window_and_one_that_begins_late_from_then_on(client: Redis) -> None:
    keep_s = 600
    windows = (Window("agent:a", "open", 500, FAR), Window("agent:a", "over", 500, 1))
    await scripts.admit(client, NAMES, [Ask("p1", 1, 1, None, windows)], keep_budgets_s=keep_s)
    assert await client.expiretime(NAMES.budget("agent:a", "open")) == FAR + keep_s
    assert 0 < await client.ttl(NAMES.budget("agent:a", "over")) <= keep_s


async def test_who_had_no_slot_and_is_not_asked_for_one_any_more_is_asked_for_room(client: Redis) -> None:
    """Its policy lost the rate limit between two passes."""
    day, none = (Window("agent:a", "d1", 500, FAR),), RateAsk("a", 0, 60_000_000, False)
    model = Ledger()
    for ask in (Ask("p1", 300, 1, none, day), Ask("p1", 300, 1, none, day), Ask("p1", 300, 1, None, day)):
        (answer,) = await scripts.admit(client, NAMES, [ask], keep_budgets_s=60)
        assert answer == model.admit(ask)
    assert answer.budget is not None
    assert answer.budget.granted
