"""Pushes a process's metrics by OTLP at intervals, if OTEL_METRICS_EXPORTER says so; else they are only scraped.

Each process sends only its own metrics, so nothing is sent twice: `serve` shows all processes on /metrics, but sends
only its own and those read from the stores. Whoever both scrapes and receives has two copies.
"""

import asyncio
import logging
import os
import queue
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress

from streamproc.telemetry.exposure import Page
from streamproc.telemetry.spans import is_otlp
from streamproc.waiting import set_within

INTERVAL_MS = 60_000.0
"""OpenTelemetry's own default of OTEL_METRIC_EXPORT_INTERVAL."""
INTERVAL_MS_MIN = 100.0
"""Least interval: a shorter one would be a mistake, and a burden for the collector."""
LAST_S = 2.0
"""How long an ending process waits for its last metrics, and at the same time its last spans, to be taken. A
collector that hangs must not use up the time for stopping; what it did not take may be lost."""

log = logging.getLogger(__name__)

Send = Callable[[Page], None]
"""Sends a page; returns when it was taken or given up. Called in a thread."""


def is_pushed() -> bool:
    """Whether the environment asks for metrics by OTLP; by default they are only scraped."""
    return is_otlp("OTEL_METRICS_EXPORTER", "none")


def interval_s() -> float:
    """OTEL_METRIC_EXPORT_INTERVAL in seconds; the default if it cannot be read, as in the SDK."""
    try:
        given = float(os.environ.get("OTEL_METRIC_EXPORT_INTERVAL", "") or INTERVAL_MS)
    except ValueError:
        given = INTERVAL_MS
    return (max(INTERVAL_MS_MIN, given) if 0 < given < float("inf") else INTERVAL_MS) / 1000


@asynccontextmanager
async def pushing(
    page: Callable[[], Awaitable[Page]], send: Send, close: Callable[[], None], every_s: float
) -> AsyncIterator[None]:
    """Send `page` every `every_s` while the context lasts, and once at its end; `close` is called after that."""
    sender = _Sender(send, close)
    stopping = asyncio.Event()
    looking = asyncio.create_task(_push(page, sender, stopping, every_s), name="metrics by OTLP")
    try:
        yield
    finally:
        stopping.set()
        try:
            async with asyncio.timeout(LAST_S):
                await looking
                await sender.end()
        except TimeoutError:
            log.warning("the last metrics were not taken within %g s, and may be lost", LAST_S)


async def _push(
    page: Callable[[], Awaitable[Page]], sender: "_Sender", stopping: asyncio.Event, every_s: float
) -> None:
    over = False
    while not over:
        await set_within(stopping, every_s)
        over = stopping.is_set()
        try:
            sender.give(await page())
        except Exception:  # telemetry must not end the role
            log.exception("metrics could not be put together for OTLP")


class _Sender:
    """Sends in a thread that does not keep the process from ending, as an executor's would."""

    def __init__(self, send: Send, close: Callable[[], None]) -> None:
        self._send, self._close = send, close
        self._pages: queue.Queue[Page | None] = queue.Queue(maxsize=2)
        self._loop, self._ended = asyncio.get_running_loop(), asyncio.Event()
        threading.Thread(target=self._run, name="metrics by OTLP", daemon=True).start()

    def give(self, page: Page) -> None:
        """Send this page next. One that still waits is dropped: the newer one contains it."""
        with suppress(queue.Empty):
            self._pages.get_nowait()
        self._pages.put_nowait(page)

    async def end(self) -> None:
        """Wait until the given pages are sent."""
        self._pages.put_nowait(None)  # behind one page at most
        await self._ended.wait()

    def _run(self) -> None:
        while (page := self._pages.get()) is not None:
            try:
                self._send(page)
            except Exception:
                log.exception("metrics could not be sent by OTLP")
        self._close()
        with suppress(RuntimeError):  # the loop has ended
            self._loop.call_soon_threadsafe(self._ended.set)
