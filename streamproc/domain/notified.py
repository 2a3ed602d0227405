"""Events about what people were told, and could not be told. What was said follows from the payout's own events."""

from typing import Literal, TypeAlias

from streamproc.domain.facts import Fact

NoticeKind: TypeAlias = Literal["hold", "reminder", "escalation", "outcome", "alert", "digest", "private"]
"""`hold`, `reminder` and `escalation` ask for a decision; `outcome` says in such a message how it ended."""
Channel: TypeAlias = Literal["slack", "ntfy"]
ASKING: frozenset[NoticeKind] = frozenset({"hold", "reminder", "escalation"})
"""Who got one of these knows that the payout waits."""
NOTICES_MAX = 16
"""Messages that are known of one hold: three, and those that crashes sent twice. Each has its outcome."""


class NotificationSent(Fact, frozen=True, kw_only=True, tag="notification.sent"):
    """Somebody was told. At least once: a worker that died right after a message sends it again, and both are ours."""

    payout: str = ""
    """Empty for a digest, and for an alert that is about no payout."""
    kind: NoticeKind
    channel: Channel
    ref: str
    """Slack's `channel:ts`, or ntfy's message id."""
    count: int = 1
    """How many alerts the message stands for; a digest has counted them."""
    about: str = ""
    """Of alerts and digests: reason, agent and account."""
    shown_in: str = ""
    """Of a hold: the entry in which the payout was shown, with the notes that the record does not keep."""


class NotificationFailed(Fact, frozen=True, kw_only=True, tag="notification.failed"):
    """Nobody could be told: no channel took it. Once for a payout and kind, and once more where it is given up."""

    payout: str = ""
    kind: NoticeKind
    problem: str
    """Each channel's."""
    given_up: bool = False
    """It is over, or too old to be of use; else it is tried again."""
