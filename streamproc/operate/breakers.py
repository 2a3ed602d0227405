"""All processes' breakers, in one place for operators: each process reports its own, doctor and `/readyz` read them.

With them goes the time zone in which a worker charges days: with two zones a limit of a day would count twice.
"""

import asyncio
import logging
import time
from collections.abc import Mapping
from contextlib import suppress
from typing import NamedTuple

from streamproc.clients.breaker import Breaker, State
from streamproc.errors import LogUnavailable
from streamproc.log.breaker_reports import REPORT_EVERY_S, BreakerReport, report_breakers, reported_breakers
from streamproc.waiting import set_within

log = logging.getLogger(__name__)

LOOK_EVERY_S = 0.5
"""Interval at which a process looks whether a breaker of its own changed its state, which is then reported at once."""


class Open(NamedTuple):
    """The open breakers, in words, how many breakers were reported, and the time zones in which workers charge days."""

    detail: str
    reported: int
    zones: tuple[str, ...] = ()


async def report_until(
    url: str, process: str, breakers: Mapping[str, Breaker], stopping: asyncio.Event, *, zone: str = ""
) -> None:
    """Report these breakers, by the name of the system, when one changes and every REPORT_EVERY_S, until `stopping`.

    With a `zone`, in whose days this process charges, an alarm is logged when workers charge days of others too.
    """
    told: list[State] = []
    due_at = 0.0
    alarmed: tuple[str, ...] = ()
    while not stopping.is_set():
        states = [breaker.state for breaker in breakers.values()]
        if states != told or time.monotonic() >= due_at:
            told, due_at = states, time.monotonic() + REPORT_EVERY_S
            reports = [
                BreakerReport(process, system, state, int(breaker.opened_for_s), zone=zone)
                for (system, breaker), state in zip(breakers.items(), states, strict=True)
            ]
            with suppress(LogUnavailable):
                await report_breakers(url, process, reports)
                zones = (await open_breakers(url)).zones if zone else ()
                if len(zones) > 1 and zones != alarmed:
                    log.error("ALARM, %s", in_several(zones))
                alarmed = zones
        await set_within(stopping, LOOK_EVERY_S)


def in_several(zones: tuple[str, ...]) -> str:
    """What it means that workers charge days of several time zones."""
    return f"workers charge days of {' and '.join(zones)}: a limit of a day counts in each of them"


async def open_breakers(url: str) -> Open:
    """The breakers that are open. Raises LogUnavailable."""
    reported = await reported_breakers(url)
    texts = [
        f"{report.system} {report.state} since {report.opened_for_s} s in {report.process}"
        for report in reported
        if report.state == "open"  # half open: the next call tries it, and nothing has to wait
    ]
    zones = sorted({report.zone for report in reported} - {""})
    return Open("; ".join(texts), len(reported), tuple(zones))
