"""The invariant that money people sign: at no prefix of the log does a window hold more than its limit."""

from collections import defaultdict

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from streamproc.domain.events import BudgetReserved, Event, PayoutSettled
from streamproc.domain.payouts import PayoutRecord, evolve
from streamproc.domain.wire import payout_of
from streamproc.log.connection import connected
from streamproc.log.names import Names
from tests.engine import Engine
from tests.words import ACCOUNT, observed

LIMIT = 1000
POLICIES = f"""
policies:
  bot: {{daily_limit: {LIMIT}, rate_limit: {{count: 0, window: 60}}, require_approval_above: 300}}
  other: {{daily_limit: {LIMIT}, rate_limit: {{count: 0, window: 60}}}}
accounts:
  {ACCOUNT}: {{daily_limit: {LIMIT + 500}}}
reviewers: [asha]
"""

steps = st.lists(
    st.one_of(
        st.tuples(
            st.just("ask"),
            st.integers(0, 9).map("pout_{}".format),
            st.sampled_from(["bot", "other"]),
            st.sampled_from([100, 250, 300, 301, 500, 999, 1000]),
        ),
        st.tuples(
            st.just("bank"),
            st.integers(0, 9).map("pout_{}".format),
            st.sampled_from(["processing", "processed", "failed", "reversed", "rejected"]),
            st.just(0),
        ),
        st.tuples(
            st.just("review"),
            st.integers(0, 9).map("pout_{}".format),
            st.sampled_from(["approve", "reject"]),
            st.just(0),
        ),
    ),
    max_size=30,
)


def check_every_prefix(entries: list[list[Event]]) -> dict[tuple[str, str], tuple[int, int]]:
    """Fold the log as an outsider would; what is in each window in the end."""
    used: dict[tuple[str, str], list[int]] = defaultdict(lambda: [0, 0])
    limits: dict[tuple[str, str], int | None] = {}
    records: dict[str, PayoutRecord | None] = {}
    for event in (event for entry in entries for event in entry):
        payout = payout_of(event)
        before = records.get(payout)
        if isinstance(event, BudgetReserved):
            for window in event.windows:
                used[window.scope, window.window][0] += event.amount
                limits[window.scope, window.window] = window.limit
        elif isinstance(event, PayoutSettled):
            assert before is not None
            assert before.reservation is not None
            where = 0 if before.reservation.state == "reserved" else 1
            for scope, name in event.windows:
                used[scope, name][where] -= event.amount
                used[scope, name][1] += event.amount if event.settlement == "committed" else 0
        if payout:
            records[payout] = evolve(before, event)
        for key, (reserved, committed) in used.items():
            limit = limits[key]
            assert reserved >= 0, key
            assert committed >= 0, key
            assert limit is None or reserved + committed <= limit, key
    return {key: (reserved, committed) for key, (reserved, committed) in used.items()}


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(history=steps)
async def test_no_prefix_of_the_log_overspends(
    redis_url: str, history: list[tuple[str, str, str, int]]
) -> None:
    async with connected(redis_url) as client:
        await client.flushdb()
    async with Engine(redis_url, workers=3) as engine:
        await engine.apply(POLICIES)
        for i, (kind, payout, what, amount) in enumerate(history):
            if kind == "ask":
                await engine.append(ACCOUNT, observed(payout, amount, agent=what))
            elif kind == "bank":
                await engine.append(ACCOUNT, observed(payout, 100, status=what))
            else:
                await engine.review(payout, "asha", what, account=ACCOUNT)
            if i % 7 == 6:
                await engine.settled()
        await engine.settled()
        totals = check_every_prefix(await engine.entries())
        for (scope, name), (reserved, committed) in totals.items():
            row = await engine.client.hmget(Names(0).budget(scope, name), "r", "c")
            assert (int(row[0] or 0), int(row[1] or 0)) == (reserved, committed), (scope, name)
