"""Many deadlines of the same length on one timer of the event loop.

A timer that is set and taken back for each costs more than to verify a signature. The deadline that begins first is due
first, so a dict in that order is the queue, and the one timer is for its head.
"""

import asyncio
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from types import TracebackType


class Deadlines:
    """Deadlines that are over `after_s` seconds after they begin. One that has ended leaves nothing behind.

    Not for threads other than the loop's own.
    """

    def __init__(self, after_s: float) -> None:
        self.after_s = after_s
        self.loop: asyncio.AbstractEventLoop | None = None
        """The loop of the deadline that began last."""
        self._due: dict[Deadline, float] = {}
        self._timer: asyncio.TimerHandle | None = None

    def __len__(self) -> int:
        return len(self._due)

    def call(self, back: Callable[[], object], loop: asyncio.AbstractEventLoop) -> "Deadline":
        """Call `back` when the time is over, unless the deadline is cancelled before. `loop` is the one that runs."""
        deadline = _Call(self, back)
        self.begin(deadline, loop)
        return deadline

    def within(self) -> "Within":
        """What is awaited in this context ends with TimeoutError when the time is over."""
        return Within(self)

    def begin(self, deadline: "Deadline", loop: asyncio.AbstractEventLoop) -> None:
        """Start the time of a deadline."""
        if self.loop is not loop:  # what waited in a loop that is gone has gone with it
            self.loop, self._timer = loop, None
            self._due.clear()
        self._due[deadline] = time.monotonic() + self.after_s
        if self._timer is None:
            self._timer = loop.call_later(self.after_s, self._look)

    def end(self, deadline: "Deadline") -> None:
        """Take a deadline out. The timer stays, and may find none that is due."""
        self._due.pop(deadline, None)

    def _look(self) -> None:
        assert self.loop is not None
        self._timer = None
        now, over = time.monotonic(), list[Deadline]()
        for deadline, due in self._due.items():
            if due > now:
                self._timer = self.loop.call_later(due - now, self._look)
                break
            over.append(deadline)
        for deadline in over:
            if self._due.pop(deadline, None) is None:  # taken back by one before it
                continue
            try:
                deadline.expire()
            except Exception as problem:  # noqa: BLE001  # reported, and the others are over too
                self.loop.call_exception_handler(
                    {"message": "a deadline's call failed", "exception": problem}
                )


class Deadline(ABC):
    """One deadline of some Deadlines."""

    __slots__ = ("_deadlines",)

    def __init__(self, deadlines: Deadlines) -> None:
        self._deadlines = deadlines

    def cancel(self) -> None:
        """End it before its time: `expire` is not called."""
        self._deadlines.end(self)

    @abstractmethod
    def expire(self) -> None:
        """Called when the time is over."""


def _nothing() -> None:
    """What is called in place of a callback that was called or cancelled."""


class _Call(Deadline):
    __slots__ = ("_back",)

    def __init__(self, deadlines: Deadlines, back: Callable[[], object]) -> None:
        super().__init__(deadlines)
        self._back = back

    def cancel(self) -> None:
        super().cancel()
        self._back = _nothing

    def expire(self) -> None:
        # Whoever keeps this one is often whom it calls, and that would be a circle until the collector looks.
        back, self._back = self._back, _nothing
        back()


class Within(Deadline):
    """As `asyncio.timeout`: a cancellation by somebody else stays one, also where both come at the same time."""

    __slots__ = ("_cancelling", "_expired", "_task")

    def __enter__(self) -> None:
        # Where the loop is that of the last deadline, the system need not be asked which one it is.
        task = asyncio.current_task(self._deadlines.loop) or asyncio.current_task()
        if task is None:
            raise RuntimeError("a deadline is for what runs in a task")
        self._task, self._cancelling, self._expired = task, task.cancelling(), False
        self._deadlines.begin(self, task.get_loop())

    def __exit__(
        self, kind: type[BaseException] | None, problem: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._deadlines.end(self)
        if self._expired and self._task.uncancel() <= self._cancelling and kind is asyncio.CancelledError:
            raise TimeoutError from problem

    def expire(self) -> None:
        self._expired = True
        self._task.cancel()
