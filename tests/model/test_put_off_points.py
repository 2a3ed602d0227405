"""An intent was put off before its first attempt, and whoever takes it up then dies at any await. It is told to have
been refused only where the bank cannot have made it, and at once where that was known all the time."""

import pytest

from consumers.attempt import Debit
from consumers.enact import Barrier, execution
from streamproc.clients.razorpay import CommandAnswer
from streamproc.domain.events import BankPayout
from streamproc.domain.payouts import PayoutRecord, fold
from streamproc.domain.wire import payout_of
from streamproc.errors import TryAgain
from streamproc.log.work import Group
from tests.consumers.test_refuted import at_once
from tests.model.bank import Bank
from tests.model.crashing import Fuse, How
from tests.model.stepping import START, World, governance, the_tests_clock
from tests.model.test_crash_points import POINTS_MAX, POLICIES, Process, Slow, all_sent_is_done, finish
from tests.words import requested

pytestmark = pytest.mark.timeout(600)  # seconds, on a busy machine

LATER_US = 11_000_000
"""No deferral here is longer."""
EXECUTION = "execution"


class Poor(Bank):
    """A bank that has money for so many orders, and shows what it has made from them in no list yet."""

    def __init__(self, has_money_for: int) -> None:
        super().__init__()
        self.has_money_for, self.orders = has_money_for, 0

    def create(self, order: bytes, key: str) -> CommandAnswer:
        self.orders += 1
        if self.orders <= self.has_money_for:
            return super().create(order, key)
        return CommandAnswer(http_status=400, outcome="refused", code="BAD_REQUEST_ERROR", problem="balance")

    def under(self, reference: str) -> list[BankPayout]:
        return []


async def closed(partition: int, entry: str, e: bytes) -> None:
    """A barrier that nothing passes."""
    raise TryAgain("it is not archived yet")


def desk(bank: Bank, barrier: Barrier = at_once) -> Group:
    return execution(Slow(bank), barrier, Debit("2323230000000000"))


async def put_off_then(url: str, fuse: Fuse, bank: Bank) -> tuple[PayoutRecord, bool]:
    """The intent is put off, taken up by a worker that ends, and left to another one. Its record a little later, and
    whether it was still known to be unsent when the worker had ended."""
    asked, world = requested(400, agent="gateway", at=START), World(url)
    try:
        await world.open([governance(), desk(bank)])
        await world.apply(POLICIES)
        await Process(
            world, desk(bank), "early", claims=False
        ).turn()  # what came before a server is met is doubted
        await world.append(asked)
        await finish(world, governance)
        await Process(world, desk(bank, closed), "slow", claims=False).turn()
        await world.set_clock(world.now + LATER_US)
        await fuse.run(Process(world, desk(bank), "first", claims=True).turn())
        await all_sent_is_done(world)
        notes = await world.client.hkeys(world.names.tries(EXECUTION))
        for _ in range(2):
            await Process(world, desk(bank), "heir", claims=True).turn()
            await world.set_clock(world.now + LATER_US)
        events = [event for row in await world.rows() for event in row.events]
        record = fold([event for event in events if payout_of(event) == asked.payout])
        assert record is not None
        return record, any(note.endswith(b":unsent") for note in notes)
    finally:
        await world.close()


@pytest.mark.parametrize("how", ["killed", "cancelled"])
async def test_what_a_dead_worker_may_have_sent_is_not_told_to_be_refused(unsynced: str, how: How) -> None:
    lost = 0
    with the_tests_clock():
        for at in range(1, POINTS_MAX):
            fuse, bank = Fuse(at, how), Poor(has_money_for=1)
            record, _ = await put_off_then(unsynced, fuse, bank)
            assert [command for _, command in bank.effects][:1] == ["create"], f"{how} at point {at}"
            assert record.failure == "", f"{how} at point {at}: the bank has made it, and may show it later"
            lost += not record.created_as
            if not fuse.blown:
                break
    assert not fuse.blown
    assert lost > 0


@pytest.mark.parametrize("how", ["killed", "cancelled"])
async def test_what_nobody_has_taken_up_before_the_death_is_told_to_be_refused_at_once(
    unsynced: str, how: How
) -> None:
    unsent = 0
    with the_tests_clock():
        for at in range(1, POINTS_MAX):
            fuse, bank = Fuse(at, how), Poor(has_money_for=0)
            record, is_noted = await put_off_then(unsynced, fuse, bank)
            assert record.failure or not is_noted, f"{how} at point {at}"
            unsent += is_noted
            if not fuse.blown:
                break
    assert not fuse.blown
    assert record.failure
    assert unsent > 0
