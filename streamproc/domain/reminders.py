"""The timers of a hold: when people are reminded of it, and when it ends. Pure.

In shares of the hold's time, since what is long for one policy is short for another. After half of it there is still
time for whoever overlooked the message; after three quarters others, on another channel, still have a quarter.
"""

from streamproc.domain.events import TimerFired
from streamproc.domain.record import PayoutRecord

REMINDER_QUARTERS = 2
ESCALATION_QUARTERS = 3


def overdue(record: PayoutRecord) -> TimerFired | None:
    """A reminder that is due at once, for a hold that nobody was told of; handling it tells people."""
    if record.state != "held" or record.told:
        return None
    return TimerFired(at=record.decided_at, payout=record.payout, timer="hold_reminder")


def hold_timers(payout: str, held_at: int, expires_at: int) -> list[TimerFired]:
    """A hold's reminder, escalation and expiry. Times in µs."""
    quarter = (expires_at - held_at) // 4
    return [
        TimerFired(at=held_at + REMINDER_QUARTERS * quarter, payout=payout, timer="hold_reminder"),
        TimerFired(at=held_at + ESCALATION_QUARTERS * quarter, payout=payout, timer="hold_escalation"),
        TimerFired(at=expires_at, payout=payout, timer="hold_expiry"),
    ]
