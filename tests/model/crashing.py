"""A process that dies, or is cancelled, at its n-th suspension point.

Every task of the process is counted: where one of them waits for anything at all (an answer, a lock, another task),
that is a point. Between two points nothing happens that others can see, so these are all the places where a crash
differs from another.
"""

import asyncio
from collections.abc import Coroutine, Generator
from contextvars import ContextVar
from typing import Any, Literal

How = Literal["killed", "cancelled"]
LAST_WORDS_MAX = 20
"""A dead process runs no `finally` that waits; so often one that does is ended again."""
_fuse: ContextVar["Fuse | None"] = ContextVar("fuse", default=None)


class Killed(BaseException):
    """The process is gone: nothing may catch this."""


class Fuse:
    """Ends what runs under it at a point, counted from 1. 0: never, it only counts."""

    def __init__(self, at: int, how: How = "killed") -> None:
        self.at, self.how, self.points, self.blown = at, how, 0, False
        self._tasks: list[asyncio.Task[Any]] = []

    async def run(self, what: Coroutine[Any, Any, None]) -> bool:
        """Run to the end or to the point; whether it came to its end."""
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
        """One more task of the process."""
        self._tasks.append(task)

    def passed(self) -> None:
        """A point was come to."""
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
        """Whether no line of it may run any more."""
        return self.blown and self.how == "killed"


def _counting(loop: asyncio.AbstractEventLoop, coro: Any, **more: Any) -> asyncio.Task[Any]:
    fuse = _fuse.get()
    if fuse is None:
        return asyncio.Task(coro, loop=loop, **more)
    task: asyncio.Task[Any] = asyncio.Task(_Counted(coro, fuse), loop=loop, **more)
    fuse.adopt(task)
    return task


class _Counted(Coroutine[Any, Any, Any]):
    """A coroutine each of whose suspensions is told to a fuse."""

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
        for _ in range(LAST_WORDS_MAX):
            try:
                self._coro.throw(Killed())
            except BaseException:  # noqa: BLE001  # it is dead, whatever it says
                break
        raise Killed

    def close(self) -> None:
        self._coro.close()

    def __await__(self) -> Generator[Any, Any, Any]:
        raise TypeError("a task's coroutine is not awaited")
