"""Answers of reviewers: which count, what they must stand up to, how many are needed. Pure.

The review stage and a what-if ask the same functions, so a replayed answer cannot mean something else.
"""

from collections.abc import Container
from datetime import UTC, datetime

from streamproc.domain.budget import US
from streamproc.domain.events import Finding, ReviewCounted, ReviewSubmitted
from streamproc.domain.governance import RECHECKED, Case, find, reputation_unavailable
from streamproc.domain.payouts import PayoutRecord


def why_refused(
    record: PayoutRecord | None, answer: ReviewSubmitted | ReviewCounted, reviewers: Container[str]
) -> str:
    """Why an answer does not count, in one line; empty when it does."""
    if record is None:
        return f"payout {answer.payout} is not known here"
    if answer.by not in reviewers:
        return f"{answer.by} is not in the list of reviewers"
    if answer.by == record.agent:
        return f"{answer.by} asked for this payout and cannot review it"
    if record.state != "held":
        return _already(record)
    if answer.at >= record.hold_expires_at:
        return f"the hold ran out at {_moment(record.hold_expires_at)}"
    if any(r.by == answer.by and r.action == answer.action for r in record.reviews):
        return f"{answer.by} has approved already; another reviewer must approve too"
    return ""


def _already(record: PayoutRecord) -> str:
    if record.decision is None:
        return f"payout {record.payout} is not held: it is {record.state}"
    when = _moment(record.decided_at)
    if record.reviews and record.decision != "HELD":
        last = record.reviews[-1]
        return f"already {record.decision} by {last.by} at {when}"
    if record.decision == "HELD":
        return f"the hold is over: the bank says {record.bank_status}"
    return f"already {record.decision} ({record.reason}) at {when}"


def _moment(at_us: int) -> str:
    return datetime.fromtimestamp(at_us / US, UTC).isoformat(timespec="seconds")


def recheck(case: Case) -> list[Finding]:
    """What stands against an approval by now; empty where it may go on."""
    found = find(RECHECKED, case)
    if not found and case.agent is not None and case.agent.policy.on_reputation_unavailable == "reject":
        # Where the policy says hold, the reviewer has just vouched for what cannot be asked.
        finding = reputation_unavailable(case)
        found = [finding] if finding is not None else []
    return found


def approvals_missing(case: Case, reviewers: Container[str]) -> int:
    """How many more reviewers must approve after the one who does now."""
    dual = case.agent.policy.dual_approval_above if case.agent is not None else None
    wanted = 2 if dual is not None and case.payout.amount > dual else 1
    given = 1 + sum(r.action == "approve" and r.by in reviewers for r in case.payout.reviews)
    return max(0, wanted - given)
