"""Ticks at a fixed rate for an event loop, exact to about 50 µs; the loop's own timers are up to a millisecond late."""

import asyncio
import ctypes
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

_libc = ctypes.CDLL(None, use_errno=True)
_ABSOLUTE = 1
"""TFD_TIMER_ABSTIME"""
_S_NS = 1_000_000_000


class _Spec(ctypes.Structure):
    """struct itimerspec: the interval, then the first tick; each in s and ns."""

    _fields_ = (
        ("interval_s", ctypes.c_long),
        ("interval_ns", ctypes.c_long),
        ("first_s", ctypes.c_long),
        ("first_ns", ctypes.c_long),
    )


@contextmanager
def ticking(first_ns: int, interval_ns: int, on_tick: Callable[[], None]) -> Iterator[None]:
    """Call `on_tick` every `interval_ns` from `first_ns` on (time.monotonic_ns). Ticks that were missed are one call.

    Python has timerfd from 3.13 on; here it comes from the C library, on Linux. Raises OSError.
    """
    timer = _libc.timerfd_create(time.CLOCK_MONOTONIC, os.O_NONBLOCK | os.O_CLOEXEC)
    if timer < 0:
        raise OSError(ctypes.get_errno(), "timerfd_create")

    def ticked() -> None:
        try:
            os.read(timer, 8)
        except BlockingIOError:
            return
        on_tick()

    loop = asyncio.get_running_loop()
    try:
        spec = _Spec(*divmod(interval_ns, _S_NS), *divmod(first_ns, _S_NS))
        if _libc.timerfd_settime(timer, _ABSOLUTE, ctypes.byref(spec), None) < 0:
            raise OSError(ctypes.get_errno(), "timerfd_settime")
        loop.add_reader(timer, ticked)
        yield
    finally:
        loop.remove_reader(timer)
        os.close(timer)
