"""python -m tests.faults --seed N --minutes M: break the real system by a plan, and check the invariants.

The plan is printed. It is the same for the same seed and length. The exit code is 1 if an invariant does not hold.
"""

import argparse
import asyncio
import sys
import time

from tests.faults.driver import run
from tests.faults.plan import failover_of, full_disk_of, plan_of, spread, sweep_of
from tests.faults.reverts import REVERTS


def main() -> int:
    """Run. Returns 0 if everything held."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description=__doc__)
    parser.add_argument("--seed", type=int, default=1, help="seed from which the plan is drawn (1)")
    parser.add_argument("--minutes", type=float, default=1.0, help="duration of load and faults (1)")
    parser.add_argument("--every", type=float, default=4.0, help="mean seconds between two faults (4)")
    parser.add_argument("--rate", type=float, default=3.0, help="payouts per second (3)")
    parser.add_argument(
        "--revert", choices=sorted(REVERTS), action="append", default=[], help="bring back a known bug"
    )
    parser.add_argument("--flat", action="store_true", help="check that nothing grows; the log is trimmed")
    parser.add_argument(
        "--calm", action="store_true", help="as --flat, and of the roles only worker-2 is ended"
    )
    parser.add_argument("--sweep", action="store_true", help="only every crash point, once")
    parser.add_argument(
        "--failover", choices=("ahead", "behind"), help="fail over to a replica that lags; see failover.py"
    )
    parser.add_argument(
        "--accounts",
        type=int,
        default=1,
        help="number of accounts, each on its own partition: 1, 3, 5 or 6 (1)",
    )
    parser.add_argument(
        "--full-disk", action="store_true", help="fill the disk of Postgres twice; needs root"
    )
    parser.add_argument("--plan", action="store_true", help="only print the plan")
    given = parser.parse_args()
    plan = plan_of(given.seed, given.minutes * 60, every_s=given.every, per_s=given.rate, calm=given.calm)
    if given.sweep:
        plan = sweep_of(given.seed)
    if given.failover:
        plan = failover_of(given.seed, given.failover)
    if given.full_disk:
        plan = full_disk_of(given.seed)
    plan = spread(plan, given.accounts)
    print(plan, flush=True)
    if given.plan:
        return 0
    began = time.monotonic()

    def say(text: str) -> None:
        print(f"[{time.monotonic() - began:6.1f}] {text}", flush=True)

    report = asyncio.run(run(plan, reverts=tuple(given.revert), flat=given.flat or given.calm, say=say))
    print(report)
    print("everything held" if not report.violations else f"{len(report.violations)} findings")
    return int(bool(report.violations))


if __name__ == "__main__":
    sys.exit(main())
