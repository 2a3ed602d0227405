"""Time that passes at once, by the event loop's clock."""

import asyncio


def pass_at_once(seconds: float) -> None:
    """So many seconds are over by the running event loop's clock: what is due by then happens, and nobody waits for it.

    A limit can be long then, so that no pause of the machine reaches it before the test does."""
    loop = asyncio.get_running_loop()
    clock = loop.time
    loop.time = lambda: clock() + seconds  # type: ignore[method-assign]
