"""Metrics that are sent away never hold up the end of a process."""

import asyncio

import pytest

from streamproc.telemetry import push
from streamproc.telemetry.exposure import Page

pytestmark = pytest.mark.timeout(20)


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(push, "LAST_PUSH_S", 1.0)


async def test_a_store_that_does_not_say_its_numbers_does_not_hold_up_the_end() -> None:
    async def never() -> Page:
        await asyncio.Event().wait()
        return []

    async with push.pushing(never, lambda page: None, lambda: None, 60.0):
        pass


async def test_what_was_counted_last_is_sent_and_then_it_is_closed() -> None:
    did: list[object] = []

    async def page() -> Page:
        return []

    async with push.pushing(page, did.append, lambda: did.append("closed"), 60.0):
        pass
    assert did == [[], "closed"]
