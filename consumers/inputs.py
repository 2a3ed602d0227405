"""What each group consumes of others, and which inputs always leave an answer: how a recovery finds out what was
handled.

An entry that a group handled with an output is named as the output's cause. One that it acknowledged without output
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
"""What a group consumes and does not write itself; its own outputs it handles in the pass that writes them. For
notification nothing is handled again after a recovery: holds that nobody was told of get a reminder
(`reminders.overdue`), and old alerts are in the audit."""


def comes_again(event: Event) -> bool:
    """Whether an input without an answer is to be handled again after a recovery.

    Not a decision that called for no command: governance sees what the bank did since, under today's policies, and an
    old hold must not cancel what they allow. But an intent's rejection is: a lost attempt may have to be looked for.
    """
    if isinstance(event, PayoutDecided) and event.decision == "REJECTED" and is_intent(event.payout):
        return True
    return not isinstance(event, PayoutDecided | CancelRequested) or asked_for(event) is not None


def is_answered(event: Event) -> bool:
    """Whether handling this input always leaves an output, so that one without output was not handled."""
    if isinstance(event, ReviewSubmitted | PayoutMalformed | PayoutRequested):
        return True
    return isinstance(event, PayoutDecided | CancelRequested) and asked_for(event) is not None
