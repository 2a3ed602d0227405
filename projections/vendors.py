"""View `vendors`: what was asked to be paid to each vendor, and what came of it."""

from collections.abc import Sequence

import asyncpg

from projections.fold import Step
from projections.tally import COUNTED, Tallies, add, tallies
from streamproc.archive.sql import statements
from streamproc.domain.domains import vendor_name
from streamproc.domain.payouts import PayoutRecord

NAME = "vendors"
VERSION = 1
READS = COUNTED

_SQL = statements("projections", "vendors.sql")


async def write(db: asyncpg.Connection, steps: Sequence[Step]) -> None:
    """Bring the view up to date with `steps`."""
    await add(db, _SQL["add"], steps[0].partition, tallies(steps, _vendor))


def begin() -> Tallies:
    """What a builder adds up."""
    return Tallies(_vendor, _SQL["add"])


def _vendor(record: PayoutRecord) -> str:
    return vendor_name(record.vendor_url, record.fund_account)
