import asyncio
import gc
from collections.abc import Callable

import pytest

from streamproc.clients.limiter import Limiter, RateLimiter, SharedLimiter
from streamproc.errors import LogBroken, LogUnavailable, TryAgain
from tests.deadline import DEADLINE_S

STEPS = range(8)
"""More steps of the loop than a turn takes from its timer, or its reservation, to the call that gets it."""


async def all_have_run() -> None:
    """Whatever can go on without time passing has gone on."""
    for _ in range(100):
        await asyncio.sleep(0)


class HandClock:
    """The loop's clock: seconds pass when the test says so."""

    def __init__(self) -> None:
        self.now_s = 1_000.0

    async def pass_s(self, seconds: float) -> None:
        self.now_s += seconds
        await all_have_run()


@pytest.fixture
async def clock(monkeypatch: pytest.MonkeyPatch) -> HandClock:
    found = HandClock()
    monkeypatch.setattr(asyncio.get_running_loop(), "time", lambda: found.now_s)
    return found


class Waiting:
    """Calls that came in this order, all at once, and those that had their turn, in its order."""

    def __init__(self, limiter: RateLimiter, *names: str) -> None:
        self.served: list[str] = []
        self._calls = {name: asyncio.create_task(self._call(limiter, name)) for name in names}

    async def _call(self, limiter: RateLimiter, name: str) -> None:
        await limiter.take(urgent=name.startswith("U"))
        self.served.append(name)

    def cancel(self, *names: str) -> None:
        for name in names or self._calls:
            self._calls[name].cancel()


async def order_of(limiter: Limiter, clock: HandClock, names: list[str]) -> list[str]:
    """The order in which calls get their turns; with a U those that are urgent."""
    waiting = Waiting(limiter, *names)
    for _ in names:
        await clock.pass_s(1.0)
    return waiting.served


async def test_a_burst_passes_at_once_and_the_next_call_waits(clock: HandClock) -> None:
    limiter = Limiter(per_s=0.001, burst=3)
    waiting = Waiting(limiter, "a", "b", "c", "d")
    await all_have_run()
    assert waiting.served == ["a", "b", "c"]
    assert (limiter.queued, limiter.wait_s()) == (1, pytest.approx(2_000))
    await clock.pass_s(1_001)
    assert waiting.served == ["a", "b", "c", "d"]


async def test_calls_are_served_in_the_order_they_came(clock: HandClock) -> None:
    names = [str(number) for number in range(8)]
    assert await order_of(Limiter(1, 1), clock, names) == names


async def test_urgent_calls_overtake_but_take_at_most_every_second_token_from_the_others(
    clock: HandClock,
) -> None:
    names = ["first", "a", "b", "c", "U1", "U2", "U3"]
    assert await order_of(Limiter(1, 1), clock, names) == ["first", "U1", "a", "U2", "b", "U3", "c"]


async def test_urgent_calls_that_nobody_else_waits_beside_follow_each_other(clock: HandClock) -> None:
    names = ["first", "U1", "U2", "U3"]
    assert await order_of(Limiter(1, 1), clock, names) == names


async def test_one_token_lets_one_call_through_and_what_is_left_of_it_none(clock: HandClock) -> None:
    waiting = Waiting(Limiter(per_s=1, burst=2), "a", "b", "c", "d")
    await all_have_run()
    await clock.pass_s(1.5)
    assert waiting.served == ["a", "b", "c"]
    waiting.cancel()


async def test_a_cancelled_call_gives_up_its_place(clock: HandClock) -> None:
    limiter = Limiter(per_s=1, burst=1)
    waiting = Waiting(limiter, "first", "a", "b")
    await all_have_run()
    waiting.cancel("a")
    await all_have_run()
    assert limiter.queued == 1
    await clock.pass_s(1.0)
    assert waiting.served == ["first", "b"]


@pytest.mark.parametrize("steps", STEPS)
async def test_a_token_is_one_call_at_whatever_moment_the_one_that_it_is_for_is_cancelled(
    clock: HandClock, steps: int
) -> None:
    limiter = Limiter(per_s=1, burst=1)
    waiting = Waiting(limiter, "first", "a", "b", "c")
    await all_have_run()
    clock.now_s += 1.0
    for _ in range(steps):
        await asyncio.sleep(0)
    waiting.cancel("a")
    await all_have_run()
    assert waiting.served in (["first", "a"], ["first", "b"])
    waiting.cancel()


@pytest.mark.parametrize(("per_s", "burst"), [(0, 1), (-1, 1), (1, 0)])
def test_a_limit_that_lets_nothing_through_is_refused(per_s: float, burst: int) -> None:
    with pytest.raises(ValueError, match="lets nothing through"):
        Limiter(per_s, burst)


# ---- turns that all processes share ------------------------------------------------------


async def test_a_call_waits_until_its_turn_has_come(clock: HandClock) -> None:
    async def in_an_hour() -> float:
        return 3_600.0

    limiter = SharedLimiter(in_an_hour, per_s=8)
    waiting = Waiting(limiter, "a", "b")
    await all_have_run()
    assert waiting.served == []
    assert (limiter.queued, limiter.wait_s()) == (2, 7_200.0)
    await clock.pass_s(3_600)
    assert waiting.served == ["a"]
    waiting.cancel()


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


class HandPauses:
    """A pause as the test says, which processes begin too."""

    def __init__(self, left_s: float = 0.0, problem: type[Exception] = LogUnavailable) -> None:
        self.left_s, self.begun_s, self.problem = left_s, list[float](), problem

    async def pause_s(self) -> float:
        return self.left_s

    async def put_off(self, seconds: float) -> None:
        if not self.begun_s:
            self.begun_s.append(seconds)
            return
        raise self.problem("away")


async def test_in_a_pause_no_turn_is_reserved_and_calls_wait_for_its_end(clock: HandClock) -> None:
    turns: asyncio.Queue[float] = asyncio.Queue()
    turns.put_nowait(0.0)
    pauses = HandPauses(5.0)
    waiting = Waiting(SharedLimiter(turns.get, per_s=8, pauses=pauses, patience_s=8.0), "a")
    await all_have_run()
    await clock.pass_s(4.9)
    assert (waiting.served, turns.qsize()) == ([], 1)
    pauses.left_s = 0.0
    await clock.pass_s(0.2)
    assert (waiting.served, turns.qsize()) == (["a"], 0)


async def test_a_turn_that_comes_in_a_pause_lapses(clock: HandClock) -> None:
    """It was reserved before: each process would be answered 429 once more."""
    turns: asyncio.Queue[float] = asyncio.Queue()
    turns.put_nowait(1.0)
    pauses = HandPauses()
    waiting = Waiting(SharedLimiter(turns.get, per_s=8, pauses=pauses, patience_s=8.0), "a")
    await all_have_run()
    pauses.left_s = 5.0
    await clock.pass_s(1.1)
    pauses.left_s = 0.0
    await clock.pass_s(5.1)
    assert waiting.served == []
    turns.put_nowait(0.0)
    await all_have_run()
    assert waiting.served == ["a"]


async def test_who_would_wait_for_the_end_of_a_long_pause_is_told_so_at_once() -> None:
    limiter = SharedLimiter(asyncio.Queue[float]().get, per_s=8, pauses=HandPauses(8.5), patience_s=8.0)
    for _ in range(2):
        with pytest.raises(TryAgain, match="a pause of 8 s was asked for") as caught:
            await asyncio.wait_for(limiter.take(), DEADLINE_S)
        assert caught.value.after_s == 8.5


@pytest.mark.parametrize("problem", [LogUnavailable, LogBroken])
async def test_a_pause_is_begun_where_pauses_are_kept_and_redis_is_there(problem: type[Exception]) -> None:
    pauses, turns = HandPauses(problem=problem), asyncio.Queue[float]()
    limiter = SharedLimiter(turns.get, per_s=8, pauses=pauses)
    await limiter.put_off(7.0)
    await limiter.put_off(9.0)  # it is away by then, or the key is broken
    await SharedLimiter(turns.get, per_s=8).put_off(7.0)
    await Limiter(1.0, 1).put_off(7.0)
    assert pauses.begun_s == [7.0]


@pytest.mark.parametrize("steps", STEPS)
async def test_a_reserved_turn_is_one_call_at_whatever_moment_the_one_that_it_is_for_is_cancelled(
    steps: int,
) -> None:
    turns: asyncio.Queue[float] = asyncio.Queue()
    limiter = SharedLimiter(turns.get, per_s=8)
    waiting = Waiting(limiter, "a", "b", "c")
    await all_have_run()
    turns.put_nowait(0.0)
    for _ in range(steps):
        await asyncio.sleep(0)
    waiting.cancel("a")
    await all_have_run()
    assert waiting.served in (["a"], ["b"])
    waiting.cancel()


async def test_a_call_that_is_refused_and_cancelled_at_once_gives_nobody_a_turn() -> None:
    counted: asyncio.Queue[Callable[[], float]] = asyncio.Queue()

    async def reserve() -> float:
        return (await counted.get())()

    def defect() -> float:
        raise RuntimeError("a defect")

    limiter = SharedLimiter(reserve, per_s=8)
    waiting = Waiting(limiter, "a")
    await all_have_run()
    # What the loop would say is the defect, which is not what is asked here.
    asyncio.get_running_loop().set_exception_handler(lambda *_: None)
    counted.put_nowait(defect)
    later = Waiting(limiter, "b", "c")
    await asyncio.sleep(0)
    waiting.cancel("a")
    await all_have_run()
    assert later.served == []
    later.cancel()


async def test_where_a_turn_cannot_be_counted_for_whatever_reason_no_call_waits_for_ever() -> None:
    async def defect() -> float:
        raise RuntimeError("a defect")

    told: list[str] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, what: told.append(str(what["exception"])))
    with pytest.raises(TryAgain, match="no turn for a call can be counted now"):
        await asyncio.wait_for(SharedLimiter(defect, per_s=8).take(), DEADLINE_S)
    await all_have_run()
    gc.collect()  # until then whoever holds the task might still ask for it
    assert told == ["a defect"]
