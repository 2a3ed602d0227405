"""A worker that one entry kills, where the command line says.

    python -m tests.faults.poisoned URL NAME POISON WHERE,... [PARTITIONS] [LANES]

WHERE: `pass` (when it is seen first), `waiting` (it was seen, and another entry has its turn), `turn` (in its own).
LANES: of each partition, whether its group has a slow lane (`y`) or not (`n`); all have one if nothing is said. It
prints the payouts that it has told people of, and the process ends without a word to anybody (os._exit).
"""

import asyncio
import os
import sys
from collections.abc import Sequence

from streamproc.domain.events import PayoutObserved
from streamproc.log import dead_consumers, upkeep
from streamproc.log.batch import Limits
from streamproc.log.group import Consumer
from streamproc.log.slow_lane import AT_ONCE_MAX, Turns
from streamproc.log.work import BatchContext, Group, Item, LeaveToSlowLane, Stage

DIED = 13
"""Exit status of a process that the entry has killed."""
GROUP = "g"
HOLD = "pout_hold"
"""How the names of payouts begin that may wait."""


SLOW = "pout_hold_slow"
"""And of those of whom it takes long to tell people."""
ANSWER_S = 0.3
"""As Slack takes, on a bad day: long enough that the poison has its turn meanwhile."""


def tells(poison: str, where: Sequence[str], *, slow_lane: bool = True) -> Group:
    """The group, with the stage that dies."""
    seen = set[str]()

    def die_if(is_so: bool) -> None:
        if is_so:
            os._exit(DIED)

    async def tell(items: Sequence[Item], ctx: BatchContext) -> None:
        for work, _ in items:
            is_poison = work.payout == poison
            if ctx.may_wait and work.payout.startswith(HOLD):
                die_if(is_poison and "pass" in where)
                seen.add(work.payout)
                work.fail(LeaveToSlowLane())
                continue
            die_if(is_poison and "turn" in where)
            die_if(poison in seen and not is_poison and "waiting" in where)
            if work.payout.startswith(SLOW):
                await asyncio.sleep(ANSWER_S)
            print(work.payout, flush=True)

    stage = Stage(name="tell", consumes=frozenset({PayoutObserved}), handle=tell)
    return Group(
        name=GROUP, stages=(stage,), slow_lane=slow_lane, outputs_are_facts=True, read_max=8, works_max=8
    )


def main(url: str, name: str, poison: str, where: str, partitions: str = "1", lanes: str = "") -> None:
    """Work until somebody ends the process, or the poison does."""
    dead_consumers.IDLE_MS, upkeep.LOOK_S, upkeep.CALLED_S = 1, 0.0, 0.0  # who is gone is gone at once
    limits, has_lane = Limits(claim_idle_s=3_600.0), lanes or "y" * int(partitions)
    groups = [tells(poison, where.split(","), slow_lane=has == "y") for has in has_lane]

    async def work() -> None:
        turns = Turns(AT_ONCE_MAX)
        workers = [
            Consumer(url, partition, group, name=name, limits=limits, turns=turns)
            for partition, group in enumerate(groups)
        ]
        await asyncio.gather(*(worker.run(asyncio.Event()) for worker in workers))

    asyncio.run(work())


if __name__ == "__main__":
    main(*sys.argv[1:])
