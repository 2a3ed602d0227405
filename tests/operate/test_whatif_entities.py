"""Rule 14 on a log that the real engine wrote: what the register said then counts, and what nobody asked is assumed."""

import pytest

from streamproc.clients.breaker import Breaker
from streamproc.clients.gleif import Gleif
from streamproc.clients.http import OutboundClient
from streamproc.clients.ration import Unlimited
from streamproc.domain.events import PayoutRequested
from streamproc.domain.whatif import judge
from tests.clients.loopback import always, loopback
from tests.clients.test_gleif import page
from tests.clients.turns import OwnTurns
from tests.consumers.test_entities import VERDICTS, asks, governance, handled
from tests.engine import Engine
from tests.operate.test_whatif_scenarios import NO_RATE, again, log_of, moved
from tests.words import Payees, Register, observed

LAX = f"policies: {{bot: {{{NO_RATE}}}}}"
STRICT = f"policies: {{bot: {{require_entity: true, {NO_RATE}}}}}"
LIMITED = f"policies: {{bot: {{require_entity: true, per_txn_limit: 50, {NO_RATE}}}}}"
LARGER = f"policies: {{bot: {{require_entity: true, daily_limit: 1000000, {NO_RATE}}}}}"
NAMES = ("Verified Ltd", "Lapsed Ltd", "Nobody Ltd", "Away Ltd")


def payouts() -> dict[str, PayoutRequested]:
    return {name: asks(name, agent="bot") for name in NAMES}


async def test_the_recorded_answers_say_whom_the_candidate_would_hold(redis_url: str) -> None:
    async with Engine(redis_url, groups=[governance(Register(VERDICTS))]) as engine:
        await engine.apply(LAX)
        await handled(engine, *payouts().values())
        log = await log_of(engine)
    assert again(log, None).changed.payouts == 0
    found = again(log, STRICT)
    assert {change.payout: change.new_rules for change in found.changes} == {
        event.payout: ("HELD", "ENTITY_UNVERIFIED")
        for name, event in payouts().items()
        if name != "Verified Ltd"
    }
    assert not [what for what in found.assumed if judge.UNKNOWN_ENTITY in what]


@pytest.mark.parametrize("register", [None, Register(VERDICTS)])
async def test_a_candidate_that_does_not_require_it_lets_go_whom_it_held(
    redis_url: str, register: Register | None
) -> None:
    async with Engine(redis_url, groups=[governance(register)]) as engine:
        await engine.apply(STRICT)
        await handled(engine, payouts()["Lapsed Ltd"])
        log = await log_of(engine)
    assert again(log, None).changed.payouts == 0
    assert again(log, STRICT).changed.payouts == 0
    found = again(log, LAX)
    assert {change.new_rules for change in found.changes} == {("APPROVED", "POLICY_OK")}


async def test_where_no_register_was_asked_an_assumption_is_named_and_may_be_chosen(redis_url: str) -> None:
    event = payouts()["Lapsed Ltd"]
    async with Engine(redis_url, groups=[governance(None)]) as engine:
        await engine.apply(LAX)
        await handled(engine, event)
        log = await log_of(engine)
    kind = again(log, STRICT)
    assert kind.changed.payouts == 0
    assert kind.assumed[f"{judge.UNKNOWN_ENTITY}: taken as verified"].amount == event.amount
    careful = again(log, STRICT, unknown_entity="unavailable")
    assert {change.new_rules for change in careful.changes} == {("HELD", "ENTITY_UNVERIFIED")}
    assert careful.assumed[f"{judge.UNKNOWN_ENTITY}: taken as unavailable"].payouts == 1


async def test_whom_it_held_for_want_of_a_register_it_holds_under_a_candidate_that_requires_it_too(
    redis_url: str,
) -> None:
    async with Engine(redis_url, groups=[governance(None)]) as engine:
        await engine.apply(STRICT)
        await handled(engine, payouts()["Lapsed Ltd"])
        log = await log_of(engine)
    found = again(log, LARGER)
    assert moved(found) == {}
    assert not [what for what in found.assumed if judge.UNKNOWN_ENTITY in what]


async def test_of_a_payout_that_was_rejected_before_the_register_was_asked_it_is_assumed(
    redis_url: str,
) -> None:
    async with Engine(redis_url, groups=[governance(Register(VERDICTS))]) as engine:
        await engine.apply(LIMITED)
        await handled(engine, payouts()["Lapsed Ltd"])
        log = await log_of(engine)
    found = again(log, STRICT)
    assert found.assumed[f"{judge.UNKNOWN_ENTITY}: taken as verified"].payouts == 1
    assert moved(found) == {payouts()["Lapsed Ltd"].payout: "REJECTED -> APPROVED POLICY_OK"}


async def test_a_payout_that_names_no_contact_is_held_and_nothing_is_assumed(redis_url: str) -> None:
    async with Engine(redis_url, groups=[governance(None)]) as engine:
        await engine.apply(LAX)
        await engine.deliver(observed("pout_1", 100, fund_account=""))
        log = await log_of(engine)
    found = again(log, STRICT)
    assert {change.new_rules for change in found.changes} == {("HELD", "ENTITY_UNVERIFIED")}
    assert not [what for what in found.assumed if judge.UNKNOWN_ENTITY in what]


async def test_of_a_payout_whose_contact_the_bank_would_have_been_asked_for_it_is_assumed(
    redis_url: str,
) -> None:
    async with Engine(redis_url, groups=[governance(Register(VERDICTS), payees=Payees({}))]) as engine:
        await engine.apply(LAX)
        await engine.deliver(observed("pout_1", 100))
        log = await log_of(engine)
    careful = again(log, STRICT, unknown_entity="unavailable")
    assert {change.new_rules for change in careful.changes} == {("HELD", "ENTITY_UNVERIFIED")}
    assert careful.assumed[f"{judge.UNKNOWN_ENTITY}: taken as unavailable"].payouts == 1


async def test_whom_the_bank_named_and_the_register_verified_stays_verified(redis_url: str) -> None:
    payees = Payees({"fa_1": "Verified Ltd", "fa_2": "Lapsed Ltd"})
    async with Engine(redis_url, groups=[governance(Register(VERDICTS), payees=payees)]) as engine:
        await engine.apply(STRICT)
        await engine.deliver(observed("pout_1", 100), observed("pout_2", 100, fund_account="fa_2"))
        log = await log_of(engine)
    assert again(log, None).changed.payouts == 0
    assert moved(again(log, LARGER)) == {}
    assert moved(again(log, LAX)) == {"pout_2": "HELD -> APPROVED POLICY_OK"}


async def test_whoever_was_not_asked_about_since_the_register_was_busy_is_assumed_and_not_held(
    redis_url: str,
) -> None:
    """Under the candidate the payout would have waited for its turn."""
    async with loopback(always(200, page())) as server:
        take = OwnTurns(0.000_1, 1).take
        http = OutboundClient("gleif", server.url, timeout_s=60, limiter=Unlimited(), breaker=Breaker())
        async with http, Engine(redis_url, groups=[governance(Gleif(http, take).lookup)]) as engine:
            await engine.apply(LAX)
            await handled(engine, payouts()["Lapsed Ltd"])
            log = await log_of(engine)
    found = again(log, STRICT)
    assert moved(found) == {}
    assert found.assumed[f"{judge.UNKNOWN_ENTITY}: taken as verified"].payouts == 1
