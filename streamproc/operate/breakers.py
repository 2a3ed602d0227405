"""All processes' breakers, in one place for operators: each process reports its own, doctor and `/readyz` read them."""

import asyncio
import time
from collections.abc import Mapping
from contextlib import suppress
from typing import NamedTuple

from streamproc.clients.breaker import Breaker, State
from streamproc.errors import LogUnavailable
from streamproc.log.breaker_reports import REPORT_EVERY_S, BreakerReport, report_breakers, reported_breakers
from streamproc.waiting import set_within

LOOK_EVERY_S = 0.5
"""Interval at which a process looks whether a breaker of its own changed its state, which is then reported at once."""


class Open(NamedTuple):
    """The open breakers, in words, and how many breakers were reported."""

    detail: str
    reported: int


async def report_until(
    url: str, process: str, breakers: Mapping[str, Breaker], stopping: asyncio.Event
) -> None:
    """Report these breakers, by the name of the system, when one changes and every REPORT_EVERY_S, until `stopping`."""
    told: list[State] = []
    due_at = 0.0
    while not stopping.is_set():
        states = [breaker.state for breaker in breakers.values()]
        if states != told or time.monotonic() >= due_at:
            told, due_at = states, time.monotonic() + REPORT_EVERY_S
            reports = [
                BreakerReport(process, system, state, int(breaker.opened_for_s))
                for (system, breaker), state in zip(breakers.items(), states, strict=True)
            ]
            with suppress(LogUnavailable):
                await report_breakers(url, process, reports)
        await set_within(stopping, LOOK_EVERY_S)


async def open_breakers(url: str) -> Open:
    """The breakers that are open. Raises LogUnavailable."""
    reported = await reported_breakers(url)
    texts = [
        f"{report.system} {report.state} since {report.opened_for_s} s in {report.process}"
        for report in reported
        if report.state == "open"  # half open: the next call tries it, and nothing has to wait
    ]
    return Open("; ".join(texts), len(reported))
