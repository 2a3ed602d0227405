"""Suspects of all consumers of a process are handled one after the other, and nothing else waits for that."""

import asyncio

import pytest
from redis.asyncio import Redis

from streamproc.log.group import Consumer
from streamproc.log.quarantine import Quarantine
from streamproc.log.slow_lane import Turns
from streamproc.log.upkeep import SUSPECT_DELIVERIES
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
