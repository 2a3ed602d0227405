"""Answers of reviewers: which ones count, what is checked again, how many are needed. Pure.

The review stage and a what-if use the same functions, so that a replayed answer means the same.
"""

from datetime import UTC, datetime

from streamproc.domain.budget import US
from streamproc.domain.case import Case
from streamproc.domain.events import Finding, RefusalKind, ReviewCounted, ReviewSubmitted
from streamproc.domain.governance import RECHECKED, find, reputation_unavailable
from streamproc.domain.payouts import PayoutRecord
from streamproc.domain.policy import AgentPolicy
from streamproc.domain.record import Review
from streamproc.domain.reviewers import SLACK, Reviewers


def _said_by(answer: ReviewSubmitted | ReviewCounted) -> str:
    """The account that an answer came from, else the name: an account's owner is looked up anew each time."""
    return answer.via or answer.by if type(answer) is ReviewCounted else answer.by


def reviewer_of(answer: ReviewSubmitted | ReviewCounted, people: Reviewers) -> str:
    """The name of whoever answered; an account that belongs to nobody stays as it is."""
    said_by = _said_by(answer)
    return said_by if _is_misplaced(answer) else people.name_of(said_by)


def _is_misplaced(answer: ReviewSubmitted | ReviewCounted) -> bool:
    """Whether an answer that did not come from Slack claims to be from a Slack account."""
    return type(answer) is ReviewSubmitted and answer.by.startswith(SLACK) and answer.channel != "slack"


def _why_not(answer: ReviewSubmitted | ReviewCounted, agent: str, people: Reviewers) -> str:
    if _is_misplaced(answer):
        return f"{answer.by} is an account in Slack, and this answer did not come from there; give a name"
    return people.why_not(_said_by(answer), agent)


def why_refused(
    record: PayoutRecord | None, answer: ReviewSubmitted | ReviewCounted, people: Reviewers
) -> str:
    """Why an answer does not count, in one line; '' if it does."""
    if record is None:
        return f"payout {answer.payout} is not known here"
    if problem := _why_not(answer, record.agent, people):
        return problem
    if record.state != "held":
        return _already(record)
    if answer.at >= record.hold_expires_at:
        return f"the hold ran out at {_moment(record.hold_expires_at)}"
    name, account = reviewer_of(answer, people), _said_by(answer)
    given = [review for review in record.reviews if _counts(review, record.agent, people)]
    if any(_is_by(review, name, account) and review.action == answer.action for review in given):
        return f"{name} has approved already; another reviewer must approve too"
    return ""


def refusal_kind(
    record: PayoutRecord | None, answer: ReviewSubmitted | ReviewCounted, people: Reviewers
) -> RefusalKind:
    """The kind of refusal that `why_refused` describes; '' if there is none."""
    if record is None:
        return "unknown"
    if _why_not(answer, record.agent, people):
        return "forbidden"
    if record.state != "held" or answer.at >= record.hold_expires_at:
        return "over"
    return "again" if why_refused(record, answer, people) else ""


def _counts(review: Review, agent: str, people: Reviewers) -> bool:
    """Whether an earlier answer still counts: its reviewer may still review, and still owns the account it came
    from."""
    is_his = not review.via or people.name_of(review.via) == review.by
    return is_his and not people.why_not(review.by, agent)


def _is_by(review: Review, name: str, account: str) -> bool:
    """Whether a review is by the same person: the same name or account, in case the list was changed in between."""
    return review.by == name or (review.via != "" and review.via == account)


def _already(record: PayoutRecord) -> str:
    if record.decision is None:
        return f"payout {record.payout} is not held: it is {record.state}"
    when = _moment(record.decided_at)
    last = record.reviews[-1] if record.reviews else None
    if last is not None and last.at == record.decided_at and record.decision != "HELD":
        return f"already {record.decision} by {last.by} at {when}"
    if record.decision == "HELD":
        return f"the hold is over: the bank says {record.bank_status}"
    return f"already {record.decision} ({record.reason}) at {when}"


def _moment(at_us: int) -> str:
    """To the second, which is enough for a person to find it."""
    return datetime.fromtimestamp(at_us // US, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def recheck(case: Case) -> list[Finding]:
    """Findings that stand against an approval now; empty if there are none."""
    found = find(RECHECKED, case)
    if found or why_not_now(case):
        return found
    if case.agent is not None and case.agent.policy.on_reputation_unavailable == "reject":
        # Where the policy says hold, the reviewer's approval stands in for the look-up.
        finding = reputation_unavailable(case)
        found = [finding] if finding is not None else []
    return found


def why_not_now(case: Case) -> str:
    """Why an approval that nothing stands against must wait; '' if it need not. An approval cannot replace a look-up
    of which the reviewer was never told that it is missing. (A rejection needs no reputation.)"""
    reputation = case.reputation
    if reputation is None or reputation.verdict != "unavailable":
        return ""
    if "REPUTATION_UNAVAILABLE" in case.payout.reasons:
        return ""  # it was held for this, so the reviewer knows
    return (
        f"the vendor's reputation cannot be asked for now ({reputation.problem}); the hold stays, try again"
    )


def approvals_wanted(amount: int, agent: AgentPolicy | None) -> int:
    """How many reviewers must approve a payout of this amount (paise)."""
    dual = agent.policy.dual_approval_above if agent is not None else None
    return 2 if dual is not None and amount > dual else 1


def approvals_given(record: PayoutRecord, people: Reviewers) -> list[Review]:
    """The approvals so far whose reviewers may still review."""
    return [
        review
        for review in record.reviews
        if review.action == "approve" and _counts(review, record.agent, people)
    ]


def approvals_missing(case: Case, people: Reviewers) -> int:
    """How many more reviewers must approve after this one."""
    given = 1 + len(approvals_given(case.payout, people))
    return max(0, approvals_wanted(case.payout.amount, case.agent) - given)
