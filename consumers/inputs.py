"""What each group is given by others, and what always leaves an answer: how a recovery tells what was handled.

An entry that a group handled and answered is named as the cause of what it wrote. One that it acknowledged in silence
cannot be told from one that it never saw, so it is handled again; every stage is written so that this changes nothing.
"""

from collections.abc import Mapping

from streamproc.domain.commands import asked_for
from streamproc.domain.events import (
    BankCommandAnswered,
    CancelRequested,
    Event,
    Fact,
    PayoutDecided,
    PayoutMalformed,
    PayoutObserved,
    PayoutRequested,
    PayoutStopped,
    ReviewSubmitted,
    TimerFired,
)
from streamproc.domain.intent import is_intent

GOVERNANCE = "governance"
EXECUTION = "execution"
NOTIFICATION = "notification"
INPUTS: Mapping[str, frozenset[type[Fact]]] = {
    GOVERNANCE: frozenset(
        {
            PayoutObserved,
            PayoutRequested,
            PayoutMalformed,
            PayoutStopped,
            ReviewSubmitted,
            TimerFired,
            BankCommandAnswered,
        }
    ),
    EXECUTION: frozenset({PayoutDecided, CancelRequested}),
    NOTIFICATION: frozenset(),
}
"""What a group consumes and does not write itself (its own outputs it handles in the same pass). To notification
nothing comes again after a recovery: of what is held and was told to nobody a reminder is due (`reminders.overdue`),
and old alerts are in the audit."""


def comes_again(event: Event) -> bool:
    """Whether an input that nobody answered is to be handled again.

    A decision that called for no command is not: what the bank did since is seen by governance, under the policies of
    now, and an old hold must not cancel what they allow. But who stops an intent may have to look for an attempt of it.
    """
    if isinstance(event, PayoutDecided) and event.decision == "REJECTED" and is_intent(event.payout):
        return True
    return not isinstance(event, PayoutDecided | CancelRequested) or asked_for(event) is not None


def is_answered(event: Event) -> bool:
    """Whether handling this input always leaves something in the log, so that without it it was not handled."""
    if isinstance(event, ReviewSubmitted | PayoutMalformed | PayoutRequested):
        return True
    return isinstance(event, PayoutDecided | CancelRequested) and asked_for(event) is not None
