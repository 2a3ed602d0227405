"""A payout's states at the bank: the possible moves, the event of each, and the texts about them."""

from typing import Final

EVENT_OF_MOVE: Final[dict[tuple[str, str], str | None]] = {
    ("", "pending"): "payout.pending",
    ("", "queued"): "payout.queued",
    ("", "processing"): "payout.initiated",
    ("", "scheduled"): None,
    ("pending", "processing"): "payout.initiated",
    ("pending", "queued"): "payout.queued",
    ("pending", "scheduled"): None,
    ("pending", "rejected"): "payout.rejected",
    ("pending", "cancelled"): None,
    ("queued", "processing"): "payout.initiated",
    ("queued", "cancelled"): None,
    ("queued", "failed"): "payout.failed",
    ("scheduled", "processing"): "payout.initiated",
    ("scheduled", "cancelled"): None,
    ("scheduled", "failed"): "payout.failed",
    ("processing", "processed"): "payout.processed",
    ("processing", "reversed"): "payout.reversed",
    ("processing", "failed"): "payout.failed",
    ("processed", "reversed"): "payout.reversed",
    ("failed", "reversed"): "payout.reversed",
    ("reversed", "failed"): "payout.failed",
}
"""Every possible move. None: the bank documents no event for it (there is no `payout.cancelled`)."""

STATES: Final = tuple(dict.fromkeys(to for _, to in EVENT_OF_MOVE))

REASONS: Final[dict[str, tuple[str, str]]] = {
    "pending_approval": ("business", "Workflow for the payout is pending approval from the approver(s)."),
    "low_balance": ("business", "Payout waits in the queue: the account's balance is too low for it"),
    "gateway_degraded": ("gateway", "Payout waits in the queue: the partner bank's systems are down."),
    "beneficiary_bank_down": ("gateway", "Payout waits: the beneficiary bank's systems are not working."),
    "syncing_balance": ("gateway", "Payout waits: the balance is being synced with the bank."),
    "fee_recovery_pending": ("business", "Payout waits behind a fee recovery payout."),
    "payout_bank_processing": ("gateway", "Payout is being processed by the partner bank."),
    "bank_window_closed": ("gateway", "The window of this mode is closed for today."),
    "beneficiary_bank_confirmation_pending": ("beneficiary_bank", "The credit is not confirmed yet."),
    "payout_processed": ("beneficiary_bank", "The money was credited to the beneficiary's account."),
    "payout_rejected": ("business", "Workflow for the payout was rejected by the approver(s)"),
    "payout_cancelled": ("business", "Payout was cancelled by the user."),
    "bank_account_closed": ("beneficiary_bank", "The beneficiary's account is closed."),
    "bank_account_invalid": ("beneficiary_bank", "The beneficiary's account details are not valid."),
    "beneficiary_bank_failure": ("beneficiary_bank", "Technical failure at the beneficiary's bank."),
    "beneficiary_bank_rejected": ("beneficiary_bank", "The beneficiary's bank refused the payout."),
    "gateway_down": ("gateway", "The partner bank has technical problems."),
    "insufficient_funds": ("business", "Payout failed: the account's balance is too low."),
    "server_error": ("internal", "Payout failed for a reason of the bank's own."),
}
"""`status_details.reason` -> (source, description). The descriptions are the sandbox's own words."""

REASON_OF_STATE: Final[dict[str, str]] = {
    "pending": "pending_approval",
    "queued": "low_balance",
    "processed": "payout_processed",
    "rejected": "payout_rejected",
    "cancelled": "payout_cancelled",
    "failed": "beneficiary_bank_failure",
    "reversed": "bank_account_closed",
}
"""The default reason of each state. `processing` has none, as in captured answers."""
