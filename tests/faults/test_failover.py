"""Redis dies for good and a replica that lags takes over, in the midst of a run.

What may be lost is stated exactly (`Evidence.lost`, docs/reliability.md); all else must hold as in any other run.
"""

import pytest

from tests.faults.driver import Report, run
from tests.faults.failover import MORE
from tests.faults.plan import Plan, failover_of

SEED = 20261126

pytestmark = [pytest.mark.faults, pytest.mark.timeout(420)]


async def ran(plan: Plan) -> Report:
    report = await run(plan)
    print(report)
    assert report.violations == [], f"{plan}\n{report}"
    assert len(report.evidence.lost) >= MORE // 2, "nothing to speak of was lost: the failover showed nothing"
    return report


async def test_an_archive_that_is_ahead_stops_the_projector_and_recover_brings_the_rest_back() -> None:
    report = await ran(failover_of(SEED, "ahead"))

    assert any(alarm.startswith("projector") for alarm in report.alarms)
    assert report.evidence.dropped, "the log grew on before it was recovered"


async def test_an_archive_that_is_behind_needs_nobody_and_what_was_lost_was_not_paid() -> None:
    report = await ran(failover_of(SEED, "behind"))

    assert report.alarms == []
