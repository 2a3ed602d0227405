"""Bugs that the tests of this directory found, each as the shortest history that shows it."""

import pytest
from msgspec.structs import replace

from consumers.attempt import Debit
from consumers.enact import execution
from streamproc.clients.http import OutcomeUnknown
from streamproc.clients.razorpay import CommandAnswer, Found
from streamproc.domain import events as e
from streamproc.domain.copies import COPIES_MAX
from streamproc.domain.intent import Beneficiary
from streamproc.domain.payouts import decode_record, fold
from streamproc.domain.wire import payout_of
from streamproc.errors import TryAgain
from streamproc.log.work import Group
from tests.consumers.test_refuted import at_once
from tests.engine import split
from tests.model.bank import Bank
from tests.model.playing import Crew
from tests.model.stepping import START, World, governance, look_and_handle, the_tests_clock
from tests.model.test_crash_points import Slow
from tests.words import ACCOUNT, copy_of, observed, requested, reviewed

PAYEE = Beneficiary(
    contact_name="Some Body", account_type="bank_account", name="Some Body", ifsc="HDFC0000001",
    account_number="000011112222",
)  # fmt: skip


class Forgetful(Slow):
    """The bank acts on the first `create`, but its answer is lost; its list shows the payout later."""

    def __init__(self, bank: Bank) -> None:
        super().__init__(bank)
        self.is_listed = True
        self.lost = False

    async def create(self, order: bytes, key: str) -> CommandAnswer:
        answer = await super().create(order, key)
        if not self.lost:
            self.lost, self.is_listed = True, False
            raise OutcomeUnknown("the answer is lost", after_s=0.0)
        return answer

    async def find(self, account_number: str, reference: str) -> Found:
        return await super().find(account_number, reference) if self.is_listed else Found([])


def desk(wire: Slow) -> Group:
    return execution(wire, at_once, Debit("2323230000000000", ACCOUNT))


async def later(crew: Crew, seconds: float) -> None:
    """Let time pass, and take up what was deferred."""
    await crew.world.set_clock(crew.world.now + int(seconds * 1e6))
    for consumer, client in crew._all:
        await look_and_handle(consumer, client, claims=False)


async def test_a_stopped_intent_that_execution_itself_finds_at_the_bank_is_rejected_there(
    unsynced: str,
) -> None:
    """Bug: execution had folded what it found, so governance took it for known, and it stayed pending for ever."""
    bank = Bank()
    wire = Forgetful(bank)
    asked = requested(300, agent="free", at=START)
    with the_tests_clock():
        async with Crew(World(unsynced), [governance(), desk(wire)], puts_off=True) as crew:
            await crew.tell(asked)
            await crew.rest()
            assert [facts.status for facts in bank.under(asked.payout)] == ["pending"]
            await crew.tell("policies: {free: {frozen: true}}")
            for _ in range(3):
                await later(crew, 12)
                await crew.rest()
            stopped = [event for row in await crew.world.rows() for event in row.events]
            assert any(isinstance(event, e.PayoutStopped) for event in stopped)
            wire.is_listed = True
            for _ in range(3):
                await later(crew, 12)
                await crew.rest()
    assert [facts.status for facts in bank.under(asked.payout)] == ["rejected"]


@pytest.mark.parametrize("status", ["pending", "queued"])
async def test_what_could_have_been_the_intents_until_its_own_was_made_is_ended(
    unsynced: str, status: str
) -> None:
    """Somebody made the same payout under the reference while ours was awaited, and only the answer says which is ours.
    Bug: execution had folded that answer, so the other payout was never ended; a queued one was paid."""
    bank = Bank()
    asked = requested(300, agent="free", payee=PAYEE, at=START)
    foreign = copy_of(asked, "pout_foreign", status)
    bank.make(foreign.facts)
    with the_tests_clock():
        chain, calls = governance(), desk(Slow(bank))
        async with Crew(World(unsynced), [chain, calls]) as crew:
            await crew.tell(asked)
            await crew.rest_of(chain)
            await crew.tell(foreign)
            await crew.rest_of(chain)
            await crew.rest()
    assert bank.now("pout_foreign").status in ("rejected", "cancelled")
    assert [command for _, command in bank.effects].count("create") == 1


async def test_a_settlement_in_a_group_of_its_own_has_ended_what_would_pay_itself(unsynced: str) -> None:
    """Bug: the screening group had folded what the bank showed, so the settling group took it for known."""
    asked = requested(300, agent="free", at=START)
    with the_tests_clock():
        async with Crew(World(unsynced), list(split(governance()).values())) as crew:
            await crew.play([observed("pout_1", agent="stranger"), asked])
            await crew.play([observed("pout_1", agent="stranger", status="queued")])
            await crew.play([copy_of(asked, "pout_foreign", "queued", amount=200)])
            events = [event for row in await crew.world.rows() for event in row.events]
    ended = [(event.payout, event.bank_payout) for event in events if isinstance(event, e.CancelRequested)]
    assert ended == [("pout_1", ""), (asked.payout, "pout_foreign")]


@pytest.mark.parametrize("asks", [True, False])
async def test_what_is_foreign_is_ended_also_beyond_the_copies_that_are_kept(
    unsynced: str, asks: bool
) -> None:
    """Bug: from the ninth copy on, pending payouts were left at the bank, and queued ones were paid."""
    bank = Bank()
    asked = requested(300, agent="free", at=START)
    foreign = [
        copy_of(asked, f"pout_{n:02}", "queued" if n % 2 else "pending", amount=1)
        for n in range(COPIES_MAX + 3)
    ]
    for observation in foreign:
        bank.make(observation.facts)
    with the_tests_clock():
        async with Crew(World(unsynced), [governance(), desk(Slow(bank))]) as crew:
            await crew.play([asked] if asks else [])
            await crew.play(foreign)
            await crew.play(foreign[-2:])  # the same observations, delivered again
    assert {bank.now(observation.facts.id).status for observation in foreign} == {"rejected", "cancelled"}
    ended = [payout for payout, command in bank.effects if command != "create"]
    assert sorted(set(ended)) == sorted(ended)
    assert [command for _, command in bank.effects].count("create") == asks


async def test_what_may_be_the_intents_own_is_not_ended_also_beyond_the_copies_that_are_kept(
    unsynced: str,
) -> None:
    """Our own payout may be the ninth copy, and may be shown before our call is answered."""
    asked = requested(300, agent="free", at=START)
    copies = [copy_of(asked, f"pout_{n:02}", "pending", amount=1) for n in range(COPIES_MAX)]
    with the_tests_clock():
        async with Crew(World(unsynced), [governance()]) as crew:
            await crew.play([asked, *copies, copy_of(asked, "pout_ours", "pending")])
            events = [event for row in await crew.world.rows() for event in row.events]
    ended = {event.bank_payout for event in events if isinstance(event, e.CancelRequested)}
    assert ended == {observation.facts.id for observation in copies}


class Away(Slow):
    """The bank's list cannot be read at the first try."""

    is_away = False

    async def find(self, account_number: str, reference: str) -> Found:
        if self.is_away:
            self.is_away = False
            raise TryAgain("the bank is away", after_s=0.0)
        return await super().find(account_number, reference)


@pytest.mark.parametrize("tries", ["at the first try", "at the second"])
async def test_nothing_is_created_on_top_of_a_payment_around_us_that_is_beyond_the_copies_that_are_kept(
    unsynced: str, tries: str
) -> None:
    """It was made while the intent was held. The record had no room for it, so the approved intent was paid again."""
    bank = Bank()
    wire = Away(bank)
    wire.is_away = "second" in tries
    asked = requested(300, agent="free", payee=PAYEE, at=START)
    foreign = [copy_of(asked, f"pout_{n:02}", "pending", amount=1) for n in range(COPIES_MAX)]
    around = copy_of(asked, "pout_around", "processed", at=START)
    for one in (*foreign, around):
        bank.make(one.facts)
    with the_tests_clock():
        async with Crew(World(unsynced), [governance(), desk(wire)], puts_off=True) as crew:
            await crew.tell("policies: {free: {require_approval_above: 200}}")
            await crew.play([asked, *foreign, around])
            await later(crew, 12)
            await crew.play([reviewed(asked.payout, "asha", "approve", at=START)])
            await later(crew, 12)
            await crew.rest()
            letters = await crew.world.client.xrange(crew.world.names.dead)
            events = [event for row in await crew.world.rows() for event in row.events]
    assert "create" not in [command for _, command in bank.effects]
    [(_, letter)] = letters
    assert b"pout_around moved at the bank" in b"".join(letter)
    bypasses = [event for event in events if isinstance(event, e.GovernanceBypassed)]
    assert [event.bank_payout for event in bypasses] == ["pout_around"]


async def test_a_lost_attempt_of_ours_that_is_beyond_the_copies_that_are_kept_is_no_payment_around_us(
    unsynced: str,
) -> None:
    """The bank has moved it already. Only a call under its key can tell that it is ours."""
    bank = Bank()
    wire = Forgetful(bank)
    asked = requested(300, agent="free", payee=PAYEE, at=START)
    foreign = [copy_of(asked, f"pout_{n:02}", "cancelled", amount=1) for n in range(COPIES_MAX)]
    for one in foreign:
        bank.make(one.facts)
    with the_tests_clock():
        async with Crew(World(unsynced), [governance(), desk(wire)], puts_off=True) as crew:
            for event in (*foreign, asked):
                await crew.tell(event)
                await crew.rest()
            assert wire.lost
            made = replace(bank.now("pout_made_0"), created_at=crew.world.now // 1_000_000)
            bank.payouts[made.id] = [made]
            bank.move(made.id, "processing")
            wire.is_listed = True
            await later(crew, 12)
            await crew.rest()
            record = fold([ev for row in await crew.world.rows() for ev in row.events if payout_of(ev)])
    assert record is not None
    assert (record.created_as, record.bank_status) == ("pout_made_0", "processing")
    assert [command for _, command in bank.effects] == ["create"]


class Undecided(Slow):
    """The bank answers that it rejected a payout, but the payout stays pending for a while."""

    def __init__(self, bank: Bank) -> None:
        super().__init__(bank)
        self.asked = 0
        self.acts = False

    async def reject(self, payout_id: str, remarks: str) -> CommandAnswer:
        self.asked += 1
        if self.acts:
            return await super().reject(payout_id, remarks)
        return CommandAnswer(http_status=200, outcome="done", payout=self.bank.now(payout_id))


async def test_what_the_bank_said_that_it_ends_and_did_not_is_asked_for_again_later_and_not_in_a_circle(
    unsynced: str,
) -> None:
    """Bug: what execution saw made governance ask again, which made execution look again, as fast as the bank was."""
    bank = Bank()
    wire = Undecided(bank)
    asked = requested(300, agent="free", at=START)
    foreign = copy_of(asked, "pout_foreign", "pending", amount=1)
    bank.make(foreign.facts)
    with the_tests_clock():
        async with Crew(World(unsynced), [governance(), desk(wire)], puts_off=True) as crew:
            await crew.tell(asked)
            await crew.rest()
            await crew.tell(foreign)
            await crew.rest()
            assert wire.asked == 1
            wire.acts = True
            await later(crew, 12)
            await crew.rest()
    assert bank.now("pout_foreign").status == "rejected"


@pytest.mark.parametrize("how", ["seen here before", "only listed"])
async def test_what_ended_under_the_reference_does_not_stand_for_an_attempt_that_is_still_looked_for(
    unsynced: str, how: str
) -> None:
    """Somebody's payout with the same reference was cancelled; the answer to our attempt was lost, and the agent
    frozen. Bug: the cancelled payout was taken for our attempt. Its reservation was released at once, and the real one
    stayed pending when it appeared."""
    bank = Bank()
    wire = Forgetful(bank)
    asked = requested(300, agent="free", at=START)
    ended = copy_of(asked, "pout_ended", "cancelled", at=START)
    with the_tests_clock():
        chain = governance()
        async with Crew(World(unsynced), [chain, desk(wire)], puts_off=True) as crew:
            bank.make(ended.facts)
            await crew.tell(asked)
            await crew.rest()
            if how == "seen here before":
                await crew.tell(ended)
                await crew.rest()
            await crew.tell("policies: {free: {frozen: true}}")
            wire.find = Listed(wire, bank, "pout_ended")  # type: ignore[method-assign]
            for _ in range(3):
                await later(crew, 12)
                await crew.rest()
            record = fold([ev for row in await crew.world.rows() for ev in row.events if payout_of(ev)])
            assert record is not None
            assert record.reservation is not None
            assert (record.state, record.reservation.state) == ("rejected", "reserved")
            wire.find = Listed(wire, bank)  # type: ignore[method-assign]
            for _ in range(4):
                await later(crew, 600)
                await crew.rest()
            record = fold([ev for row in await crew.world.rows() for ev in row.events if payout_of(ev)])
    assert bank.now("pout_made_0").status == "rejected"
    assert record is not None
    assert record.reservation is not None
    assert record.reservation.state == "released"


@pytest.mark.parametrize("beside", ["", "an older one that was cancelled"])
@pytest.mark.parametrize("ends", ["reversed", "failed"])
async def test_a_lost_attempt_that_was_paid_all_the_same_gives_its_money_back_if_it_comes_back(
    unsynced: str, ends: str, beside: str
) -> None:
    """The agent was frozen, and webhooks reported the payout's whole course before it was searched for again. Bug: its
    payment was committed, but its end was taken for somebody else's, so the money stayed spent."""
    bank = Bank()
    wire = Forgetful(bank)
    asked = requested(300, agent="free", at=START)
    with the_tests_clock():
        async with Crew(World(unsynced), [governance(), desk(wire)], puts_off=True) as crew:
            await crew.tell(asked)
            await crew.rest()
            await crew.tell("policies: {free: {frozen: true}}")
            await later(crew, 12)
            await crew.rest()
            if beside:
                await crew.tell(copy_of(asked, "pout_ended", "cancelled", at=START))
                await crew.rest()
            for status in ("processing", "processed", ends):
                bank.move("pout_made_0", status)
                await crew.tell(copy_of(asked, "pout_made_0", status, at=START))
                await crew.rest()
            record = fold([ev for row in await crew.world.rows() for ev in row.events if payout_of(ev)])
            keys = await crew.world.client.keys(crew.world.names.budget("*", "*"))
            spent = {tuple(await crew.world.client.hmget(key, "r", "c")) for key in keys}
    assert record is not None
    assert record.reservation is not None
    assert (record.bank_payout, record.reservation.state) == ("pout_made_0", "released")
    assert spent == {(b"0", b"0")}


async def test_an_intent_that_seemed_paid_by_a_copy_and_is_open_again_stays_in_redis(unsynced: str) -> None:
    """Somebody's payout stood for the intent until the answer named its own. Bug: the record kept its time to live, and
    was gone after the retention time although the intent was open."""
    bank = Bank()
    asked = requested(300, agent="free", payee=PAYEE, at=START)
    with the_tests_clock():
        chain = governance()
        async with Crew(World(unsynced), [chain, desk(Slow(bank))]) as crew:
            await crew.tell(asked)
            await crew.rest_of(chain)
            await crew.tell(copy_of(asked, "pout_foreign", "processed"))
            await crew.rest_of(chain)
            key, client = crew.world.names.payout(asked.payout), crew.world.client
            assert await client.ttl(key) > 0
            await crew.rest()
            record = decode_record(await client.hget(key, "s"))
            assert (record.bank_payout, record.bank_status) == ("pout_made_0", "processing")
            assert await client.ttl(key) == -1


async def test_a_failover_that_loses_a_delivery_does_not_make_a_lost_attempt_a_first_one(
    unsynced: str,
) -> None:
    """The new server had the decision, but not that it had been delivered to a worker, which called the bank. Bug: it
    was handled as if for the first time. Its agent was frozen by then, so the reservation was released at once although
    the bank had the payout."""
    bank = Bank()
    wire = Forgetful(bank)
    asked = requested(300, agent="free", at=START)
    with the_tests_clock():
        calls = desk(wire)
        async with Crew(World(unsynced), [governance(), calls], puts_off=True) as crew:
            names, client = crew.world.names, crew.world.client

            async def connect_anew() -> None:
                for consumer, own in crew._all:
                    await consumer._take_up_own(own)

            await connect_anew()
            await crew.tell(asked)
            await crew.rest()
            assert wire.lost
            for row in await client.xpending_range(names.log, calls.name, "-", "+", 10):
                await client.xack(names.log, calls.name, row["message_id"])
            await client.delete(names.retries(calls.name), names.tries(calls.name))
            await client.xgroup_setid(names.log, calls.name, "0-0")
            await client.hset(names.server, "run", "the one before")
            await connect_anew()
            await crew.tell("policies: {free: {frozen: true}}")
            await crew.rest()
            events = [event for row in await crew.world.rows() for event in row.events]
            assert [event.maybe_sent for event in events if isinstance(event, e.PayoutStopped)] == [True]
            wire.is_listed = True
            for _ in range(3):
                await later(crew, 12)
                await crew.rest()
    assert bank.now("pout_made_0").status == "rejected"


class Listed:
    """The bank's list of payouts: all of them, or only these while the list lags behind."""

    def __init__(self, wire: Slow, bank: Bank, *alone: str) -> None:
        self.bank, self.alone = bank, alone

    async def __call__(self, account_number: str, reference: str) -> Found:
        return Found(
            [facts for facts in self.bank.under(reference) if not self.alone or facts.id in self.alone]
        )
