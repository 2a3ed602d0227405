"""The demo comes out as stated at whatever hour it is played."""

from datetime import datetime, timedelta

import pytest

from ops.demo.__main__ import POLICIES
from ops.demo.scenarios import DAY_LEFT_MIN_S, ZONE, wait_for_a_day_s
from streamproc.domain.policy import parse_policy_file

MIDNIGHT = datetime.fromisoformat("2027-01-01T00:00:00+05:30")


@pytest.mark.parametrize(
    ("before_s", "wait_s"),
    [(0.5, 1.5), (DAY_LEFT_MIN_S - 1, DAY_LEFT_MIN_S), (DAY_LEFT_MIN_S, 0), (86_400, 0)],
)
def test_right_before_midnight_the_limit_of_a_day_waits_for_the_next_one(
    before_s: float, wait_s: float
) -> None:
    assert wait_for_a_day_s(MIDNIGHT - timedelta(seconds=before_s)) == wait_s


def test_the_day_is_that_of_the_policies() -> None:
    file = parse_policy_file(POLICIES.read_text(), name=POLICIES.name)
    assert file.defaults["timezone"] == ZONE.key
