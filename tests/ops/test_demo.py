"""The demo comes out as stated at whatever hour, and however often, it is played."""

from datetime import datetime, timedelta
from typing import Any

import pytest

from ops.demo.__main__ import POLICIES
from ops.demo.running import Running
from ops.demo.scenarios import DAY_LEFT_MIN_S, ZONE, wait_for_a_day_s
from streamproc.domain.policy import parse_policy_file
from streamproc.settings import load

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


class Played(Running):
    """A system on which the demo was played so often; it keeps what it is told."""

    def __init__(self, *, times: int) -> None:
        super().__init__(load({}))
        self.times, self.applied, self.payer = times, "", ""

    async def _run(self, arguments: tuple[str, ...], stdin: str = "") -> tuple[int, str, str]:
        match arguments:
            case ("policy", "show", _):
                return (0 if self.times else 1), "", ""
            case ("policy", "apply", "-"):
                self.applied = stdin
        return 0, "applied", ""

    async def control(self, path: str, **body: Any) -> dict[str, Any]:
        self.payer = body["notes"]["agent_id"]
        return {"id": "pout_1"}


async def test_a_first_run_applies_the_file_as_it_is() -> None:
    async with Played(times=0) as running:
        assert await running.begin(POLICIES.read_text()) == "applied"
        await running.pay("demo-budget", 100)
        assert (running.applied, running.payer) == (POLICIES.read_text(), "demo-budget")


async def test_a_later_run_has_agents_of_its_own_since_the_earlier_ones_have_spent_of_their_budgets() -> None:
    async with Played(times=1) as running:
        said = await running.begin(POLICIES.read_text())
        await running.pay("demo-budget", 100)
    suffix = running.payer.removeprefix("demo-budget")
    assert suffix
    assert suffix in said
    before, now = (parse_policy_file(text, name="p.yaml") for text in (POLICIES.read_text(), running.applied))
    assert now.policies == {agent + suffix: fields for agent, fields in before.policies.items()}
    assert now.defaults == before.defaults
