"""The poller compares the bank with us by schedule."""

import time
from typing import Any

import pytest

from streamproc.errors import JobFailed
from streamproc.ingress.razorpay_poll import Pass
from streamproc.log.cursor import Covered, PollCursor
from streamproc.log.lease import Lease
from streamproc.log.names import Names
from streamproc.operate import poller_role
from streamproc.operate.poller_role import teller
from streamproc.operate.polling import LATE_S
from streamproc.settings import Settings

DAY_S = 86_400


@pytest.mark.parametrize(
    ("tried_s_ago", "runs"),
    [(DAY_S + 60, 1), (60, 0), (-365 * DAY_S, 1)],
    ids=["a day ago", "just now", "by a clock that was a year ahead"],
)
async def test_reconcile_runs_once_a_day_even_after_a_clock_that_was_ahead(
    redis_url: str, monkeypatch: pytest.MonkeyPatch, tried_s_ago: int, runs: int
) -> None:
    ran = list[int]()

    async def reconcile(_settings: Settings, *, since_s: int) -> Any:
        ran.append(since_s)
        raise JobFailed("the bank is away")

    monkeypatch.setattr(poller_role, "reconcile", reconcile)
    cursor = PollCursor(redis_url, account="acc_1", partitions=1)
    at_s = int(time.time()) - tried_s_ago
    await cursor.save_reconciled(tried_at=at_s, done_at=at_s, mismatches=0)
    await poller_role._reconcile_if_due(Settings(redis_url=redis_url), cursor)
    assert len(ran) == runs


async def test_a_pass_says_how_long_the_list_counts_as_read_and_one_that_fails_leaves_it_at_that(
    redis_url: str,
) -> None:
    """So the bank is not searched for what it has made, as long as the poller goes on."""
    cursor, now_s = PollCursor(redis_url, account="acc_1", partitions=1), 1_000
    tell = teller(cursor, Lease(redis_url, Names(0), "poll", "host-1"), lambda: now_s * 1_000_000)

    async def covered() -> Covered:
        state = await cursor.state()
        assert state is not None
        return state.covered

    await tell(Pass(to_s=0, server="a", problem="the bank is away"), 1, 10.0)
    assert await covered() == Covered()
    await tell(Pass(to_s=0, server="a"), 0, 10.0)
    assert await covered() == Covered("a", 1_001, 1_010 + int(LATE_S))
    now_s = 1_010
    await tell(Pass(to_s=0, server="a"), 0, 60.0)
    assert await covered() == Covered("a", 1_001, 1_070 + int(LATE_S))
    now_s = 1_070
    await tell(Pass(to_s=0, server="b", problem="the bank is away"), 1, 900.0)
    assert await covered() == Covered("a", 1_001, 1_070 + int(LATE_S))
    await tell(Pass(to_s=0, server="b"), 0, 10.0)
    assert await covered() == Covered("b", 1_071, 1_080 + int(LATE_S))


async def test_a_poller_believes_redis_of_what_was_read_and_not_its_own_memory(redis_url: str) -> None:
    """Redis may have been set back since its last pass."""
    cursor = PollCursor(redis_url, account="acc_1", partitions=1)
    lease = Lease(redis_url, Names(0), "poll", "host-1")
    now_s = 1_000
    tell = teller(cursor, lease, lambda: now_s * 1_000_000)
    await tell(Pass(to_s=0, server="a"), 0, 10.0)
    older = await cursor.state()
    assert older is not None
    for _ in range(30):
        now_s += 10
        await tell(Pass(to_s=0, server="a"), 0, 10.0)
    await cursor.save_state(older)
    await tell(Pass(to_s=0, server="a"), 0, 10.0)
    state = await cursor.state()
    assert state is not None
    assert state.covered.since == now_s + 1
