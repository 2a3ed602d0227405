"""View `agents`: what each agent asked for, and the outcome."""

from projections.tally import COUNTED, Tallies
from streamproc.archive.sql import statements
from streamproc.domain.payouts import PayoutRecord

NAME = "agents"
VERSION = 1
READS = COUNTED

_SQL = statements("projections", "agents.sql")


def begin() -> Tallies:
    """A new accumulator."""
    return Tallies(_agent, _SQL["add"])


def _agent(record: PayoutRecord) -> str:
    return record.agent
