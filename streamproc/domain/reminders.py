"""When people are reminded of a hold, and what is due of one. Pure.

In shares of the time that a hold has, since what is long for one policy is short for another: at half of it there is
time enough for whoever overlooked the message; at three quarters others, on another channel, still have a quarter.
"""

from streamproc.domain.events import TimerFired
from streamproc.domain.record import PayoutRecord

REMINDER_QUARTERS = 2
ESCALATION_QUARTERS = 3


def overdue(record: PayoutRecord) -> TimerFired | None:
    """Of a hold that nobody was told of, a reminder that is due at once: it finds that out, and tells."""
    if record.state != "held" or record.told:
        return None
    return TimerFired(at=record.decided_at, payout=record.payout, timer="hold_reminder")


def hold_timers(payout: str, held_at: int, expires_at: int) -> list[TimerFired]:
    """What happens later of a hold: its reminder, its escalation, its end. Times in µs."""
    quarter = (expires_at - held_at) // 4
    return [
        TimerFired(at=held_at + REMINDER_QUARTERS * quarter, payout=payout, timer="hold_reminder"),
        TimerFired(at=held_at + ESCALATION_QUARTERS * quarter, payout=payout, timer="hold_escalation"),
        TimerFired(at=expires_at, payout=payout, timer="hold_expiry"),
    ]
