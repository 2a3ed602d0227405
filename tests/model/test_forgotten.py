"""What the bank, or execution, says of a payout whose record has left Redis after the retention time."""

from collections.abc import Awaitable, Callable

import pytest
from msgspec.structs import replace

import consumers
from streamproc.domain import events as e
from streamproc.domain.payouts import PayoutRecord, decode_record, fold
from streamproc.domain.wire import payout_of
from streamproc.log.work import Group
from tests.engine import ZONE
from tests.model.bank import Bank
from tests.model.playing import Crew
from tests.model.stepping import START, World, the_tests_clock, vendors
from tests.model.test_crash_points import Slow
from tests.model.test_found import Forgetful, desk, later
from tests.words import observed, requested


class Archive:
    """The views as of the log of a moment."""

    def __init__(self) -> None:
        self.records: dict[str, PayoutRecord | None] = {}

    async def __call__(self, payout: str) -> PayoutRecord | None:
        return self.records.get(payout)

    async def fold(self, crew: Crew, payout: str) -> None:
        told = [event for row in await crew.world.rows() for event in row.events]
        self.records[payout] = fold(event for event in told if payout_of(event) == payout)


def chain(archive: Callable[[str], Awaitable[PayoutRecord | None]]) -> Group:
    return consumers.governance(vendors(), zone=ZONE, archived=archive)


async def nothing_turns_up(crew: Crew, governing: Group, calling: Group) -> None:
    """An agent is frozen after a lost attempt, of which nothing turns up: execution's answer is all that is said."""
    await crew.tell("policies: {free: {frozen: true}}")
    await later(crew, 12)
    await crew.rest_of(governing)
    await crew.rest_of(calling)
    for _ in range(8):
        await later(crew, 1_200)


def seen(status: str) -> e.PayoutObserved:
    """A payout made long ago."""
    event = observed("pout_1", 300, agent="free", status=status, at=START)
    return replace(event, facts=replace(event.facts, created_at=1_580_000_000))


async def spent(crew: Crew) -> set[tuple[bytes | None, ...]]:
    keys = await crew.world.client.keys(crew.world.names.budget("*", "*"))
    return {tuple(await crew.world.client.hmget(key, "r", "c")) for key in keys}


@pytest.mark.parametrize("views", ["have come so far", "come later"])
async def test_an_answer_of_execution_alone_is_handled_though_its_record_has_left_redis(
    unsynced: str, views: str
) -> None:
    """Governance was behind by the retention time. The answer ended as a dead letter, and what was reserved for the
    payout stayed so."""
    archive, wire = Archive(), Forgetful(Bank())
    asked = requested(300, agent="free", at=START)
    with the_tests_clock():
        governing, calling = chain(archive), desk(wire)
        async with Crew(World(unsynced), [governing, calling], puts_off=True) as crew:
            names, client = crew.world.names, crew.world.client
            await crew.tell(asked)
            await crew.rest()
            await nothing_turns_up(crew, governing, calling)
            assert await client.ttl(names.payout(asked.payout)) > 0
            await client.delete(names.payout(asked.payout))
            if "so far" in views:
                await archive.fold(crew, asked.payout)
            await crew.rest()
            for _ in range(10):
                await later(crew, 70)
            await archive.fold(crew, asked.payout)
            await later(crew, 70)
            await crew.rest()
            kept = decode_record(await client.hget(names.payout(asked.payout), "s"))
            letters, budgets = await client.xlen(names.dead), await spent(crew)
            await archive.fold(crew, asked.payout)
    assert letters == 0
    assert kept.reservation is not None
    assert (kept.state, kept.reservation.state, budgets) == ("rejected", "released", {(b"0", None)})
    assert kept == archive.records[asked.payout]


async def test_what_the_views_show_as_not_over_is_not_settled_by_that(unsynced: str) -> None:
    """Redis forgets only what is over, so they stand still. The reservation was taken for one that is not settled yet,
    and was given back once more: the budget had room that was spent."""
    archive, bank = Archive(), Bank()
    bank.make(seen("pending").facts)
    with the_tests_clock():
        async with Crew(World(unsynced), [chain(archive), desk(Slow(bank))], puts_off=True) as crew:
            names, client = crew.world.names, crew.world.client
            await crew.tell(seen("pending"))
            await crew.rest()
            await archive.fold(crew, "pout_1")
            await crew.tell(seen("processed"))
            await crew.rest()
            assert await spent(crew) == {(b"0", b"300")}
            await client.delete(names.payout("pout_1"))
            await crew.tell(seen("reversed"))
            await crew.rest()
            assert await spent(crew) == {(b"0", b"300")}
            await archive.fold(crew, "pout_1")
            await later(crew, 70)
            await crew.rest()
            assert await spent(crew) == {(b"0", b"0")}


async def test_what_execution_heard_of_the_bank_is_no_first_look_at_a_payout(unsynced: str) -> None:
    """The views stand still and do not show the payout: its approval looked like a payment without one."""
    archive, bank = Archive(), Bank()
    bank.make(seen("pending").facts)
    with the_tests_clock():
        governing, calling = chain(archive), desk(Slow(bank))
        async with Crew(World(unsynced), [governing, calling], puts_off=True) as crew:
            await crew.tell(seen("pending"))
            await crew.rest_of(governing)
            await crew.rest_of(calling)
            assert bank.now("pout_1").status == "processing"
            await crew.world.client.delete(crew.world.names.payout("pout_1"))
            await crew.rest()
            told = [event for row in await crew.world.rows() for event in row.events]
    assert [event.decision for event in told if isinstance(event, e.PayoutDecided)] == ["APPROVED"]
    assert not any(isinstance(event, e.GovernanceBypassed) for event in told)
