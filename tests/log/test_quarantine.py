"""Suspects of all consumers of a process are handled one after the other, and nothing else waits for that."""

import asyncio
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager

import pytest
from redis.asyncio import Redis

from streamproc.errors import LogUnavailable
from streamproc.log import claims, suspects
from streamproc.log.claims import TakenUp
from streamproc.log.group import Consumer
from streamproc.log.quarantine import Quarantine
from streamproc.log.slow_lane import Turns
from streamproc.log.upkeep import SUSPECT_DELIVERIES
from streamproc.log.work import BatchContext, Item
from tests.bank import until
from tests.deadline import DEADLINE_S
from tests.log.test_left import NAMES, NEVER, Doing, at_once, hold, pay  # noqa: F401  a fixture


async def test_turns_come_one_at_a_time_in_the_order_in_which_they_were_asked_for() -> None:
    quarantine = Quarantine()
    first, second, third = [quarantine.join() for _ in range(3)]
    assert [place.done() for place in (first, second, third)] == [True, False, False]
    quarantine.leave(first)
    assert [place.done() for place in (second, third)] == [True, False]
    last = quarantine.join()
    quarantine.leave(second)
    assert [place.done() for place in (third, last)] == [True, False]


async def test_who_gives_up_waiting_keeps_nobody_waiting() -> None:
    quarantine = Quarantine()

    async def have() -> None:
        async with quarantine.turn():
            raise AssertionError("another has a turn")

    async with asyncio.timeout(DEADLINE_S):
        async with quarantine.turn():
            waiting = asyncio.create_task(have())
            await asyncio.sleep(0)
            last = quarantine.join()
            waiting.cancel()
            await asyncio.gather(waiting, return_exceptions=True)
            assert not last.done()
        await last


@pytest.mark.usefixtures("at_once")
async def test_while_another_consumer_has_its_turn_suspects_wait_and_nothing_else_does(
    client: Redis, redis_url: str
) -> None:
    doing, turns = Doing(), Turns(1)
    [suspect] = await pay(client, "pout_suspect")
    await hold(client, [suspect], SUSPECT_DELIVERIES)
    anothers = turns.quarantine.join()
    stopping = asyncio.Event()
    consumer = Consumer(redis_url, 0, doing.group, name="me", limits=NEVER, turns=turns)
    running = asyncio.create_task(consumer.run(stopping))

    async def are_handled(*payouts: str) -> None:
        async def is_so() -> bool:
            return doing.given == [[payout] for payout in payouts]

        await until(is_so, what=f"{payouts} were handled")

    async def waits() -> bool:
        return consumer._suspects.place is not None

    await until(waits, what="the suspect waits for its turn")
    await pay(client, "pout_new")
    await are_handled("pout_new")
    [row] = await client.xpending_range(NAMES.log, "g", suspect, suspect, 1)
    assert row["times_delivered"] == SUSPECT_DELIVERIES  # to wait is no delivery
    turns.quarantine.leave(anothers)
    await are_handled("pout_new", "pout_suspect")
    stopping.set()
    await running
    assert turns.quarantine.join().done()  # nobody kept a place


class Busy(Doing):
    """A group that is busy with these payouts until it is told to go on."""

    def __init__(self, *payouts: str) -> None:
        super().__init__()
        self.go_on = {payout: asyncio.Event() for payout in payouts}

    async def _do(self, items: Sequence[Item], ctx: BatchContext) -> None:
        await super()._do(items, ctx)
        for work, _ in items:
            if work.payout in self.go_on:
                await self.go_on[work.payout].wait()


@pytest.mark.usefixtures("at_once")
async def test_who_stops_keeps_no_place_while_it_finishes_what_it_has_in_hand(
    client: Redis, redis_url: str
) -> None:
    """A suspect in a slow lane waited for the end of another consumer, until its own had no time left."""
    doing, turns = Busy("pout_busy", "pout_last"), Turns(1)
    await hold(client, await pay(client, "pout_suspect"), SUSPECT_DELIVERIES)
    anothers = turns.quarantine.join()
    stopping = asyncio.Event()
    consumer = Consumer(redis_url, 0, doing.group, name="me", limits=NEVER, turns=turns)
    running = asyncio.create_task(consumer.run(stopping))

    async def waits() -> bool:
        return consumer._suspects.place is not None

    async def has(*payouts: str) -> None:
        async def is_so() -> bool:
            return doing.given == [[payout] for payout in payouts]

        await until(is_so, what=f"it was given {payouts}")

    await until(waits, what="the suspect waits for its turn")
    await pay(client, "pout_busy")
    await has("pout_busy")
    await pay(client, "pout_last")
    stopping.set()
    doing.go_on["pout_busy"].set()
    await has("pout_busy", "pout_last")
    turns.quarantine.leave(anothers)
    assert turns.quarantine.join().done()
    doing.go_on["pout_last"].set()
    await running


@asynccontextmanager
async def waiting_for_its_turn(
    client: Redis, url: str, doing: Doing, turns: Turns
) -> AsyncIterator[Consumer]:
    """A consumer with suspects, while another has the turn."""
    stopping = asyncio.Event()
    consumer = Consumer(url, 0, doing.group, name="me", limits=NEVER, turns=turns)
    running = asyncio.create_task(consumer.run(stopping))

    async def waits() -> bool:
        return consumer._suspects.place is not None

    try:
        await until(waits, what="the suspect waits for its turn")
        yield consumer
    finally:
        stopping.set()
        await running


async def are_given(doing: Doing, *payouts: str) -> None:
    async def is_so() -> bool:
        return doing.given == [[payout] for payout in payouts]

    await until(is_so, what=f"it was given {payouts}")


async def deliveries(client: Redis) -> list[int]:
    return [row["times_delivered"] for row in await client.xpending_range(NAMES.log, "g", "-", "+", 9)]


@pytest.mark.usefixtures("at_once")
async def test_a_suspect_that_was_in_hand_when_the_connection_was_lost_waits_for_a_turn_too_and_is_not_delivered_again(
    client: Redis, redis_url: str
) -> None:
    """A killer killed beside an innocent one that had the turn, and that was counted against the innocent one alone."""
    doing, turns, more = Busy("pout_suspect"), Turns(1), SUSPECT_DELIVERIES + 1
    ids = await pay(client, "pout_suspect")
    await hold(client, ids, more)
    await client.execute_command("XCLAIM", NAMES.log, "g", "me", 0, *ids, "RETRYCOUNT", more, "JUSTID")
    anothers = turns.quarantine.join()
    async with waiting_for_its_turn(client, redis_url, doing, turns):
        await pay(client, "pout_new")
        await are_given(doing, "pout_new")
        turns.quarantine.leave(anothers)
        await are_given(doing, "pout_new", "pout_suspect")
        assert await deliveries(client) == [more]
        doing.go_on["pout_suspect"].set()


@pytest.mark.usefixtures("at_once")
@pytest.mark.parametrize("before", [SUSPECT_DELIVERIES, SUSPECT_DELIVERIES + 1])
async def test_a_suspect_that_waited_for_its_turn_when_the_connection_was_lost_is_delivered_when_the_turn_comes(
    client: Redis, redis_url: str, before: int
) -> None:
    """What kills its workers was never a dead letter if a connection was lost in each of their lives."""
    doing, turns = Busy("pout_suspect"), Turns(1)
    await hold(client, await pay(client, "pout_suspect"), before)
    anothers = turns.quarantine.join()
    async with waiting_for_its_turn(client, redis_url, doing, turns) as consumer:
        first = consumer._suspects.place
        consumer._lost_beside = LogUnavailable("away")

        async def waits_again() -> bool:
            return consumer._suspects.place not in (None, first)

        await until(waits_again, what="it is connected anew, and the suspect waits again")
        assert (doing.given, await deliveries(client)) == ([], [before])
        turns.quarantine.leave(anothers)
        await are_given(doing, "pout_suspect")
        assert await deliveries(client) == [before + 1]
        doing.go_on["pout_suspect"].set()


@pytest.mark.usefixtures("at_once")
async def test_what_waits_too_long_for_its_turn_is_let_go_and_all_else_is_held(
    client: Redis, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No claim of the consumer was renewed any more: others took what it had in hand, and told people again."""
    monkeypatch.setattr(claims, "PART", 100_000)  # renewals are due at every look
    monkeypatch.setattr(suspects, "WAIT_MAX_S", 0.0)
    doing, turns = Busy("pout_busy", "pout_suspect"), Turns(1)
    [suspect] = await pay(client, "pout_suspect")
    await hold(client, [suspect], SUSPECT_DELIVERIES)
    anothers = turns.quarantine.join()
    async with waiting_for_its_turn(client, redis_url, doing, turns):
        [busy] = await pay(client, "pout_busy")
        await are_given(doing, "pout_busy")
        half_hour_ms = 1_800_000  # which is less than the claim time

        async def seem_idle() -> None:
            age = ("IDLE", half_hour_ms, "JUSTID")
            await client.execute_command("XCLAIM", NAMES.log, "g", "me", 0, suspect, busy, *age)

        async def held() -> set[bytes]:
            rows = await client.xpending_range(NAMES.log, "g", "-", "+", 9, "me")
            return {row["message_id"] for row in rows if row["time_since_delivered"] < half_hour_ms}

        await seem_idle()
        assert await until(held, what="a claim is renewed") == {busy}
        doing.go_on["pout_busy"].set()
        turns.quarantine.leave(anothers)
        await are_given(doing, "pout_busy", "pout_suspect")  # nobody has taken it meanwhile
        await seem_idle()
        assert await until(held, what="its claim is renewed while it is in hand") == {suspect}
        assert not await client.exists(NAMES.tries("g")), "the time of a pass is over, and it was put off"
        doing.go_on["pout_suspect"].set()


# ---- suspects by themselves ----


class Parts:
    """What suspects have of their consumer."""

    def __init__(self) -> None:
        self.let_go = list[bytes]()
        self.counted = list[bool]()
        """Of each that was taken up, whether as a delivery."""

    async def take_up(self, _client: Redis, _part: list[bytes], *, most: int | None) -> list[TakenUp]:
        self.counted.append(most is not None)
        return []

    def add(self, _entries: list[bytes], _since_s: float) -> None:
        pass

    def done(self, entries: Iterable[bytes]) -> None:
        self.let_go += entries


def suspects_of(parts: Parts) -> suspects.Suspects:
    return suspects.Suspects(parts, parts, Quarantine())  # type: ignore[arg-type]


async def test_what_waits_for_too_long_is_let_go_together_with_what_waits_behind_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    parts, behind = Parts(), [TakenUp(1, b"9-1", waited=True)]
    some = suspects_of(parts)
    some.add([[b"1-1", b"2-1"], [b"3-1"]])
    some.join_quarantine()
    some.let_go(behind)
    assert parts.let_go == []
    monkeypatch.setattr(suspects, "WAIT_MAX_S", 0.0)
    some.let_go(behind)
    assert parts.let_go == [b"1-1", b"2-1", b"3-1", b"9-1"]
    parts.let_go.clear()
    some.leave_quarantine()
    some.let_go(behind)
    assert parts.let_go == []


async def test_the_first_turn_of_what_was_claimed_is_a_delivery_whatever_connections_are_lost_before_and_none_after(
    client: Redis,
) -> None:
    """Ten lost connections made a dead letter of an innocent one, or none ever of a killer."""
    parts, entry = Parts(), b"1-1"
    some = suspects_of(parts)
    some.claimed([[entry]], 0.0)
    for _ in range(2):
        some.forget()
        some.add_again([entry])
    for _ in range(2):
        await some.take_up_next(client)
        some.forget()
        some.add_again([entry])
    assert parts.counted == [True, False]
    some.claimed([[entry]], 0.0)  # once more, and lost to others
    some.forget()
    some.add_again([])
    some.add_again([entry])
    await some.take_up_next(client)
    assert parts.counted == [True, False, False]
