"""View `agents`: what each agent asked for, and what came of it."""

from collections.abc import Sequence

import asyncpg

from projections.fold import Step
from projections.tally import COUNTED, Tallies, add, tallies
from streamproc.archive.sql import statements
from streamproc.domain.payouts import PayoutRecord

NAME = "agents"
VERSION = 1
READS = COUNTED

_SQL = statements("projections", "agents.sql")


async def write(db: asyncpg.Connection, steps: Sequence[Step]) -> None:
    """Bring the view up to date with `steps`."""
    await add(db, _SQL["add"], steps[0].partition, tallies(steps, _agent))


def begin() -> Tallies:
    """What a builder adds up."""
    return Tallies(_agent, _SQL["add"])


def _agent(record: PayoutRecord) -> str:
    return record.agent
