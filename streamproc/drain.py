"""A stopping role ends within STREAMPROC_DRAIN, whatever hangs: one deadline for all that it does until its end.

The time is divided, so that what comes last has some left. Requests have what `requests_s` says. After that and half
of the rest, everything still in progress is cancelled, as if the process had been killed: entries in hand stay pending
and are taken over, transactions did not happen. At the end of the time the process ends, even in the middle of a call
that nobody can cancel, since a container's runtime would kill it then, without a word.
"""

import asyncio
import logging
import os
import threading
from collections.abc import Coroutine
from typing import Any

from streamproc.settings import PREFIX

CLOSE_S_MAX = 4.0
"""For what follows the work: cancelling the rest, closing connections, a last export of telemetry (2 s). Of a
short time it is a quarter."""
SAY_S = 0.2
"""For the last line: whoever reads our stderr may be what hangs."""

log = logging.getLogger(__name__)


def requests_s(drain_s: float) -> float:
    """How long requests in progress have, of the whole time of a stop."""
    return drain_s - _close_s(drain_s)


def _close_s(drain_s: float) -> float:
    return min(CLOSE_S_MAX, drain_s / 4)


class Drain:
    """The time of one role's stop, which begins when it is told to stop. Used around the event loop, whose end can
    hang too."""

    def __init__(self, drain_s: float) -> None:
        self._drain_s = drain_s
        self._end = threading.Timer(drain_s, self._end_process)
        self._end.daemon = True

    def __enter__(self) -> "Drain":
        return self

    def __exit__(self, *_problem: object) -> None:
        self._end.cancel()

    async def run(self, role: Coroutine[Any, Any, None], stopping: asyncio.Event) -> None:
        """Run `role` to its end. Once `stopping` is set the time runs; what is left of it is said, and cancelled."""
        work = asyncio.ensure_future(role)
        told = asyncio.ensure_future(stopping.wait())
        try:
            await asyncio.wait({work, told}, return_when=asyncio.FIRST_COMPLETED)
            if not work.done():
                self._end.start()
                await asyncio.wait({work}, timeout=self._drain_s - _close_s(self._drain_s) / 2)
            if not work.done():
                log.warning(
                    "%sDRAIN, %g s, is nearly over: what is still in hand is left to others",
                    PREFIX,
                    self._drain_s,
                )
                work.cancel()
                await asyncio.wait({work})
            if not work.cancelled():
                await work
        finally:
            told.cancel()
            work.cancel()

    def _end_process(self) -> None:
        said = ("%sDRAIN, %g s, is over, and something here hangs: leaving it", PREFIX, self._drain_s)
        saying = threading.Thread(target=log.error, args=said, daemon=True)
        saying.start()
        saying.join(SAY_S)
        os._exit(1)
