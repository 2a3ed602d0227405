"""What the bank must be told: the table "Telling the bank" of docs/governance.md as a pure function."""

from typing import TypeAlias

from streamproc.domain.events import BankCommand, CancelRequested, PayoutDecided
from streamproc.domain.states import BANK_RANK

Cause: TypeAlias = PayoutDecided | CancelRequested
"""What execution acts on."""

MOVES_MONEY: frozenset[BankCommand] = frozenset({"create", "approve"})
"""Commands that are sent only after their decision is archived (the barrier)."""

REACHED: dict[BankCommand, frozenset[str]] = {
    "create": frozenset(BANK_RANK),
    "approve": frozenset({"queued", "scheduled", "processing", "processed", "reversed", "failed"}),
    "reject": frozenset({"rejected", "cancelled", "failed"}),
    "cancel": frozenset({"cancelled", "rejected", "failed"}),
}
"""Statuses that show that a command took effect, or that nothing is left for it to do."""


def asked_for(cause: Cause) -> BankCommand | None:
    """The command that `cause` called for when it was recorded."""
    return command_for(cause, "queued" if isinstance(cause, CancelRequested) else cause.bank_status)


def command_for(cause: Cause, bank_status: str) -> BankCommand | None:
    """The command that a decision calls for at a bank status; None: nothing to tell.

    An intent has the status '' before it is created. A `pending` payout waits for us; a `queued` one pays itself unless
    it is cancelled. A `scheduled` one cannot be taken back by API: cancelling is tried, and the bank's answer recorded.
    """
    if isinstance(cause, CancelRequested):
        return {"queued": "cancel", "pending": "reject"}.get(bank_status)  # type: ignore[return-value]
    match cause.decision, bank_status:
        case "APPROVED", "":
            return "create"
        case "APPROVED", "pending":
            return "approve"
        case "REJECTED", "pending":
            return "reject"
        case "REJECTED", "queued" | "scheduled":
            return "cancel"
        case "HELD", "queued":
            return "cancel" if cause.cancel_held else None
    return None
