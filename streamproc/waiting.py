"""Waiting for an event, but not for longer than so many seconds."""

import asyncio


async def set_within(event: asyncio.Event, seconds: float | None) -> bool:
    """Wait until `event` is set, at most `seconds` (None: for ever); whether it is."""
    # Not wait_for: in Python 3.11 it swallows a cancellation that comes together with what it waits for.
    try:
        async with asyncio.timeout(seconds):
            return await event.wait()
    except TimeoutError:
        return False
