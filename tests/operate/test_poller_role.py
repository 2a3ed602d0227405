"""The poller compares the bank with us by schedule."""

import time
from typing import Any

import pytest

from streamproc.errors import JobFailed
from streamproc.log.cursor import PollCursor
from streamproc.operate import poller_role
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
