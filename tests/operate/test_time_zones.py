"""Workers that charge days of different time zones are told apart: a limit of a day counts in each of them."""

import asyncio
import logging

import pytest

from streamproc.clients.breaker import Breaker
from streamproc.log.breaker_reports import BreakerReport, report_breakers
from streamproc.operate.breakers import open_breakers, report_until
from streamproc.operate.doctor import examine
from streamproc.settings import load
from tests.bank import until

INDIA, LONDON = "Asia/Kolkata", "Europe/London"


async def time_zones_of(redis_url: str) -> list[tuple[str, str]]:
    checks = await examine(load({"STREAMPROC_REDIS_URL": redis_url}))
    return [(check.status, check.detail) for check in checks if check.name == "time zone"]


async def reported(redis_url: str, process: str, zone: str) -> None:
    await report_breakers(
        redis_url, process, [BreakerReport(process, "safe browsing", "closed", 0, zone=zone)]
    )


async def test_doctor_has_a_bad_line_where_two_workers_charge_days_of_two_zones(redis_url: str) -> None:
    await reported(redis_url, "worker-1", INDIA)
    await reported(redis_url, "worker-2", LONDON)
    assert await time_zones_of(redis_url) == [
        ("bad", f"workers charge days of {INDIA} and {LONDON}: a limit of a day counts in each of them")
    ]


async def test_workers_of_one_zone_and_processes_that_charge_nothing_are_right(redis_url: str) -> None:
    await reported(redis_url, "worker-1", INDIA)
    await reported(redis_url, "worker-2", INDIA)
    await reported(redis_url, "poller-1", "")
    assert await time_zones_of(redis_url) == []


async def test_a_worker_raises_an_alarm_beside_one_of_another_zone(
    redis_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    await reported(redis_url, "worker-1", INDIA)
    stopping = asyncio.Event()
    with caplog.at_level(logging.ERROR, "streamproc.operate.breakers"):
        breakers = {"safe browsing": Breaker(failures_max=5, open_s=15.0)}
        reporting = asyncio.create_task(report_until(redis_url, "worker-2", breakers, stopping, zone=LONDON))

        async def is_alarmed() -> bool:
            return bool(caplog.messages)

        await until(is_alarmed, what="the worker says so")
        stopping.set()
        await reporting
    assert caplog.messages == [
        f"ALARM, workers charge days of {INDIA} and {LONDON}: a limit of a day counts in each of them"
    ]
    assert (await open_breakers(redis_url)).zones == (INDIA, LONDON)
