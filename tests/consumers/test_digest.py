"""Digests that are due are told by one channel, recorded as told, and stay due where that does not succeed."""

import asyncio
import logging
from collections.abc import Sequence

import pytest

from consumers import digest as digest_module
from consumers.digest import LOOK_S, send_digests, send_one
from streamproc.clients.ntfy import PRIORITY_DEFAULT, PRIORITY_HIGH
from streamproc.domain.events import NotificationSent
from streamproc.errors import LogUnavailable
from streamproc.log.digests import Digest
from tests.consumers.listeners import People
from tests.words import NOW


def digest(about: str = "FROZEN, agent bot") -> Digest:
    return Digest(
        partition=3, name="n", lease="l", at=NOW, about=about, count=7, paise=250_000, more=True,
        examples=("pout_1",),
    )  # fmt: skip


class Due:
    """Digests that are due look by look; whether they are recorded, and what was."""

    def __init__(self, *looks: Sequence[Digest] | LogUnavailable, is_ours: bool = True) -> None:
        self.looks, self.is_ours = list(looks), is_ours
        self.closed: list[tuple[Digest, NotificationSent, str]] = []
        self.partitions: list[int] = []

    async def take(self, partitions: int) -> list[Digest]:
        self.partitions.append(partitions)
        found = self.looks.pop(0)
        if isinstance(found, LogUnavailable):
            raise found
        return list(found)

    async def close(self, one: Digest, event: NotificationSent, writer: str) -> bool:
        self.closed.append((one, event, writer))
        return self.is_ours


@pytest.mark.parametrize(
    ("about", "priority"), [("FROZEN, agent bot", PRIORITY_DEFAULT), ("BYPASSED, agent bot", PRIORITY_HIGH)]
)
async def test_a_digest_says_how_many_alerts_it_stands_for_and_is_recorded_as_that_many(
    about: str, priority: int
) -> None:
    people, due, one = People(), Due(), digest(about)
    await send_one(due, people.channels, one)
    (push,) = people.topic.pushes
    assert (push.title, push.priority) == (f"more than 7 alerts: {about}", priority)
    assert push.message.splitlines()[:2] == [
        "more than 7 more alerts within a minute, of ₹2,500.00 in all", "for example pout_1",
    ]  # fmt: skip
    event = NotificationSent(at=NOW, kind="digest", channel="ntfy", ref="ref-1", count=7, about=about)
    assert due.closed == [(one, event, "notification")]


async def test_a_digest_that_no_channel_takes_is_not_recorded_so_that_it_is_due_again() -> None:
    people, due = People(), Due()
    people.are_away()
    await send_one(due, people.channels, digest())
    assert due.closed == []


async def test_a_digest_that_may_be_told_twice_is_said_to_be(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        await send_one(Due(), People().channels, digest())
        assert caplog.text == ""
        await send_one(Due(is_ours=False), People().channels, digest())
    assert "may be sent twice" in caplog.text


async def test_digests_are_looked_for_once_a_second_also_after_the_log_was_away_until_the_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    people, stopping, waited = People(), asyncio.Event(), list[float]()
    due = Due([digest("FROZEN"), digest("NO_POLICY")], LogUnavailable("Redis is away"), [digest("MISMATCH")])

    async def wait(stopped: asyncio.Event, seconds: float) -> None:
        waited.append(seconds)
        if not due.looks:
            stopped.set()

    monkeypatch.setattr(digest_module, "set_within", wait)
    await send_digests(due, people.channels, 4, stopping)
    assert (waited, due.partitions) == ([LOOK_S] * 3, [4] * 3)
    assert [one.about for one, _, _ in due.closed] == ["FROZEN", "NO_POLICY", "MISMATCH"]


async def test_who_is_stopped_looks_for_no_digest() -> None:
    stopping, due = asyncio.Event(), Due()
    stopping.set()
    await send_digests(due, People().channels, 1, stopping)
    assert due.partitions == []
