"""What the bank must be told: the table "Telling the bank" as a pure function."""

from streamproc.domain.events import BankCommand, PayoutDecided

MOVES_MONEY: frozenset[BankCommand] = frozenset({"approve"})
"""Commands that wait at the barrier until their decision is archived."""

REACHED: dict[BankCommand, frozenset[str]] = {
    "approve": frozenset({"queued", "scheduled", "processing", "processed", "reversed", "failed"}),
    "reject": frozenset({"rejected", "cancelled", "failed"}),
    "cancel": frozenset({"cancelled", "rejected", "failed"}),
}
"""Bank statuses that show that a command took effect, or that there is nothing left for it to do."""


def command_for(decided: PayoutDecided, bank_status: str) -> BankCommand | None:
    """The command that a decision calls for while the bank says `bank_status`; None: nothing to tell.

    A `pending` payout waits for us; a `queued` one pays itself unless it is cancelled. Only a `scheduled` one
    has no way back by API: cancelling is tried, and what the bank says is recorded.
    """
    match decided.decision, bank_status:
        case "APPROVED", "pending":
            return "approve"
        case "REJECTED", "pending":
            return "reject"
        case "REJECTED", "queued" | "scheduled":
            return "cancel"
        case "HELD", "queued":
            return "cancel" if decided.cancel_held else None
    return None
