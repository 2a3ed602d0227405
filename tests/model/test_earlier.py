"""What workers of earlier versions leave in the log, and in Redis, is understood by those of this one beside them."""

import pytest
from msgspec.structs import replace

from consumers import create, enact
from streamproc.domain import events as e
from streamproc.domain.payouts import decode_record, encode_record, fold
from streamproc.domain.wire import payout_of
from tests.model.bank import Bank
from tests.model.playing import Crew
from tests.model.stepping import START, World, governance, the_tests_clock
from tests.model.test_found import Forgetful, desk, later
from tests.words import copy_of, requested


@pytest.mark.parametrize("record", ["as that worker left it", "folded anew"])
async def test_a_lost_attempt_that_a_worker_of_before_rejected_without_naming_it_gives_its_money_back(
    unsynced: str, monkeypatch: pytest.MonkeyPatch, record: str
) -> None:
    """It took the payout that it found for the attempt without recording that. To this version the attempt was still to
    turn up, nobody looked for it any more, and its money stayed reserved for good."""
    for module in (create, enact):
        monkeypatch.setattr(module, "take_for_ours", lambda *_: None)
    bank = Bank()
    wire = Forgetful(bank)
    asked = requested(300, agent="free", at=START)
    with the_tests_clock():
        chain, calls = governance(), desk(wire)
        async with Crew(World(unsynced), [chain, calls], puts_off=True) as crew:
            await crew.tell(asked)
            await crew.rest()
            await crew.tell("policies: {free: {frozen: true}}")
            for _ in range(2):
                await later(crew, 12)
                await crew.rest()
            wire.is_listed = True
            await later(crew, 12)
            await crew.rest_of(chain)
            await crew.rest_of(calls)
            assert bank.now("pout_made_0").status == "rejected"
            key, client = crew.world.names.payout(asked.payout), crew.world.client
            if "left" in record:
                was = replace(
                    decode_record(await client.hget(key, "s")),
                    created_as="",
                    bank_payout="pout_made_0",
                    bank_status="rejected",
                )
                await client.hset(key, "s", encode_record(was))
            await crew.rest()
            told = [event for row in await crew.world.rows() for event in row.events]
            kept = decode_record(await client.hget(key, "s"))
            reserved = {
                await client.hget(b, "r") for b in await client.keys(crew.world.names.budget("*", "*"))
            }
    assert not any(isinstance(event, e.BankCommandAnswered) and event.bank_payout for event in told)
    assert kept == fold(event for event in told if payout_of(event))
    assert (kept.bank_payout, kept.bank_status) == ("pout_made_0", "rejected")
    assert kept.reservation is not None
    assert (kept.reservation.state, reserved) == ("released", {b"0"})


def test_such_an_answer_is_about_the_oldest_payout_that_ended_as_it_says() -> None:
    """Others that agree were cancelled by somebody before, or ended so later."""
    asked = requested(300, agent="free", at=START)
    shown = [
        copy_of(asked, name, status, at=START + n * 1_000_000)
        for n, (name, status) in enumerate(
            [("pout_before", "cancelled"), ("pout_ours", "rejected"), ("pout_later", "rejected")]
        )
    ]
    finding = e.Finding(stage="screening", code="FROZEN", outcome="REJECTED")
    stop = e.PayoutStopped(
        at=START, payout=asked.payout, command="create", finding=finding, maybe_sent=True, caused_by=""
    )
    answer = e.BankCommandAnswered(
        at=START, payout=asked.payout, command="reject", outcome="done", bank_status="rejected"
    )
    record = fold([asked, stop, *shown, answer])
    assert record is not None
    assert record.created_as == "pout_ours"
