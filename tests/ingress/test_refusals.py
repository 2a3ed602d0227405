"""Refusals are events: the first at once, a flood as few, and nobody waits for them."""

import asyncio
import logging

import pytest

from streamproc.domain.events import AccessRefused
from streamproc.ingress import refusals
from streamproc.ingress.razorpay_webhook import RazorpayWebhook
from streamproc.ingress.refusals import INTERVAL_S, KINDS_MAX, TEXT_CHARS_MAX, Refusals, ThrottledWarning
from streamproc.log.names import partition_of
from streamproc.log.stream import Append, Appended
from tests.deadline import DEADLINE_S
from tests.ingress.recorder import Recorder


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def written(door: Recorder) -> list[tuple[str, str, str, str, int]]:
    events = [event for event in door.events if isinstance(event, AccessRefused)]
    return [(event.subject, event.what, event.payout_named, event.problem, event.count) for event in events]


async def until(door: Recorder, count: int) -> None:
    async with asyncio.timeout(DEADLINE_S):
        while len(door.appends) < count:
            await asyncio.sleep(0)


def refuse(to: Refusals, problem: str = "wrong signature", subject: str = "", payout: str = "") -> None:
    to.note(channel="slack", subject=subject, what="POST /webhooks/slack", problem=problem, payout=payout)


async def test_the_first_refusal_is_written_at_once_in_partition_0():
    door = Recorder()
    async with Refusals(door, clock=Clock()) as to:
        refuse(to, payout="pout_1")
        await until(door, 1)
    assert written(door) == [("", "POST /webhooks/slack", "pout_1", "wrong signature", 1)]
    assert [partition_of(append.account, 1024) for append in door.appends] == [0]


async def test_a_flood_is_one_event_and_its_rest_another_once_the_time_is_over():
    door, clock = Recorder(), Clock()
    async with Refusals(door, interval_s=0.02, clock=clock) as to:
        refuse(to)
        await until(door, 1)
        for _ in range(5_000):
            refuse(to)
        for _ in range(100):
            await asyncio.sleep(0)
        assert len(door.appends) == 1
        clock.now += INTERVAL_S
        await until(door, 2)
    assert [row[-1] for row in written(door)] == [1, 5_000]


async def test_what_is_left_when_the_process_stops_is_written():
    door = Recorder()
    async with Refusals(door, clock=Clock()) as to:
        refuse(to)
        await until(door, 1)
        refuse(to)
        refuse(to)
    assert [row[-1] for row in written(door)] == [1, 2]


async def test_kinds_are_apart_and_beyond_the_limit_they_are_one():
    door = Recorder()
    async with Refusals(door, clock=Clock()) as to:
        for n in range(KINDS_MAX + 500):
            refuse(to, subject=f"slack:U{n}")
        await until(door, KINDS_MAX + 1)
    rows = written(door)
    assert len(rows) == KINDS_MAX + 1
    assert rows[-1][0] == ""
    assert rows[-1][-1] == 500


async def test_a_kind_that_came_to_rest_makes_room():
    door, clock = Recorder(), Clock()
    async with Refusals(door, clock=clock) as to:
        for n in range(KINDS_MAX):
            refuse(to, subject=f"slack:U{n}")
        await until(door, KINDS_MAX)
        clock.now += INTERVAL_S
        refuse(to, subject="slack:U0")  # wakes the writer, which forgets the others
        await until(door, KINDS_MAX + 1)
        refuse(to, subject="slack:UNEW")
        await until(door, KINDS_MAX + 2)
    assert written(door)[-1][0] == "slack:UNEW"


async def test_while_the_log_is_away_nobody_waits_and_nothing_is_lost(caplog: pytest.LogCaptureFixture):
    door, clock = Recorder(), Clock()
    door.is_away = True
    with caplog.at_level(logging.WARNING, logger=refusals.__name__):
        async with Refusals(door, interval_s=0.02, clock=clock) as to:
            refuse(to)
            async with asyncio.timeout(DEADLINE_S):
                while not caplog.records:
                    await asyncio.sleep(0)
            refuse(to)
            door.is_away = False
            clock.now += INTERVAL_S
            await until(door, 1)
    assert [row[-1] for row in written(door)] == [2]
    assert "wrong signature" in caplog.text


async def test_a_defect_of_the_log_is_an_alarm_and_no_request_fails_for_it(caplog: pytest.LogCaptureFixture):
    class Broken(Recorder):
        async def append(self, what: Append, /) -> Appended:
            raise RuntimeError("a defect")

    with caplog.at_level(logging.ERROR, logger=refusals.__name__):
        to = Refusals(Broken(), clock=Clock())
        await to.__aenter__()
        refuse(to)
        async with asyncio.timeout(DEADLINE_S):
            while not caplog.records:
                await asyncio.sleep(0)
        refuse(to)
    assert "ALARM" in caplog.text


async def test_texts_are_cut_and_clean():
    door = Recorder()
    async with Refusals(door, clock=Clock()) as to:
        refuse(to, subject="slack:\ud800\n" + "x" * 5_000, payout="\0" + "y" * 5_000)
    [(subject, _, payout, _, _)] = written(door)
    assert len(subject) == len(payout) == TEXT_CHARS_MAX
    assert subject.isprintable()
    assert payout.isprintable()


async def test_forged_webhooks_are_a_line_of_the_log_in_a_time_and_not_one_each(
    caplog: pytest.LogCaptureFixture,
):
    webhook = RazorpayWebhook(Recorder(), ["a secret"], body_bytes_max=100, fallback_account="acc_1")

    async def receive() -> dict[str, object]:
        return {"type": "http.request", "body": b"{}"}

    async def send(_message: object) -> None:
        pass

    for _ in range(50):
        await webhook({"type": "http", "method": "POST", "headers": []}, receive, send)
    assert len(caplog.records) == 1


def test_what_is_seldom_said_has_the_number(caplog: pytest.LogCaptureFixture):
    clock = Clock()
    warning = ThrottledWarning(logging.getLogger("warning"), "strangers", clock=clock)
    for _ in range(5):
        warning.count()
    clock.now += INTERVAL_S
    warning.count()
    assert [record.getMessage() for record in caplog.records] == ["strangers: 1", "strangers: 5"]
