"""In a full load what the chain has to look at waits for that of the next batches, since a pass costs three calls."""

from collections.abc import Sequence
from typing import Any

import pytest
from msgspec.structs import replace
from redis.asyncio import Redis

from streamproc.domain.wire import encode_events
from streamproc.log import waiting
from streamproc.log.batch import Handler
from streamproc.log.scripts import Raw
from streamproc.log.waiting import Waiting
from streamproc.log.work import Work
from tests.engine import Engine
from tests.log.offering import NAMES, POLICIES, Bench, pay
from tests.properties.test_straight import governance
from tests.words import observed

URL = "https://shop.example/"


async def test_what_is_rejected_in_batches_that_follow_each_other_is_decided_in_one_pass(
    bench: Bench,
) -> None:
    called: list[str] = []
    for n in (1, 2, 3):
        opened = await bench.read(pay(f"pout_good{n}"), pay(f"pout_bad{n}", agent="stranger"))
        await bench.handle(opened, more=n < 3)
        called += bench.called
    assert called == ["grant", "grant", "grant", "load", "commit"]
    records = await bench.records(*(f"pout_bad{n}" for n in (1, 2, 3)))
    assert {record.decision for record in records} == {"REJECTED"}
    assert not bench.handler.waiting


async def test_what_waits_is_still_in_our_hands_and_not_decided(bench: Bench) -> None:
    opened = await bench.read(pay("pout_good"), pay("pout_bad", agent="stranger"))
    await bench.handle(opened, more=True)
    (entry,) = bench.handler.waiting
    pending = await bench.client.xpending_range(NAMES.log, bench.handler.group.name, "-", "+", 10)
    assert entry in [row["message_id"] for row in pending]
    assert not await bench.client.exists(NAMES.payout("pout_bad"))


async def test_what_waits_of_a_payout_is_decided_before_what_is_told_of_it_later(bench: Bench) -> None:
    """Cancelled at the bank meanwhile: handled first, it would be nothing to decide."""
    await bench.handle(await bench.read(pay("pout_good1"), pay("pout_bad", agent="stranger")), more=True)
    opened = await bench.read(
        pay("pout_good2"), pay("pout_bad", agent="stranger", status="cancelled"), pay("pout_good3")
    )
    await bench.handle(opened, more=True)
    (record,) = await bench.records("pout_bad")
    assert (record.decision, record.reason) == ("REJECTED", "NO_POLICY")


async def test_what_others_left_comes_after_what_waits(bench: Bench) -> None:
    await bench.handle(await bench.read(pay("pout_good"), pay("pout_bad", agent="stranger")), more=True)
    opened = await bench.read(pay("pout_other"))
    await bench.handler.handle(bench.client, opened.entries, taken=True)
    assert not bench.handler.waiting
    (record,) = await bench.records("pout_bad")
    assert record.decision == "REJECTED"


async def test_so_many_wait_at_most(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(waiting, "WAITING_MAX", 2)
    waited = []
    for n in range(4):
        opened = await bench.read(pay(f"pout_good{n}"), pay(f"pout_bad{n}", agent="stranger"))
        await bench.handle(opened, more=True)
        waited.append(len(bench.handler.waiting))
    assert waited == [1, 2, 0, 1]


async def test_none_waits_for_long(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(waiting, "WAITING_S", 0.0)
    opened = await bench.read(pay("pout_good"), pay("pout_bad", agent="stranger"))
    await bench.handle(opened, more=True)
    assert not bench.handler.waiting


async def test_what_waited_on_a_connection_that_was_lost_is_taken_up_again(bench: Bench) -> None:
    """It is forgotten here, and it is still in the group's list of what is pending."""
    await bench.handle(await bench.read(pay("pout_good"), pay("pout_bad", agent="stranger")), more=True)
    (entry,) = bench.handler.waiting
    bench.handler.forget()
    assert not bench.handler.waiting
    raw = await bench.client.execute_command("XRANGE", NAMES.log, entry, entry)
    await bench.handler.handle(bench.client, raw, taken=True)
    (record,) = await bench.records("pout_bad")
    assert record.decision == "REJECTED"


@pytest.fixture
def waited(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many waited, each time that some might."""
    found: list[int] = []
    has_room = Waiting.has_room

    def seen(waiting: Waiting, works: Sequence[Work]) -> bool:
        answer = has_room(waiting, works)
        found.append(len(waiting))
        return answer

    monkeypatch.setattr(Waiting, "has_room", seen)
    return found


@pytest.fixture
def through_a_read(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many waited when a read came back without entries, each time: for as long as a read blocks."""
    found: list[int] = []
    handle = Handler.handle

    async def seen(handler: Handler, client: Redis, entries: Sequence[Raw], **how: Any) -> None:
        if how.get("ahead") is not None and not entries:
            found.append(len(handler.waiting))
        await handle(handler, client, entries, **how)

    monkeypatch.setattr(Handler, "handle", seen)
    return found


async def test_a_consumer_lets_nothing_wait_when_nothing_comes(
    redis_url: str, waited: list[int], through_a_read: list[int]
) -> None:
    """One full read: every second payout is rejected, and what the group writes of the others it passes over."""
    reads = 8
    async with Engine(redis_url, groups=[replace(governance(), read_max=reads)]) as engine:
        await engine.apply(POLICIES)
        for n in range(3):
            await engine.deliver(observed(f"pout_first{n}", 100, agent="easy", url=URL))
        agents = ("easy", "stranger")
        flood = [observed(f"pout_{n}", 100, agent=agents[n % 2], url=URL) for n in range(reads)]
        async with engine.client.pipeline(transaction=True) as pipe:
            for event in flood:
                pipe.xadd(NAMES.log, {"e": encode_events([event]), "m": b'{"by":"webhook"}'})
            await pipe.execute()
        await engine.settled()
        records = await engine.records()
        decided = [records[event.payout].decision for event in flood]
        assert decided == ["APPROVED", "REJECTED"] * (len(flood) // 2)
    assert max(waited) == reads // 2
    assert not any(through_a_read)
