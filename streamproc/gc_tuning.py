"""Settings of Python's cyclic garbage collector for processes that handle batches or requests."""

import asyncio
import gc

YOUNG_MAX = 50_000
"""Objects before a collection of the young. Two batches are some 20,000, which their reference counts free. With
Python's threshold of 700 the collector looked at every batch again and again, some 40 µs of CPU a payout."""
YOUNG_OF_FOLDS_MAX = 500_000
"""YOUNG_MAX of the projector, whose batch in hand is more than 50,000: rows of up to 8,000 entries that wait until they
are written, cold by then. To look at them was 2 to 5 % of its CPU. A batch leaves some 30 objects in dead cycles."""
WHOLE_S = 60.0
"""Between two full collections. Else old objects in a dead cycle, such as a lost connection (90 kB in the projector),
would stay as long as the process: the thresholds count new objects, of which there are few."""


def tune_for_batches(young_max: int = YOUNG_MAX) -> None:
    """Call once at the start, after all imports: what exists then is never looked at again.

    The young are collected when `young_max` more objects were made than freed. Within a running loop there is a full
    collection of the rest every WHOLE_S, of some ms.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(young_max, 20, 50)
    try:
        loop = asyncio.get_running_loop()
    except RuntimeError:
        return
    _collect_later(loop)


def tune_for_one_job() -> None:
    """For a process of one job, with millions of objects and hardly a cycle: it collects every WHOLE_S only.

    Call within the running loop, after all imports.
    """
    gc.collect()
    gc.freeze()
    gc.disable()
    _collect_later(asyncio.get_running_loop())


def _collect_later(loop: asyncio.AbstractEventLoop) -> None:
    loop.call_later(WHOLE_S, _collect, loop)


def _collect(loop: asyncio.AbstractEventLoop) -> None:
    gc.collect()
    _collect_later(loop)
