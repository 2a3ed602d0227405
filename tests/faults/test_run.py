"""The short run of `make faults`: real processes, real stores, and every kind of fault, by a plan that has a seed.

A run that fails prints its plan; `python -m tests.faults --seed N --minutes M` runs the same again.
"""

import pytest

from tests.faults.driver import run
from tests.faults.invariants import payouts_in
from tests.faults.plan import KINDS, plan_of, spread, sweep_of

SEED = 20261126
SECONDS = 55.0
EVERY_S = 3.6
ACCOUNTS = 3
"""Each account has its own partition."""

pytestmark = [pytest.mark.faults, pytest.mark.timeout(900)]


async def test_whatever_is_broken_every_payout_has_one_story() -> None:
    plan = spread(plan_of(SEED, SECONDS, every_s=EVERY_S), ACCOUNTS)
    assert {fault.kind for fault in plan.faults} == set(KINDS)

    report = await run(plan)

    print(report)
    assert report.violations == [], f"{plan}\n{report}"
    paid = [payouts_in(part.log) for part in report.parts]
    assert len(set().union(*paid)) == sum(map(len, paid)) == len(plan.payments) + plan.overnight
    assert min(map(len, paid)) > len(plan.payments) / 10, "each account, and so each partition, has its share"
    assert report.injected.keys() == set(KINDS)


async def test_a_role_that_dies_at_any_named_point_loses_and_doubles_nothing() -> None:
    plan = sweep_of(SEED)

    report = await run(plan)

    print(report)
    assert report.violations == [], f"{plan}\n{report}"
    wanted = {f"{fault.slot} {fault.detail}" for fault in plan.faults}
    assert set(report.crashed) == wanted, f"never came by: {wanted - set(report.crashed)}"
