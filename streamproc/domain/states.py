"""The bank's statuses in their order, and our state, which follows from status and decision. Pure.

ours:  received -> held -> approved | rejected -> confirmed -> processed -> reversed
                                                          \\-> failed, cancelled, declined, bypassed
"""

from typing import Literal, TypeAlias

from streamproc.domain.events import Decision

State: TypeAlias = Literal[
    "received",  # seen, not decided
    "held",  # decided: a person must say
    "approved",  # decided, the bank not told yet (or, for queued, nothing to tell)
    "rejected",  # decided, the bank not told yet
    "confirmed",  # approved, and the bank is moving it
    "processed",
    "failed",
    "reversed",
    "cancelled",
    "declined",  # the bank's own `rejected`
    "bypassed",  # moved at the bank without an approval here
]

BANK_RANK: dict[str, int] = {
    "pending": 1,
    "scheduled": 2,
    "queued": 3,
    "processing": 4,
    "processed": 5,
    "cancelled": 6,
    "rejected": 7,
    "failed": 8,
    "reversed": 9,
}
"""A status moves forward to a higher rank only. No two ranks are equal, so the order of arrival does not matter.
`failed` after `processed`, and `reversed` after either, are documented moves; `reversed` ends everything.
Source: RazorpayX docs, states and life cycle."""

OPEN_STATUSES = frozenset({"pending", "scheduled", "queued"})
"""No money has moved, so governance can still say no."""
MOVING_STATUSES = frozenset({"processing", "processed"})
"""Money is on its way, or has arrived."""
MOVED_STATUSES = MOVING_STATUSES | {"reversed"}
"""Money moved, even if it came back since."""
RELEASING_STATUSES = frozenset({"cancelled", "rejected", "failed", "reversed"})
"""The money stays ours or came back, so the reservation is released."""

TERMINAL_STATES: frozenset[State] = frozenset(
    {"processed", "failed", "reversed", "cancelled", "declined", "bypassed"}
)
"""A payout has ended besides these if it is rejected here, and over at the bank or never made there."""
_STATE_OF_DECISION: dict[Decision | None, State] = {
    None: "received",
    "APPROVED": "approved",
    "REJECTED": "rejected",
    "HELD": "held",
}


def state_of(decision: Decision | None, bank_status: str, bypassed: bool) -> State:
    """Our state: by the bank's status once money moved or came back, else by the decision."""
    decided: State = _STATE_OF_DECISION[decision]
    match bank_status:
        case "processed":
            return "bypassed" if bypassed else "processed"
        case "processing":
            return "bypassed" if bypassed else "confirmed" if decision == "APPROVED" else decided
        case "failed":
            return "failed"
        case "reversed":
            return "reversed"
        case "cancelled":
            return "rejected" if decision == "REJECTED" else "cancelled"
        case "rejected":
            return "rejected" if decision == "REJECTED" else "declined"
        case _:
            return decided
