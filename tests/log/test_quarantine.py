"""Suspects of all consumers of a process are handled one after the other, and nothing else waits for that."""

import asyncio
from collections.abc import Sequence

import pytest
from redis.asyncio import Redis

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
    await hold(client, await pay(client, "pout_suspect"), SUSPECT_DELIVERIES)
    anothers = turns.quarantine.join()
    stopping = asyncio.Event()
    consumer = Consumer(redis_url, 0, doing.group, name="me", limits=NEVER, turns=turns)
    running = asyncio.create_task(consumer.run(stopping))

    async def are_handled(*payouts: str) -> None:
        async def is_so() -> bool:
            return doing.given == [[payout] for payout in payouts]

        await until(is_so, what=f"{payouts} were handled")

    async def waits() -> bool:
        return consumer._place is not None

    await until(waits, what="the suspect waits for its turn")
    await pay(client, "pout_new")
    await are_handled("pout_new")
    [row] = await client.xpending_range(NAMES.log, "g", "-", "+", 9)
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
        return consumer._place is not None

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
