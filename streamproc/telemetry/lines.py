"""A line of the log for each decision, a batch of them in one write, since a logging call costs as much as deciding."""

import logging
from collections.abc import Sequence

from msgspec import Struct

DECISIONS = logging.getLogger("streamproc.decisions")


class DecisionLine(Struct, frozen=True, omit_defaults=True):
    """What is said of a decision. No vendor and no note: what others wrote is read in the audit."""

    partition: int
    entry: str
    payout: str
    trace_id: str
    decision: str
    reason: str
    agent: str
    amount: int
    by: str = ""
    """The reviewer, where a person decided."""


def are_said() -> bool:
    """Whether anybody reads these lines."""
    return DECISIONS.isEnabledFor(logging.INFO)


def say(lines: Sequence[DecisionLine]) -> None:
    """One record; the formatters of `cli/logline.py` make a line of each."""
    if lines:
        DECISIONS.info("%d decisions", len(lines), extra={"decisions": lines})
