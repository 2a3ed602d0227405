"""A log line for each decision, written once per batch, since a logging call costs as much as a decision."""

import logging
from collections.abc import Sequence

from msgspec import Struct

DECISIONS = logging.getLogger("streamproc.decisions")


class DecisionLine(Struct, frozen=True, omit_defaults=True, gc=False):
    """A decision's log line. No vendor and no note: text of strangers is in the audit only."""

    message: str
    """Payout, decision and reason, for people who read the lines of machines."""
    partition: int
    entry: str
    payout: str
    trace_id: str
    decision: str
    reason: str
    agent: str
    amount: int
    by: str = ""
    """The reviewer, if a person decided."""


def is_enabled() -> bool:
    """Whether these lines are logged at all."""
    return DECISIONS.isEnabledFor(logging.INFO)


def log_decisions(lines: Sequence[DecisionLine]) -> None:
    """Log one record for all; the formatters of `cli/logline.py` write a line for each."""
    if lines:
        DECISIONS.info("%d decisions", len(lines), extra={"decisions": lines})
