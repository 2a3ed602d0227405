"""What a restart of Redis makes of a backlog: every entry of it counts as delivered before."""

from collections.abc import Awaitable, Callable
from typing import TypeVar

from streamproc.domain import events as e
from tests.model.bank import Bank
from tests.model.playing import Crew
from tests.model.stepping import START, World, governance, the_tests_clock
from tests.model.test_crash_points import Slow
from tests.model.test_found import desk, later
from tests.words import observed, requested

T = TypeVar("T")


class Counting(Slow):
    """Remembers what it was asked, in order."""

    def __init__(self, bank: Bank) -> None:
        super().__init__(bank)
        self.asked: list[str] = []
        act = self.call
        assert act is not None

        async def noted(what: str, does: Callable[[], Awaitable[T]]) -> T:
            self.asked.append(what)
            return await act(what, does)

        self.call = noted


async def backlog_and_restart(crew: Crew, governing: object, *events: e.Event) -> None:
    """Approved, not read by execution yet, and then the server is another run."""
    for event in events:
        await crew.tell(event)
    await crew.rest_of(governing)  # type: ignore[arg-type]
    await crew.world.client.hset(crew.world.names.server, "run", "the one before")
    for consumer, own in crew._all:
        await consumer._take_up_own(own)


async def test_a_backlog_over_a_restart_costs_one_more_question_to_the_bank_each(unsynced: str) -> None:
    bank = Bank()
    wire = Counting(bank)
    shown = observed("pout_1", 100, agent="free", at=START)
    bank.make(shown.facts)
    with the_tests_clock():
        governing = governance()
        async with Crew(World(unsynced), [governing, desk(wire)]) as crew:
            await backlog_and_restart(crew, governing, requested(200, agent="free", at=START), shown)
            await crew.rest()
            assert sorted(wire.asked) == ["approve", "approve", "create", "fetch", "find"]
            assert await crew.world.client.xlen(crew.world.names.dead) == 0
            wire.asked.clear()
            await crew.play([requested(100, key="k2", agent="free", at=START)])
            assert wire.asked == ["create", "approve"], "what comes after the restart is asked about no more"


async def test_what_is_frozen_in_such_a_backlog_keeps_its_money_until_the_bank_has_said_that_nothing_moved(
    unsynced: str,
) -> None:
    """Of a payout at the bank that is its next answer; an intent is looked for as long as one that was lost."""
    bank = Bank()
    wire = Counting(bank)
    asked, shown = requested(200, agent="free", at=START), observed("pout_1", 100, agent="free", at=START)
    bank.make(shown.facts)

    with the_tests_clock():
        governing = governance()
        async with Crew(World(unsynced), [governing, desk(wire)], puts_off=True) as crew:

            async def settled() -> list[str]:
                told = [event for row in await crew.world.rows() for event in row.events]
                return [event.payout for event in told if isinstance(event, e.PayoutSettled)]

            await backlog_and_restart(crew, governing, asked, shown)
            await crew.tell("policies: {free: {frozen: true}}")
            await crew.rest()
            assert bank.now("pout_1").status == "rejected"
            assert await settled() == ["pout_1"]
            for _ in range(8):
                await later(crew, 1_200)
                await crew.rest()
            assert await settled() == ["pout_1", asked.payout]
    assert "create" not in wire.asked
