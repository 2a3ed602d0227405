"""Works of one pass that wait for outsiders, so many at once: each has its turn, its end, and its own failure."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import TypeAlias

from streamproc.errors import LogBroken, LogUnavailable, TryAgain
from streamproc.log.work import Work

Job: TypeAlias = tuple[Work, Callable[[], Awaitable[None]]]


async def in_turns(jobs: Sequence[Job], *, at_once: int, start_s: float, pass_s: float, turn: str) -> None:
    """Do all of `jobs`, `at_once` at a time. What has not begun within `start_s` of now, or ended within `pass_s`, is
    put off; any other failure is that of its work.

    Raises LogUnavailable and LogBroken, which concern all. `turn` names what is waited for.
    """
    turns, began = asyncio.Semaphore(at_once), asyncio.get_running_loop().time()

    async def one(work: Work, do: Callable[[], Awaitable[None]]) -> None:
        try:
            async with asyncio.timeout_at(began + start_s) as limit, turns:
                limit.reschedule(began + pass_s)
                await do()
        except (LogUnavailable, LogBroken):
            raise
        except TimeoutError:
            work.fail(
                TryAgain(f"{turn} did not come within {start_s:g} s, or it did not end within {pass_s:g} s")
            )
        except Exception as problem:  # noqa: BLE001  # this work's own; the loop puts it off or aside
            work.fail(problem)

    try:
        async with asyncio.TaskGroup() as tasks:
            for work, do in jobs:
                tasks.create_task(one(work, do))
    except BaseExceptionGroup as problems:
        # By its own name, or the loop takes it for the failure of one work.
        if (ours := problems.subgroup((LogUnavailable, LogBroken))) is not None:
            raise ours.exceptions[0] from problems
        raise
