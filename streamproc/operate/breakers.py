"""All processes' breakers, in one place for operators: each process reports its own, doctor and `/readyz` read them."""

import asyncio
from collections.abc import Mapping
from contextlib import suppress
from typing import NamedTuple

from streamproc.clients.breaker import Breaker
from streamproc.errors import LogUnavailable
from streamproc.log.breaker_reports import REPORT_EVERY_S, BreakerReport, report_breakers, reported_breakers
from streamproc.waiting import set_within


class Open(NamedTuple):
    """The open breakers, in words, and how many breakers were reported."""

    detail: str
    reported: int


async def report_until(
    url: str, process: str, breakers: Mapping[str, Breaker], stopping: asyncio.Event
) -> None:
    """Report these breakers, by the name of the system, until `stopping`."""
    while not stopping.is_set():
        reports = [
            BreakerReport(process, system, breaker.state, int(breaker.opened_for_s))
            for system, breaker in breakers.items()
        ]
        with suppress(LogUnavailable):
            await report_breakers(url, process, reports)
        await set_within(stopping, REPORT_EVERY_S)


async def open_breakers(url: str) -> Open:
    """The breakers that are open. Raises LogUnavailable."""
    reported = await reported_breakers(url)
    texts = [
        f"{report.system} {report.state} since {report.opened_for_s} s in {report.process}"
        for report in reported
        if report.state == "open"  # half open: the next call tries it, and nothing has to wait
    ]
    return Open("; ".join(texts), len(reported))
