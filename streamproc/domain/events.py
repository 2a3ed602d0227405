"""The vocabulary of the log: every fact that streamproc can record.

A log entry is one atomic commit, an ordered list of these events. They are frozen, in the past tense, and
a closed union: the tag on the wire (`type`) is written out, so renaming a class cannot rewrite history.
New fields get defaults; another shape (a new word too) or meaning gets a new `v`, and an upcaster in `domain/wire.py`.
The events of every payout leave out on the wire what is only its default, all but `v`, and what the entry's first
event says already (ADR 28).
Every event has `type`, `v`, `at` (µs since 1970, Redis's clock) and, where it has one, `payout`.
Amounts are paise. No floats. No bank account numbers, names, e-mails or phones in ids or reasons.
"""

from typing import Literal, TypeAlias

from streamproc.domain.facts import BankCommand as BankCommand
from streamproc.domain.facts import BankPayout as BankPayout
from streamproc.domain.facts import BeneficiarySeen as BeneficiarySeen
from streamproc.domain.facts import CommandOutcome as CommandOutcome
from streamproc.domain.facts import Decision as Decision
from streamproc.domain.facts import EntitySeen as EntitySeen
from streamproc.domain.facts import Evidence as Evidence
from streamproc.domain.facts import Fact as Fact
from streamproc.domain.facts import Finding as Finding
from streamproc.domain.facts import Identity as Identity
from streamproc.domain.facts import MismatchKind as MismatchKind
from streamproc.domain.facts import RefusalKind as RefusalKind
from streamproc.domain.facts import Source as Source
from streamproc.domain.facts import StageFact as StageFact
from streamproc.domain.facts import TokenScope as TokenScope
from streamproc.domain.facts import WindowUse as WindowUse
from streamproc.domain.facts import version
from streamproc.domain.housekeeping import AccessRefused as AccessRefused
from streamproc.domain.housekeeping import DeadLetterClosed as DeadLetterClosed
from streamproc.domain.housekeeping import EntryDisowned as EntryDisowned
from streamproc.domain.housekeeping import EntrySetAside as EntrySetAside
from streamproc.domain.housekeeping import ReconcileDone as ReconcileDone
from streamproc.domain.housekeeping import ReconcileMismatch as ReconcileMismatch
from streamproc.domain.housekeeping import TokenCreated as TokenCreated
from streamproc.domain.housekeeping import TokenRevoked as TokenRevoked
from streamproc.domain.intent import Intent
from streamproc.domain.notified import NotificationFailed as NotificationFailed
from streamproc.domain.notified import NotificationSent as NotificationSent
from streamproc.domain.policy_events import PolicyChanged as PolicyChanged
from streamproc.domain.policy_events import PolicyProposed as PolicyProposed
from streamproc.domain.policy_events import ProposalConfirmed as ProposalConfirmed
from streamproc.domain.policy_events import ProposalWithdrawn as ProposalWithdrawn

# ---- what came in -----------------------------------------------------------------------


class PayoutObserved(Fact, frozen=True, kw_only=True, tag="payout.observed", omit_defaults=True):
    """The bank showed a payout: by webhook, in a list, or when asked for it."""

    v: int = version(2)
    payout: str
    account: str
    source: Source = "webhook"
    bank_event: str = ""
    """For example `payout.pending`. Empty if no webhook told it, but `payout.updated` for what a look found in a known
    status. On the wire it is left out where it is `payout.` and the status that a webhook showed."""
    delivery: str = ""
    """The bank's event id of this delivery, or empty."""
    facts: BankPayout


class PayoutRequested(Fact, frozen=True, kw_only=True, tag="payout.requested"):
    """An agent asked us to make a payout. Nothing is at the bank before it is approved."""

    payout: str
    """`spi_…`: the same for every request under the same Idempotency-Key, for good (ADR 13)."""
    account: str
    agent: str
    """The agent that the token names."""
    token: str
    """The token's name."""
    amount: int
    currency: str
    vendor_url: str = ""
    intent: Intent


class PayoutMalformed(Fact, frozen=True, kw_only=True, tag="payout.malformed"):
    """A signed delivery about a payout that cannot be governed (rule 1). It becomes a dead letter."""

    payout: str
    account: str
    source: Source
    bank_event: str = ""
    delivery: str = ""
    problem: str


class BankEventIgnored(Fact, frozen=True, kw_only=True, tag="bank.event_ignored"):
    """A signed delivery that is not about a payout's state: recorded, not governed."""

    account: str
    bank_event: str
    delivery: str = ""


class BankDowntimeReported(Fact, frozen=True, kw_only=True, tag="bank.downtime_reported"):
    """`payout.downtime.started` or `.resolved`: a rail is slow or down."""

    account: str
    bank_event: str
    delivery: str = ""
    methods: list[str] = []
    begin: int = 0
    end: int = 0


class ReviewSubmitted(Fact, frozen=True, kw_only=True, tag="review.submitted"):
    """A person clicked approve or reject; whether it counts is decided by the review stage."""

    payout: str
    by: str
    action: Literal["approve", "reject"]
    why: str
    channel: str


class TimerFired(Fact, frozen=True, kw_only=True, tag="timer.fired"):
    """A timer came due."""

    payout: str
    timer: Literal["hold_expiry", "hold_reminder", "hold_escalation"]


# ---- what each stage found --------------------------------------------------------------
# `findings` are those of all stages so far, so that a stage can run in a group of its own.


class PayoutScreened(StageFact, frozen=True, kw_only=True, tag="payout.screened", omit_defaults=True):
    """Rules 2 to 9 let the payout go on, perhaps with reasons to hold it. Version 1 did not look at the beneficiary."""

    v: int = version(4)
    agent: str
    identity: Identity = "claimed"
    policy_version: int
    findings: list[Finding] = []
    beneficiary: BeneficiarySeen | None = None
    """What rule 13 looks at; None: the registry was not asked."""


class VelocityChecked(
    StageFact, frozen=True, kw_only=True, tag="payout.velocity_checked", omit_defaults=True
):
    """Rule 10. `used` counts the payouts in the window before this one.

    `limit` and `window_s` are the terms that were asked, 0 where the policy limited no rate; in version 1 they were
    those of the policy by which it was decided. A slot that was taken in vain, since a worker died or somebody else
    ended the payout first, is recorded after that end, perhaps twice; it counts once.
    """

    v: int = version(4)
    number: int
    used: int
    limit: int
    window_s: int
    findings: list[Finding] = []


class ReputationChecked(
    StageFact, frozen=True, kw_only=True, tag="payout.reputation_checked", omit_defaults=True
):
    """Rules 11 to 14. `checked_at` is when Safe Browsing answered (µs), `fresh_until` by its cacheDuration."""

    v: int = version(5)
    verdict: Literal["clean", "threat", "unavailable", "no_url"]
    threats: list[str] = []
    checked_at: int = 0
    fresh_until: int = 0
    findings: list[Finding] = []
    entity: EntitySeen | None = None
    """What rule 14 looks at; None: nothing was asked, or no answer waited for. Version 3 never asked."""


class BudgetReserved(StageFact, frozen=True, kw_only=True, tag="payout.budget_reserved", omit_defaults=True):
    """Rule 16 found room and the amount is reserved. `number` orders all admissions of the partition."""

    v: int = version(4)
    amount: int
    number: int
    windows: list[WindowUse]
    findings: list[Finding] = []
    count_fees: bool = False
    """Whether the bank's fees are charged to the windows too, once they are known; in version 1 they never were."""


# ---- what was decided -------------------------------------------------------------------


class PayoutDecided(StageFact, frozen=True, kw_only=True, tag="payout.decided", omit_defaults=True):
    """The decision. One per payout, or two where the first was HELD. Execution acts on it."""

    v: int = version(3)
    account: str
    agent: str
    amount: int
    decision: Decision
    reason: str
    reasons: list[str] = []
    """As `codes`, where those are more than the reason; version 1 always had them."""
    findings: list[Finding] = []
    policy_version: int
    bank_status: str
    """What the bank last said before the decision: `pending`, `queued`, ..."""
    cancel_held: bool = False
    """HELD while `queued` and the policy does not allow that: execution cancels it."""
    identity: Identity = "unknown"
    hold_expires_at: int = 0
    """µs; only where the decision is HELD."""
    by: str = ""
    """The reviewer, where a person decided."""

    @property
    def codes(self) -> list[str]:
        """All codes found, the reason first."""
        return self.reasons or [self.reason]


class ReviewCounted(Fact, frozen=True, kw_only=True, tag="review.counted"):
    """A reviewer's answer was valid. `needed` more approvals are still wanted (0: it is decided). Version 1 knew names
    alone."""

    v: int = 2
    payout: str
    by: str
    """The reviewer's name, even if the answer came from an account."""
    via: str = ""
    """That account, `slack:U…`; empty if the answer gave a name."""
    action: Literal["approve", "reject"]
    why: str
    channel: str
    needed: int


class ReviewRefused(Fact, frozen=True, kw_only=True, tag="review.refused"):
    """A reviewer's answer did not count; `problem` says why in one line, `kind` for machines (version 1 did not)."""

    v: int = 2
    payout: str
    by: str
    action: Literal["approve", "reject"]
    channel: str
    problem: str
    kind: RefusalKind = ""


class BeneficiaryNoted(Fact, frozen=True, kw_only=True, tag="beneficiary.noted"):
    """A payout to this fund account was approved for this vendor: from now on the account knows the pair (rule 13)."""

    payout: str
    account: str
    fund_account: str
    vendor: str
    """The host of the vendor's URL; empty where the payout named none."""


class GovernanceBypassed(Fact, frozen=True, kw_only=True, tag="governance.bypassed"):
    """The bank moved, or is moving, a payout that was never approved here."""

    v: int = 2
    payout: str
    account: str
    agent: str
    amount: int
    status: str
    bank_payout: str = ""
    """The bank's id of a foreign payout that bears the intent's reference; else the payout itself is meant."""


# ---- what the bank did ------------------------------------------------------------------


class CancelRequested(Fact, frozen=True, kw_only=True, tag="payout.cancel_requested"):
    """The bank moved a payout that is rejected or held here to `queued`, where it would pay itself; or, with
    `bank_payout`, it has another one under an intent's reference, which nobody decided. Version 1 knew no others."""

    v: int = 2
    payout: str
    why: str
    bank_payout: str = ""


class PayoutStopped(Fact, frozen=True, kw_only=True, tag="payout.stopped"):
    """An approved payout was not sent to the bank: right before the call it was found frozen. Governance rejects it."""

    payout: str
    command: BankCommand
    """The command that was not sent."""
    finding: Finding
    maybe_sent: bool
    """An earlier attempt may have reached the bank, so the reservation stays until it is known that nothing moved."""
    caused_by: str
    """Event id of the decision that was not carried out."""


class BankCommandAnswered(Fact, frozen=True, kw_only=True, tag="bank.command_answered"):
    """The bank answered a command, or its state shows that nothing is left to command.

    `done`: it took effect now. `already`: the bank was there before the call. `refused`: a 4xx, and the bank's state is
    the truth (of a `create`: `failed`, nothing is there). `not_needed`: the payout had moved on before it was asked.
    """

    v: int = 2
    payout: str
    command: BankCommand
    outcome: CommandOutcome
    http_status: int = 0
    bank_status: str
    code: str = ""
    problem: str = ""
    caused_by: str = ""
    """Event id of the decision that caused the command; empty if an earlier attempt sent it, or nobody."""
    bank_payout: str = ""
    """Of a `create`: the bank's id of this intent from now on. Of another command: the payout under the intent's
    reference that was ended, if that is not the intent's own."""


class PayoutSettled(Fact, frozen=True, kw_only=True, tag="payout.settled"):
    """The reservation was committed or released, once, to the windows it was charged to.

    Committed a second time: `fees` that the bank named later, where they count. `fees` are those known by then, with
    tax; whether they are charged (and, released, given back) is said by the reservation.
    """

    v: int = 2
    payout: str
    settlement: Literal["committed", "released"]
    amount: int
    why: str
    windows: list[list[str]]
    """Pairs of scope and window."""
    fees: int = 0


class BankFeeRecorded(Fact, frozen=True, kw_only=True, tag="bank.fee_recorded"):
    """The bank collects its fees by a payout of its own, to a fund account that the account's policy names."""

    payout: str
    account: str
    amount: int
    fund_account: str


Event: TypeAlias = (
    PayoutObserved
    | PayoutRequested
    | PayoutMalformed
    | BankEventIgnored
    | BankDowntimeReported
    | ReviewSubmitted
    | TimerFired
    | PolicyChanged
    | PolicyProposed
    | ProposalConfirmed
    | ProposalWithdrawn
    | TokenCreated
    | TokenRevoked
    | PayoutScreened
    | VelocityChecked
    | ReputationChecked
    | BudgetReserved
    | PayoutDecided
    | ReviewCounted
    | ReviewRefused
    | BeneficiaryNoted
    | GovernanceBypassed
    | CancelRequested
    | PayoutStopped
    | BankCommandAnswered
    | PayoutSettled
    | BankFeeRecorded
    | ReconcileMismatch
    | ReconcileDone
    | EntrySetAside
    | DeadLetterClosed
    | EntryDisowned
    | NotificationSent
    | NotificationFailed
    | AccessRefused
)
