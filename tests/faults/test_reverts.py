"""Each known bug, brought back by patching the roles, is found within seconds, under the faults that bring it out.

It is found by the invariant that is about it.
"""

import pytest
from msgspec.structs import replace

from tests.faults.driver import run
from tests.faults.plan import Fault, Kind, plan_of
from tests.faults.reverts import REVERTS

SEED = 7
SECONDS = 12.0
REST_MAX_S, LOST_REST_MAX_S = 90.0, 20.0
"""Limits until the system is at rest. If a bug loses entries, it never is, so the second limit is short."""

CAUGHT: dict[str, tuple[tuple[Kind, ...], str, float]] = {
    "acknowledge_before_commit": (("crash",), "nothing_waits_for_ever", LOST_REST_MAX_S),
    "release_to_today": (("reset",), "reserved_is_what_is_open", REST_MAX_S),
    "other_keys_for_the_poller": (("reset",), "no_delivery_counts_twice", REST_MAX_S),
    "no_barrier": (("postgres_stop",), "money_moves_after_the_archive", REST_MAX_S),
    "new_key_for_each_try": (("bank",), "one_command_takes_effect", REST_MAX_S),
    "trim_before_archive": (("postgres_stop",), "the_archive_is_the_log", LOST_REST_MAX_S),
}
"""For each bug: the faults that bring it out, the invariant that finds it, and the limit for coming to rest."""

SHAPED = {
    "new_key_for_each_try": {"how": "inline", "agent": "free"},
    "trim_before_archive": {"how": "pending", "agent": "small"},
}
"""Payments that show the bug soon. Only an intent whose beneficiary has no id at the bank depends on its key alone. And
an approval that waits at the barrier is pending, so the log is not trimmed past it; payouts that are rejected avoid
that."""

WITH = {
    "acknowledge_before_commit": tuple(
        Fault(2.0 * n, "crash", slot=f"worker-{n % 2 + 1}", detail="call:before:2") for n in (1, 2, 3, 4)
    )
}
"""Faults instead of the drawn ones. If a worker dies right before a call, the bank never gets the command that the
worker had acknowledged, which is always noticed. Another crash may lose only what nobody misses."""

pytestmark = [pytest.mark.faults, pytest.mark.timeout(600)]


def test_every_known_bug_is_looked_for() -> None:
    assert {*CAUGHT, "leak"} == REVERTS.keys()  # the leak has a longer run: tests/faults/test_flat.py


@pytest.mark.parametrize("bug", CAUGHT)
async def test_a_known_bug_is_found(bug: str) -> None:
    kinds, invariant, rest_max_s = CAUGHT[bug]
    plan = plan_of(SEED, SECONDS, every_s=2.0, per_s=5.0, kinds=kinds)
    payments = tuple(replace(each, **SHAPED.get(bug, {})) for each in plan.payments)
    plan = replace(plan, payments=payments, overnight=plan.overnight if bug == "release_to_today" else 0)
    plan = replace(plan, faults=WITH.get(bug, plan.faults))

    report = await run(plan, reverts=(bug,), rest_max_s=rest_max_s)

    print(report)
    assert invariant in {found.invariant for found in report.violations}, f"{plan}\n{report}"
