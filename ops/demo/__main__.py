"""Play every scenario against the running system: `python -m ops.demo`, or `streamproc up --demo`.

Exit 0 when each came out as stated, 1 when one did not, 2 when there is nothing to play against.
"""

import asyncio
import os
import sys
from pathlib import Path

from ops.demo.report import Report
from ops.demo.running import Running
from ops.demo.scenarios import SCENARIOS, Check, Scenario, approval
from streamproc.errors import ConfigError, StreamprocError
from streamproc.settings import PREFIX, Settings, load

POLICIES = Path(__file__).with_name("policies.yaml")
FAILED, WRONG_USE = 1, 2


async def play(settings: Settings, report: Report) -> bool:
    """Apply the policies and play the scenarios; whether all passed. Raises StreamprocError when it cannot go on."""
    async with Running(settings) as running:
        report.say((await running.begin(POLICIES.read_text())).strip())
        for scenario in SCENARIOS:
            report.title(scenario.__doc__ or scenario.__name__)
            await _play_one(scenario, running, report)
        await _nothing_twice(running, report)
        story = next((check.payout for check in report.of(approval.__doc__ or "") if check.payout), "")
        if story:
            report.title(f"The story of the held payout: streamproc explain {story}")
            report.say(await running.cli("explain", story))
    return report.close()


async def _play_one(scenario: Scenario, running: Running, report: Report) -> None:
    try:
        async for check in scenario(running):
            report.add(check)
    except StreamprocError as problem:
        report.add(Check("the scenario", "is played to its end", str(problem)))


async def _nothing_twice(running: Running, report: Report) -> None:
    """Check for commands that came late, after their scenario was over."""
    report.title("At the end the bank was told nothing more")
    payouts = report.last_of_each_payout()
    for check in payouts:
        told = ", ".join(await running.told(check.payout)) or "nothing"
        if not check.expected.endswith(f"told: {told}"):
            report.add(
                Check(f"{check.payout} ({check.about})", check.expected, f"told: {told}", check.payout)
            )
    report.say(f"  {len(payouts)} payouts looked up in the bank's record")


def main() -> int:
    """Run the demo; the exit code."""
    try:
        settings = load(os.environ)
        if not settings.razorpay_key_id.startswith("rzp_test_"):
            raise ConfigError(
                f"{PREFIX}RAZORPAY_KEY_ID is not a test key: the demo plays with a sandbox only"
            )
        return 0 if asyncio.run(play(settings, Report())) else FAILED
    except StreamprocError as problem:
        sys.stderr.write(f"demo: {problem}\n")
        return WRONG_USE if isinstance(problem, ConfigError) else FAILED


if __name__ == "__main__":
    sys.exit(main())
