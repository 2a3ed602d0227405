"""The cyclic garbage collector in a process that handles batches."""

import asyncio
import gc

YOUNG_MAX = 50_000
"""Two batches in hand are some 20,000 objects, and all of them are freed by their reference counts. At Python's own
threshold of 700 the collector looked at every batch again and again, about 40 µs of CPU a payout."""
WHOLE_S = 60.0
"""Between two looks at everything. What dies in a circle when it is old, as a connection that is lost (90 kB of the
projector's), would else stay for as long as the process: the thresholds count what is made, and that is little."""


def look_less_often() -> None:
    """Call once at the start, when everything is imported: what lives as long as the process is not looked at again.

    Within a running loop everything else is looked at now and then; each look takes some ms.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(YOUNG_MAX, 20, 50)
    try:
        loop = asyncio.get_running_loop()
    except RuntimeError:
        return
    _look_later(loop)


def collect_seldom() -> None:
    """For a process of one job, which makes millions of objects and hardly a circle: it looks each WHOLE_S only.

    Call within the running loop, when everything is imported.
    """
    gc.collect()
    gc.freeze()
    gc.disable()
    _look_later(asyncio.get_running_loop())


def _look_later(loop: asyncio.AbstractEventLoop) -> None:
    loop.call_later(WHOLE_S, _look, loop)


def _look(loop: asyncio.AbstractEventLoop) -> None:
    gc.collect()
    _look_later(loop)
