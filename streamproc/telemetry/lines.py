"""A line of the log for each decision, a batch of them in one write, since a logging call costs as much as deciding."""

import logging
from collections.abc import Sequence
from typing import NamedTuple

from streamproc.domain.traces import trace_id

DECISIONS = logging.getLogger("streamproc.decisions")


class DecisionLine(NamedTuple):
    """What is said of a decision. No vendor and no note: what others wrote is read in the audit."""

    partition: int
    entry: str
    payout: str
    decision: str
    reason: str
    agent: str
    amount: int
    by: str

    def fields(self) -> dict[str, str | int]:
        """For machines, with the trace; `by` only where a person decided."""
        fields = self._asdict() | {"trace_id": trace_id(self.payout)}
        if not self.by:
            del fields["by"]
        return fields


def are_said() -> bool:
    """Whether anybody reads these lines."""
    return DECISIONS.isEnabledFor(logging.INFO)


def say(lines: Sequence[DecisionLine]) -> None:
    """One record; the formatters of `cli/logline.py` make a line of each."""
    if lines:
        DECISIONS.info("%d decisions", len(lines), extra={"decisions": lines})
