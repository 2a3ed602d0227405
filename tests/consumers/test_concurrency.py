"""Works that wait for outsiders: so many at once, each with its own end and its own failure."""

import asyncio

import pytest

from consumers.concurrency import Job, run_bounded
from streamproc.errors import LogUnavailable, TryAgain, Unprocessable
from streamproc.log.work import Work


def work(number: int) -> Work:
    return Work(f"{number}-0".encode(), [])


async def run(jobs: list[Job], *, at_once: int = 4, start_s: float = 60.0, pass_s: float = 60.0) -> None:
    await run_bounded(jobs, at_once=at_once, start_s=start_s, pass_s=pass_s, waits_for="its turn")


async def test_a_failure_is_that_of_its_work_alone() -> None:
    bad, good = work(1), work(2)
    done = asyncio.Event()

    async def fails() -> None:
        raise Unprocessable("no")

    async def does() -> None:
        await asyncio.sleep(0)
        done.set()

    await run([(bad, fails), (good, does)])
    assert (str(bad.problem), good.problem, done.is_set()) == ("no", None, True)


async def test_a_redis_that_is_away_is_named_so_and_is_nobodys_failure() -> None:
    """In a group of exceptions the loop took it for a failure of one entry, which makes a dead letter in the end."""
    one, other = work(1), work(2)

    async def loses_redis() -> None:
        raise LogUnavailable("away")

    async def waits() -> None:
        await asyncio.Event().wait()

    with pytest.raises(LogUnavailable, match="away"):
        await run([(one, loses_redis), (other, waits)])
    assert (one.problem, other.problem) == (None, None)


async def test_no_more_are_under_way_than_are_let() -> None:
    under_way, most = 0, 0

    async def does() -> None:
        nonlocal under_way, most
        under_way += 1
        most = max(most, under_way)
        await asyncio.sleep(0)
        under_way -= 1

    await run([(work(number), does) for number in range(9)], at_once=3)
    assert most == 3


async def test_what_does_not_begin_or_end_in_time_is_put_off() -> None:
    begun, late = work(1), work(2)

    async def never_ends() -> None:
        await asyncio.Event().wait()

    await run([(begun, never_ends), (late, never_ends)], at_once=1, start_s=0.05, pass_s=0.1)
    for one in (begun, late):
        assert type(one.problem) is TryAgain
        assert "its turn did not come within 0.05 s, or it did not end within 0.1 s" in str(one.problem)
