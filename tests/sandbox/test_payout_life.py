"""A payout's life at the sandbox: states, money, queue, approvals and the clock, without HTTP."""

import random
from typing import Any

import pytest

from ops.sandbox.bank import Bank, Behaviour, Level
from ops.sandbox.directory import Directory
from ops.sandbox.ledger import Ledger, fee_and_tax
from ops.sandbox.orders import Order
from ops.sandbox.refusals import Refused
from ops.sandbox.states import EVENT_OF_MOVE, STATES

NOW = 1_790_000_000.0
FEE = fee_and_tax(100_000, "IMPS")[0]


def bank_with(balance: int = 10_000_000, **behaviour: Any) -> Bank:
    rng = random.Random(7)
    ledger = Ledger(account_number="7878780080316316", balance=balance)
    return Bank("acc_Sandbox0000001", ledger, Directory(rng), Behaviour(**behaviour), rng)


def order(bank: Bank, amount: int = 100_000, **fields: Any) -> Order:
    details = {"name": "Asha", "ifsc": "HDFC0000053", "account_number": "50100012345678"}
    wanted = {"account_type": "bank_account", "bank_account": details, "contact": {"name": "Asha"}}
    if fields.get("mode") == "UPI":
        wanted = {"account_type": "vpa", "vpa": {"address": "asha@ybl"}, "contact": {"name": "Asha"}}
    account = bank.directory.composite({"fund_account": wanted}, int(NOW))
    return Order(**{"fund_account_id": account.id, "amount": amount, "mode": "IMPS", **fields})


def told(bank: Bank) -> list[str]:
    names = [event.name for event in bank.outbox]
    bank.outbox.clear()
    return names


def test_with_the_workflow_off_a_payout_is_processed_and_costs_amount_and_fees() -> None:
    bank = bank_with(workflow="off")
    payout = bank.create(order(bank), NOW)
    assert (payout.status, payout.fees, payout.tax) == ("processing", FEE, FEE * 18 // 118)
    bank.tick(NOW + 1)
    assert payout.status == "processed"
    assert payout.utr is not None
    assert bank.ledger.balance == 10_000_000 - 100_000 - FEE
    assert told(bank) == ["payout.initiated", "payout.processed"]


def test_before_processing_nothing_is_charged() -> None:
    bank = bank_with()
    payout = bank.create(order(bank), NOW)
    assert (payout.status, payout.fees, payout.tax, bank.ledger.balance) == ("pending", 0, 0, 10_000_000)


def test_api_payouts_skip_a_workflow_that_is_only_for_the_dashboard() -> None:
    bank = bank_with(workflow="dashboard")
    assert bank.create(order(bank), NOW).status == "processing"
    assert bank.create(order(bank, origin="dashboard"), NOW).status == "pending"


def test_a_level_asks_for_its_approvals_and_only_for_amounts_within_it() -> None:
    bank = bank_with(levels=[Level(min_amount=100_000, max_amount=500_000, approvals=2)])
    payout = bank.create(order(bank, 100_000), NOW)
    assert bank.create(order(bank, 99_999), NOW).status == "processing"
    told(bank)
    assert bank.approve(payout.id, by="a", remarks="one", now=NOW).status == "pending"
    assert told(bank) == []
    assert bank.approve(payout.id, by="b", remarks="two", now=NOW).status == "processing"
    assert told(bank) == ["payout.initiated"]


def test_the_last_approval_queues_a_payout_that_the_balance_does_not_cover() -> None:
    bank = bank_with(balance=100_000)
    payout = bank.create(order(bank), NOW)
    assert bank.approve(payout.id, by="a", remarks="ok", now=NOW).status == "queued"
    assert payout.reason == "low_balance"


@pytest.mark.parametrize("state", ["queued", "processing"])
def test_only_a_pending_payout_can_be_approved_or_rejected(state: str) -> None:
    bank = bank_with()
    payout = bank.create(order(bank, status=state), NOW)
    for refuse in (bank.approve, bank.reject):
        with pytest.raises(Refused) as refused:
            refuse(payout.id, by="a", remarks="x", now=NOW)
        assert refused.value.reason == "payout_approval_not_allowed"
    assert payout.status == state


def test_a_rejected_payout_gives_its_reason_and_moves_no_money() -> None:
    bank = bank_with()
    payout = bank.create(order(bank), NOW)
    told(bank)
    assert bank.reject(payout.id, by="a", remarks="no", now=NOW).reason == "payout_rejected"
    assert (told(bank), bank.ledger.transactions) == (["payout.rejected"], [])


def test_cancelling_a_queued_payout_sends_no_event() -> None:
    bank = bank_with()
    payout = bank.create(order(bank, status="queued"), NOW)
    told(bank)
    assert bank.cancel(payout.id, NOW).status == "cancelled"
    bank.add_funds(10_000_000, NOW)
    bank.tick(NOW + 10)
    assert (told(bank), payout.status) == ([], "cancelled")


@pytest.mark.parametrize("state", ["pending", "processing"])
def test_only_a_queued_payout_can_be_cancelled(state: str) -> None:
    bank = bank_with()
    payout = bank.create(order(bank, status=state), NOW)
    with pytest.raises(Refused):
        bank.cancel(payout.id, NOW)
    assert payout.status == state


def test_the_queue_is_first_in_first_out_but_skips_what_is_too_dear() -> None:
    bank = bank_with(balance=0, workflow="off")
    dear, first, second = (
        bank.create(order(bank, amount, queue_if_low_balance=True), NOW) for amount in (900_000, 1000, 2000)
    )
    bank.add_funds(1000 + fee_and_tax(1000, "IMPS")[0], NOW)
    assert [dear.status, first.status, second.status] == ["queued", "processing", "queued"]
    assert bank.ledger.balance == 0


def test_low_balance_without_a_queue_is_a_refusal_and_no_payout() -> None:
    bank = bank_with(balance=100_000 + FEE - 1, workflow="off")
    with pytest.raises(Refused, match="does not have enough balance"):
        bank.create(order(bank), NOW)
    assert bank.payouts == {}


def test_exactly_the_cost_is_enough() -> None:
    bank = bank_with(balance=100_000 + FEE, workflow="off")
    assert bank.create(order(bank), NOW).status == "processing"
    assert bank.ledger.balance == 0


@pytest.mark.parametrize("outcome", ["failed", "reversed"])
def test_a_payout_that_does_not_arrive_gives_the_money_back_once(outcome: str) -> None:
    bank = bank_with(workflow="off")
    payout = bank.create(order(bank, outcome=outcome, outcome_reason="bank_account_invalid"), NOW)
    bank.tick(NOW + 1)
    assert (payout.status, payout.reason, bank.ledger.balance) == (
        outcome,
        "bank_account_invalid",
        10_000_000,
    )
    bank.move(payout.id, "reversed" if outcome == "failed" else "failed", NOW, reason=None, utr=None)
    assert bank.ledger.balance == 10_000_000


def test_a_processed_payout_can_be_reversed_late() -> None:
    bank = bank_with(workflow="off")
    payout = bank.create(order(bank, reverse_after_s=3600.0), NOW)
    bank.tick(NOW + 1)
    assert payout.status == "processed"
    bank.tick(NOW + 3600)
    assert payout.status == "processed"
    bank.tick(NOW + 3601)
    assert (payout.status, bank.ledger.balance) == ("reversed", 10_000_000)


def test_the_utr_of_neft_comes_after_processed_as_an_update() -> None:
    bank = bank_with(workflow="off")
    payout = bank.create(order(bank, mode="NEFT"), NOW)
    bank.tick(NOW + 0.2)
    assert (payout.status, payout.utr) == ("processed", None)
    bank.tick(NOW + 0.4)
    assert payout.utr is not None
    assert told(bank) == ["payout.initiated", "payout.processed", "payout.updated"]


def test_upi_adds_keys_to_the_notes() -> None:
    bank = bank_with(workflow="off")
    payout = bank.create(order(bank, mode="UPI", notes={"agent_id": "a"}), NOW)
    assert payout.notes["agent_id"] == "a"
    assert payout.notes["VPA_HANDLE"] == "ybl"


def test_a_move_that_the_bank_does_not_know_is_refused() -> None:
    for start in ("pending", "queued", "processing"):
        bank = bank_with()
        for to in set(STATES) - {end for begin, end in EVENT_OF_MOVE if begin == start} - {start}:
            payout = bank.create(order(bank, status=start), NOW)
            with pytest.raises(Refused):
                bank.move(payout.id, to, NOW, reason=None, utr=None)
            assert payout.status == start


def test_planned_fates_befall_the_next_payouts_in_order() -> None:
    bank = bank_with(workflow="off", next_outcomes=["failed", "stuck"])
    payouts = [bank.create(order(bank), NOW) for _ in range(3)]
    bank.tick(NOW + 1)
    assert [payout.status for payout in payouts] == ["failed", "processing", "processed"]


def test_a_payout_without_a_reason_shows_both_shapes_of_status_details() -> None:
    bank = bank_with(workflow="off")
    shown = [bank.create(order(bank), NOW).shown("m")["status_details"] for _ in range(2)]
    assert shown == [None, {"reason": None, "description": None, "source": None}]


def test_empty_notes_are_a_list_on_the_wire() -> None:
    bank = bank_with()
    assert bank.create(order(bank), NOW).shown("m")["notes"] == []
