"""Waiting for several things outside at once: the works of one pass, of which each can fail or time out by itself, or
two look-ups."""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from typing import Any, TypeAlias, TypeVar

from streamproc.errors import LogBroken, LogUnavailable, TryAgain
from streamproc.log.work import Work

B = TypeVar("B")
C = TypeVar("C")

Job: TypeAlias = tuple[Work, Callable[[], Awaitable[None]]]


async def run_bounded(
    jobs: Sequence[Job], *, at_once: int, start_s: float, pass_s: float, waits_for: str
) -> None:
    """Run all of `jobs`, `at_once` at a time. A job that has not begun within `start_s` from now, or not ended within
    `pass_s`, is deferred; any other failure is its work's own.

    Raises LogUnavailable and LogBroken, which concern all jobs. `waits_for` names in errors what a job waits for.
    """
    slots, began = asyncio.Semaphore(at_once), asyncio.get_running_loop().time()

    async def run(work: Work, do: Callable[[], Awaitable[None]]) -> None:
        try:
            async with asyncio.timeout_at(began + start_s) as limit, slots:
                limit.reschedule(began + pass_s)
                await do()
        except (LogUnavailable, LogBroken):
            raise
        except TimeoutError:
            work.fail(
                TryAgain(
                    f"{waits_for} did not come within {start_s:g} s, or it did not end within {pass_s:g} s"
                )
            )
        except Exception as problem:  # noqa: BLE001  # this work's own; the loop puts it off or aside
            work.fail(problem)

    try:
        async with asyncio.TaskGroup() as tasks:
            for work, do in jobs:
                tasks.create_task(run(work, do))
    except BaseExceptionGroup as problems:
        # Raised as itself: in a group, the consume loop would take it for the failure of one work.
        if (of_the_log := problems.subgroup((LogUnavailable, LogBroken))) is not None:
            raise of_the_log.exceptions[0] from problems
        raise


async def together(one: Coroutine[Any, Any, B], other: Coroutine[Any, Any, C]) -> tuple[B, C]:
    """Both results, awaited at once. The failure of one ends the other, and is raised as itself: in a group, the
    consume loop would take it for the failure of one work."""
    try:
        async with asyncio.TaskGroup() as tasks:
            first, second = tasks.create_task(one), tasks.create_task(other)
    except BaseExceptionGroup as problems:
        raise problems.exceptions[0] from problems
    return first.result(), second.result()
