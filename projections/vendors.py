"""View `vendors`: what was to be paid to each vendor, and the outcome."""

from projections.tally import COUNTED, Tallies
from streamproc.archive.sql import statements
from streamproc.domain.domains import vendor_name
from streamproc.domain.payouts import PayoutRecord

NAME = "vendors"
VERSION = 1
READS = COUNTED

_SQL = statements("projections", "vendors.sql")


def begin() -> Tallies:
    """A new accumulator."""
    return Tallies(_vendor, _SQL["add"])


def _vendor(record: PayoutRecord) -> str:
    return vendor_name(record.vendor_url, record.fund_account)
