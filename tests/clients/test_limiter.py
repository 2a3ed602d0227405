import asyncio

import pytest

from streamproc.clients.limiter import Limiter, SharedLimiter
from streamproc.errors import TryAgain
from tests.deadline import DEADLINE_S


async def order_of(limiter: Limiter, calls: list[tuple[str, bool]]) -> list[str]:
    """The order in which calls that came in this order, all at once, get their tokens."""
    served: list[str] = []

    async def call(name: str, urgent: bool) -> None:
        await limiter.take(urgent=urgent)
        served.append(name)

    async with asyncio.timeout(DEADLINE_S), asyncio.TaskGroup() as group:
        for name, urgent in calls:
            group.create_task(call(name, urgent))
    return served


async def test_a_burst_passes_at_once_and_the_next_call_waits() -> None:
    limiter = Limiter(per_s=0.001, burst=3)
    for _ in range(3):
        await asyncio.wait_for(limiter.take(), DEADLINE_S)
    waiting = asyncio.create_task(limiter.take())
    await asyncio.sleep(0)
    assert limiter.queued == 1
    assert limiter.wait_s() > 1_000
    waiting.cancel()


async def test_calls_are_served_in_the_order_they_came() -> None:
    names = [str(number) for number in range(8)]
    assert await order_of(Limiter(200, 1), [(name, False) for name in names]) == names


async def test_urgent_calls_overtake_but_take_at_most_every_second_token_from_the_others() -> None:
    calls = [
        ("first", False),
        ("a", False),
        ("b", False),
        ("c", False),
        ("U1", True),
        ("U2", True),
        ("U3", True),
    ]
    assert await order_of(Limiter(50, 1), calls) == ["first", "U1", "a", "U2", "b", "U3", "c"]


async def test_urgent_calls_that_nobody_else_waits_beside_follow_each_other() -> None:
    calls = [("first", False), ("U1", True), ("U2", True), ("U3", True)]
    assert await order_of(Limiter(200, 1), calls) == ["first", "U1", "U2", "U3"]


async def test_one_token_lets_one_call_through_and_what_is_left_of_it_none() -> None:
    limiter = Limiter(per_s=0.001, burst=1)
    await limiter.take()
    waiting = [asyncio.create_task(limiter.take()) for _ in range(2)]
    await asyncio.sleep(0)
    limiter._tokens = 1.5
    limiter._serve()  # the timer's work, now instead of in a quarter of an hour
    assert limiter.queued == 1
    for call in waiting:
        call.cancel()


async def test_a_cancelled_call_gives_up_its_place() -> None:
    limiter = Limiter(per_s=0.001, burst=1)
    await limiter.take()
    waiting = asyncio.create_task(limiter.take())
    await asyncio.sleep(0)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert limiter.queued == 0


async def test_a_token_given_to_a_call_that_is_cancelled_at_that_moment_goes_to_the_next() -> None:
    limiter = Limiter(per_s=0.001, burst=1)
    await limiter.take()
    first = asyncio.create_task(limiter.take())
    second = asyncio.create_task(limiter.take())
    await asyncio.sleep(0)
    limiter._tokens = 1.0
    limiter._serve()  # the timer's work, now instead of in a quarter of an hour
    first.cancel()
    await asyncio.wait_for(second, DEADLINE_S)
    assert first.cancelled()


@pytest.mark.parametrize(("per_s", "burst"), [(0, 1), (-1, 1), (1, 0)])
def test_a_limit_that_lets_nothing_through_is_refused(per_s: float, burst: int) -> None:
    with pytest.raises(ValueError, match="lets nothing through"):
        Limiter(per_s, burst)


# ---- turns that all processes share ------------------------------------------------------


async def all_have_run() -> None:
    """Whatever can go on without time passing has gone on."""
    for _ in range(100):
        await asyncio.sleep(0)


async def test_a_call_waits_until_its_turn_has_come() -> None:
    async def in_an_hour() -> float:
        return 3_600.0

    limiter = SharedLimiter(in_an_hour, per_s=8)
    calls = [asyncio.create_task(limiter.take()) for _ in range(2)]
    await all_have_run()
    assert [call.done() for call in calls] == [False, False]
    assert (limiter.queued, limiter.wait_s()) == (2, 7_200.0)
    for call in calls:
        call.cancel()


async def test_a_process_reserves_one_turn_at_a_time_however_many_calls_wait() -> None:
    at_once: list[int] = []
    reserving = 0

    async def reserve() -> float:
        nonlocal reserving
        reserving += 1
        at_once.append(reserving)
        await asyncio.sleep(0)
        reserving -= 1
        return 0.0

    limiter = SharedLimiter(reserve, per_s=8)
    async with asyncio.timeout(DEADLINE_S):
        await asyncio.gather(*(limiter.take() for _ in range(5)))
    assert at_once == [1] * 5


async def test_a_call_that_is_cancelled_gives_up_its_place_or_the_turn_that_it_just_got() -> None:
    turns: asyncio.Queue[float] = asyncio.Queue()
    limiter = SharedLimiter(turns.get, per_s=8)
    first, second, third = (asyncio.create_task(limiter.take()) for _ in range(3))
    await all_have_run()
    second.cancel()
    await all_have_run()
    assert limiter.queued == 2
    limiter._lanes.serve()  # the first one's turn has come, and at that moment it is cancelled
    first.cancel()
    await asyncio.wait_for(third, DEADLINE_S)
    assert first.cancelled()
    assert limiter.queued == 0


async def test_where_a_turn_cannot_be_counted_for_whatever_reason_no_call_waits_for_ever() -> None:
    async def defect() -> float:
        raise RuntimeError("a defect")

    limiter = SharedLimiter(defect, per_s=8)
    with pytest.raises(TryAgain, match="no turn for a call can be counted now"):
        await asyncio.wait_for(limiter.take(), DEADLINE_S)
    assert limiter._pump is not None
    with pytest.raises(RuntimeError, match="a defect"):
        await limiter._pump
