"""Deadlines that share one timer behave as timers of their own would."""

import asyncio
import gc
import time
import weakref

import pytest

from streamproc.ingress.deadline import Deadline, Deadlines
from tests.deadline import DEADLINE_S

SHORT_S, LONG_S = 0.02, 600.0


async def never() -> None:
    await asyncio.get_running_loop().create_future()


async def test_what_takes_too_long_ends_with_timeout() -> None:
    deadlines = Deadlines(SHORT_S)
    async with asyncio.timeout(DEADLINE_S):
        with pytest.raises(TimeoutError), deadlines.within():
            await never()
    assert len(deadlines) == 0
    await asyncio.sleep(0)  # the task itself is not cancelled


async def test_each_that_waits_is_ended() -> None:
    deadlines = Deadlines(SHORT_S)

    async def one() -> None:
        with deadlines.within():
            await never()

    async with asyncio.timeout(DEADLINE_S):
        ends = await asyncio.gather(*(one() for _ in range(50)), return_exceptions=True)
    assert {type(end) for end in ends} == {TimeoutError}
    assert len(deadlines) == 0


async def test_one_that_begins_later_ends_later_and_is_not_forgotten() -> None:
    deadlines, ended = Deadlines(SHORT_S), list[int]()

    async def one(number: int) -> None:
        with pytest.raises(TimeoutError), deadlines.within():
            await never()
        ended.append(number)

    async with asyncio.timeout(DEADLINE_S), asyncio.TaskGroup() as tasks:
        for number in range(5):
            tasks.create_task(one(number))
            await asyncio.sleep(SHORT_S / 4)
    assert ended == [0, 1, 2, 3, 4]


async def test_what_ends_in_time_leaves_nothing_behind() -> None:
    deadlines = Deadlines(LONG_S)
    for _ in range(1000):
        with deadlines.within():
            pass
    assert len(deadlines) == 0


async def test_one_that_was_in_time_is_not_cancelled_by_the_timer_of_another() -> None:
    deadlines = Deadlines(SHORT_S)
    with deadlines.within():
        pass
    await asyncio.sleep(SHORT_S * 3)  # longer than the deadline that ended
    with pytest.raises(TimeoutError), deadlines.within():
        await never()


async def test_a_cancellation_by_somebody_else_stays_one() -> None:
    deadlines, begun = Deadlines(LONG_S), asyncio.Event()

    async def work() -> None:
        with deadlines.within():
            begun.set()
            await never()

    task = asyncio.create_task(work())
    await begun.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert len(deadlines) == 0


async def test_a_cancellation_that_comes_with_the_deadline_stays_one() -> None:
    deadlines, waiting = Deadlines(SHORT_S), asyncio.get_running_loop().create_future()

    async def work() -> None:
        with deadlines.within():
            await waiting

    task = asyncio.create_task(work())
    # Called as the deadline has cancelled what the task waits for.
    waiting.add_done_callback(lambda _: task.cancel())
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_a_failure_within_stays_what_it_is() -> None:
    with pytest.raises(ValueError, match="ours"), Deadlines(LONG_S).within():
        raise ValueError("ours")


async def test_a_call_that_fails_does_not_keep_the_others_from_being_called() -> None:
    deadlines, loop, called, told = (
        Deadlines(SHORT_S),
        asyncio.get_running_loop(),
        asyncio.Event(),
        list[object](),
    )
    loop.set_exception_handler(lambda _, context: told.append(context["exception"]))

    def fail() -> None:
        raise ValueError("ours")

    deadlines.call(fail, loop)
    deadlines.call(called.set, loop)
    async with asyncio.timeout(DEADLINE_S):
        await called.wait()
    assert [str(one) for one in told] == ["ours"]


async def test_a_call_that_is_taken_back_is_not_made() -> None:
    deadlines, loop, called, last = (
        Deadlines(SHORT_S),
        asyncio.get_running_loop(),
        list[int](),
        asyncio.Event(),
    )
    deadlines.call(lambda: called.append(1), loop).cancel()
    deadlines.call(last.set, loop)
    async with asyncio.timeout(DEADLINE_S):
        await last.wait()
    assert called == []


async def test_a_call_that_another_one_takes_back_at_the_same_time_is_not_made() -> None:
    deadlines, loop, called, last = (
        Deadlines(SHORT_S),
        asyncio.get_running_loop(),
        list[int](),
        asyncio.Event(),
    )
    taken_back: list[Deadline] = []
    deadlines.call(lambda: taken_back[0].cancel(), loop)
    taken_back.append(deadlines.call(lambda: called.append(1), loop))
    deadlines.call(last.set, loop)
    time.sleep(SHORT_S * 2)  # noqa: ASYNC251  # so that all of them are over at one look
    async with asyncio.timeout(DEADLINE_S):
        await last.wait()
    assert called == []


async def test_who_keeps_a_call_that_was_made_or_taken_back_is_not_kept_by_it() -> None:
    class Kept:
        """As a connection, which keeps its timer, and is what the timer calls."""

        def __init__(self) -> None:
            self.timer = deadlines.call(self.look, loop)

        def look(self) -> None: ...

    deadlines, loop, last = Deadlines(SHORT_S), asyncio.get_running_loop(), asyncio.Event()
    gc.collect()
    gc.disable()
    try:
        made, taken_back = Kept(), Kept()
        taken_back.timer.cancel()
        deadlines.call(last.set, loop)
        async with asyncio.timeout(DEADLINE_S):
            await last.wait()
        gone = [weakref.ref(made), weakref.ref(taken_back)]
        del made, taken_back
        assert [one() for one in gone] == [None, None]
    finally:
        gc.enable()


def test_a_second_loop_has_its_own_timer() -> None:
    deadlines = Deadlines(SHORT_S)

    async def one() -> None:
        with pytest.raises(TimeoutError), deadlines.within():
            await never()

    async def left() -> None:
        deadlines.call(lambda: None, asyncio.get_running_loop())

    asyncio.run(left())  # its timer ends with its loop
    asyncio.run(asyncio.wait_for(one(), DEADLINE_S))
