"""What a process counts, sent away by OTLP now and then, where OTEL_METRICS_EXPORTER says so; else it is only scraped.

Each process sends its own, and nothing that another one counted, so nothing is there twice: `serve` shows all
processes on /metrics, and sends itself and what the stores say. Whoever both scrapes and receives has two copies.
"""

import asyncio
import logging
import os
import queue
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress

from streamproc.telemetry.exposure import Page

INTERVAL_MS = 60_000.0
"""OpenTelemetry's own default of OTEL_METRIC_EXPORT_INTERVAL."""
INTERVAL_MS_MIN = 100.0
"""Less than this is a mistake that a collector would feel."""
LAST_S = 2.0
"""How long the end of a process waits for its last numbers to be put together and taken, and at the same time for its
last spans. A collector that hangs must not eat up the time that an end has; what it did not take may be lost."""

log = logging.getLogger(__name__)

Send = Callable[[Page], None]
"""Sends a page and returns when it was taken or given up. Called in a thread."""


def is_pushed() -> bool:
    """Whether the environment asks for metrics by OTLP. It must say so: without a word they are scraped."""
    off = os.environ.get("OTEL_SDK_DISABLED", "").strip().lower() == "true"
    exporters = os.environ.get("OTEL_METRICS_EXPORTER", "").lower().split(",")
    return not off and "otlp" in {one.strip() for one in exporters}


def interval_s() -> float:
    """OTEL_METRIC_EXPORT_INTERVAL in seconds; what cannot be read is the default, as in the SDK."""
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
        with suppress(TimeoutError):
            async with asyncio.timeout(every_s):
                await stopping.wait()
        over = stopping.is_set()
        try:
            sender.give(await page())
        except Exception:  # what is only told of must not end the role
            log.exception("metrics could not be put together for OTLP")


class _Sender:
    """One thread of its own that a process does not wait for: an executor's would hold up its end."""

    def __init__(self, send: Send, close: Callable[[], None]) -> None:
        self._send, self._close = send, close
        self._pages: queue.Queue[Page | None] = queue.Queue(maxsize=2)
        self._loop, self._ended = asyncio.get_running_loop(), asyncio.Event()
        threading.Thread(target=self._run, name="metrics by OTLP", daemon=True).start()

    def give(self, page: Page) -> None:
        """Send this next. One that still waits is dropped: what it says the newer one says too."""
        with suppress(queue.Empty):
            self._pages.get_nowait()
        self._pages.put_nowait(page)

    async def end(self) -> None:
        """Wait until what was given is taken."""
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
