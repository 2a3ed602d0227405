"""Whatever is done to payouts in whatever order, the account loses exactly what was paid."""

from hypothesis import given, settings
from hypothesis import strategies as st

from ops.sandbox.ledger import fee_and_tax
from ops.sandbox.refusals import Refused
from ops.sandbox.states import STATES
from tests.sandbox.test_payout_life import NOW, bank_with, order

START = 500_000
PAID = ("processing", "processed")
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("create"), st.sampled_from([100, 100_000, 150_000, 400_000])),
        st.tuples(st.sampled_from(["approve", "reject", "cancel"]), st.integers(0, 5)),
        st.tuples(st.sampled_from([f"to {state}" for state in STATES]), st.integers(0, 5)),
        st.tuples(st.just("fund"), st.sampled_from([-100_000, 100_000, 1_000_000])),
        st.tuples(st.just("wait"), st.integers(0, 1)),
    ),
    max_size=30,
)


@settings(max_examples=150)
@given(
    steps=STEPS, workflow=st.sampled_from(["all", "off"]), outcome=st.sampled_from(["failed", "processed"])
)
def test_the_balance_is_what_came_in_less_what_is_paid_and_never_below_zero(
    steps: list[tuple[str, int]], workflow: str, outcome: str
) -> None:
    bank, now, added = bank_with(START, workflow=workflow, outcome=outcome), NOW, 0
    for what, value in steps:
        chosen = list(bank.payouts)[value : value + 1] or ["pout_00000000000000"]
        before = bank.ledger.balance
        try:
            if what == "create":
                bank.create(order(bank, value, queue_if_low_balance=value > 100), now)
            elif what in ("approve", "reject"):
                getattr(bank, what)(chosen[0], by="a", remarks="x", now=now)
            elif what == "cancel":
                bank.cancel(chosen[0], now)
            elif what == "fund":
                bank.add_funds(value, now)
                added += max(value, -before)
            elif what == "wait":
                now += value
                bank.tick(now)
            else:
                bank.move(chosen[0], what.removeprefix("to "), now, reason=None, utr=None)
        except Refused:
            assert bank.ledger.balance == before
        paid = sum(
            payout.amount + fee_and_tax(payout.amount, payout.mode)[0]
            for payout in bank.payouts.values()
            if payout.status in PAID
        )
        assert bank.ledger.balance == START + added - paid >= 0
