"""How late an event loop runs: while it computes, nothing else in the process goes on."""

import asyncio

from streamproc.telemetry.metrics import Meters
from streamproc.waiting import set_within

LOOK_S = 0.25
"""Between two measurements: a stall of a second is seen, and four wake-ups a second cost nothing."""


async def watch_loop(meters: Meters, stopping: asyncio.Event) -> None:
    """Observe how much later than asked the loop wakes up, until `stopping`."""
    loop = asyncio.get_running_loop()
    while not stopping.is_set():
        asked = loop.time() + LOOK_S
        await set_within(stopping, LOOK_S)
        meters.loop_lag_seconds.observe(max(0.0, loop.time() - asked))
