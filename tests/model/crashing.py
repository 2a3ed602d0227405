"""A process that dies, or is cancelled, at its n-th suspension point.

Every task of the process counts: a point is wherever one of them waits for anything (an answer, a lock, another task).
Between two points nothing happens that others can see, so crashes at all points are all crashes that differ.
"""

import asyncio
from collections.abc import Coroutine, Generator
from contextvars import ContextVar
from typing import Any, Literal

How = Literal["killed", "cancelled"]
WAITS_IN_FINALLY_MAX = 20
"""A dead process runs no `finally`. One that waits is ended again, at most so often."""
_fuse: ContextVar["Fuse | None"] = ContextVar("fuse", default=None)


class Killed(BaseException):
    """The process is dead. Nothing may catch this."""


class Fuse:
    """Ends the process that it runs at a point, counted from 1. With 0 it never does, and only counts."""

    def __init__(self, at: int, how: How = "killed") -> None:
        self.at, self.how, self.points, self.blown = at, how, 0, False
        self._tasks: list[asyncio.Task[Any]] = []

    async def run(self, what: Coroutine[Any, Any, None]) -> bool:
        """Run to the end or to the point. Returns whether it reached the end."""
        loop = asyncio.get_running_loop()
        loop.set_task_factory(_counting)
        token = _fuse.set(self)
        try:
            self.main = asyncio.create_task(what)
        finally:
            _fuse.reset(token)
        await asyncio.wait([self.main])
        loop.set_task_factory(None)
        if self.blown:
            await asyncio.gather(*self._tasks, return_exceptions=True)
        else:
            self.main.result()
        return not self.blown

    def adopt(self, task: asyncio.Task[Any]) -> None:
        """Add a task of the process."""
        self._tasks.append(task)

    def passed(self) -> None:
        """Count a point, and end the process if it is the one."""
        self.points += 1
        if self.points != self.at:
            return
        self.blown = True
        if self.how == "cancelled":
            asyncio.get_running_loop().call_soon(self.main.cancel)
            return
        for task in self._tasks:
            asyncio.get_running_loop().call_soon(task.cancel)

    @property
    def is_dead(self) -> bool:
        """Whether the process was killed, so that none of its code may run any more."""
        return self.blown and self.how == "killed"


def _counting(loop: asyncio.AbstractEventLoop, coro: Any, **more: Any) -> asyncio.Task[Any]:
    fuse = _fuse.get()
    if fuse is None:
        return asyncio.Task(coro, loop=loop, **more)
    task: asyncio.Task[Any] = asyncio.Task(_Counted(coro, fuse), loop=loop, **more)
    fuse.adopt(task)
    return task


class _Counted(Coroutine[Any, Any, Any]):
    """A coroutine that reports each of its suspensions to a fuse."""

    def __init__(self, coro: Coroutine[Any, Any, Any], fuse: Fuse) -> None:
        self._coro, self._fuse = coro, fuse

    def send(self, value: Any) -> Any:
        if self._fuse.is_dead:
            self._die()
        waits_for = self._coro.send(value)
        self._fuse.passed()
        return waits_for

    def throw(self, *problem: Any) -> Any:
        if self._fuse.is_dead:
            self._die()
        waits_for = self._coro.throw(*problem)
        self._fuse.passed()
        return waits_for

    def _die(self) -> None:
        for _ in range(WAITS_IN_FINALLY_MAX):
            try:
                self._coro.throw(Killed())
            except BaseException:  # noqa: BLE001  # it is dead, whatever it raises
                break
        raise Killed

    def close(self) -> None:
        self._coro.close()

    def __await__(self) -> Generator[Any, Any, Any]:
        raise TypeError("a task's coroutine is not awaited")
