"""A breaker's state is shown to operators as soon as it changes, not when the next report is due."""

import asyncio

import pytest

from streamproc.clients.breaker import Breaker
from streamproc.operate import breakers
from streamproc.operate.breakers import open_breakers, report_until
from tests.bank import until


async def test_a_breaker_that_opens_or_closes_between_two_reports_is_shown_at_once(
    redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(breakers, "REPORT_EVERY_S", 3600.0)
    monkeypatch.setattr(breakers, "LOOK_EVERY_S", 0.01)
    now = [0.0]
    breaker, stopping = Breaker(failures_max=1, open_s=15.0, clock=lambda: now[0]), asyncio.Event()
    reporting = asyncio.create_task(report_until(redis_url, "worker-1", {"bank": breaker}, stopping))

    async def is_reported() -> bool:
        return (await open_breakers(redis_url)).reported == 1

    async def is_open() -> bool:
        return "bank open" in (await open_breakers(redis_url)).detail

    async def is_open_no_more() -> bool:
        return not await is_open()

    await until(is_reported, what="the closed breaker is reported")
    breaker.failed(breaker.begin() or 0)
    await until(is_open, what="the open breaker is shown")
    now[0] = 15.0
    await until(is_open_no_more, what="the breaker that lets a call through again is shown")
    stopping.set()
    await reporting
