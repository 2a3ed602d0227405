"""Review: a person answers a hold, or nobody does in time.

A hold is decided once. Two answers at the same moment are two entries; the commit of the slower one is refused
because the payout moved on, and when it is handled again it finds who was first. An approval looks again at what
may have changed meanwhile. An agent is nobody's reviewer, least of all its own.
"""

from collections.abc import Sequence
from datetime import UTC, datetime

from consumers.verdicts import case_of, decide_as
from consumers.vet import Reputations, checked
from streamproc.domain.events import (
    Evidence,
    Finding,
    ReviewCounted,
    ReviewRefused,
    ReviewSubmitted,
    TimerFired,
)
from streamproc.domain.governance import NO_URL, RECHECKED, Reputation, Verdict, find, reputation_unavailable
from streamproc.domain.payouts import PayoutRecord
from streamproc.log.work import Desk, Item, Stage, Work

US = 1_000_000


def review_stage(reputations: Reputations) -> Stage:
    """Answers of reviewers, and expiry."""

    async def review(items: Sequence[Item], desk: Desk) -> None:
        approvals = [work for work, event in items if _is_live_approval(work, event)]
        urls = {w.known().vendor_url for w in approvals}
        answers = await reputations.of(urls, desk.cache, desk.now_us) if urls else {}
        for work, event in items:
            if type(event) is TimerFired:
                _expire(work, event, desk)
            elif type(event) is ReviewSubmitted:
                reputation = answers.get(work.record.vendor_url, NO_URL) if work.record else NO_URL
                _review_one(work, event, desk, reputation)

    return Stage(name="review", consumes=frozenset({ReviewSubmitted, TimerFired}), handle=review)


def _is_live_approval(work: Work, event: object) -> bool:
    return (
        type(event) is ReviewSubmitted
        and event.action == "approve"
        and work.record is not None
        and work.record.state == "held"
    )


def _expire(work: Work, event: TimerFired, desk: Desk) -> None:
    record = work.record
    if record is None or record.state != "held" or record.hold_expires_at > event.at:
        return
    _reject(work, desk, "HOLD_EXPIRED", "", {"expired_at": event.at})


def _reject(work: Work, desk: Desk, code: str, reviewer: str, evidence: Evidence) -> None:
    finding = Finding(stage="review", code=code, outcome="REJECTED", evidence=evidence)
    decide_as(work, desk, Verdict("REJECTED", code, (*work.known().findings, finding)), by=reviewer)


def _review_one(work: Work, event: ReviewSubmitted, desk: Desk, reputation: Reputation) -> None:
    problem = why_refused(work.record, event, desk) or _why_not_now(work.record, event, reputation)
    if problem:
        work.emit(
            ReviewRefused(
                at=desk.now_us,
                payout=event.payout,
                by=event.by,
                action=event.action,
                channel=event.channel,
                problem=problem,
            )
        )
    elif event.action == "reject":
        _count(work, event, desk, needed=0)
        _reject(work, desk, "REVIEW_REJECTED", event.by, {"by": event.by, "why": event.why})
    else:
        _approve(work, event, desk, reputation)


def why_refused(record: PayoutRecord | None, event: ReviewSubmitted, desk: Desk) -> str:
    """Why an answer does not count, in one line; empty when it does."""
    if record is None:
        return f"payout {event.payout} is not known here"
    if event.by not in desk.book.reviewers:
        return f"{event.by} is not in the list of reviewers"
    if event.by == record.agent:
        return f"{event.by} asked for this payout and cannot review it"
    if record.state != "held":
        return _already(record)
    if event.at >= record.hold_expires_at:
        return f"the hold ran out at {_moment(record.hold_expires_at)}"
    if any(r.by == event.by and r.action == event.action for r in record.reviews):
        return f"{event.by} has approved already; another reviewer must approve too"
    return ""


def _why_not_now(record: PayoutRecord | None, event: ReviewSubmitted, reputation: Reputation) -> str:
    """An approval cannot stand in for a look-up that the reviewer was never told is missing."""
    if record is None or event.action == "reject" or reputation.verdict != "unavailable":
        return ""
    if "REPUTATION_UNAVAILABLE" in record.reasons:
        return ""  # it was held for this, and the reviewer vouches
    return (
        f"the vendor's reputation cannot be asked for now ({reputation.problem}); the hold stays, try again"
    )


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


def _count(work: Work, event: ReviewSubmitted, desk: Desk, *, needed: int) -> None:
    work.emit(
        ReviewCounted(
            at=desk.now_us,
            payout=event.payout,
            by=event.by,
            action=event.action,
            why=event.why,
            channel=event.channel,
            needed=needed,
        )
    )


def _approve(work: Work, event: ReviewSubmitted, desk: Desk, reputation: Reputation) -> None:
    record = work.known()
    case = case_of(record, desk, reputation=reputation)
    found = find(RECHECKED, case)
    if reputation.fresh_until != record.reputation_fresh_until and reputation.verdict != "no_url":
        work.emit(
            checked(work, desk, reputation, [finding for finding in found if finding.stage == "reputation"])
        )
    if not found and case.agent is not None and case.agent.policy.on_reputation_unavailable == "reject":
        # Where the policy says hold, the reviewer has just vouched for what cannot be asked.
        finding = reputation_unavailable(case)
        found = [finding] if finding is not None else []
    if found:
        _count(work, event, desk, needed=0)
        decide_as(work, desk, Verdict("REJECTED", found[-1].code, (*record.findings, *found)), by=event.by)
        return
    dual = case.agent.policy.dual_approval_above if case.agent is not None else None
    wanted = 2 if dual is not None and record.amount > dual else 1
    approvals = 1 + sum(r.action == "approve" and r.by in desk.book.reviewers for r in record.reviews)
    _count(work, event, desk, needed=max(0, wanted - approvals))
    if approvals >= wanted:
        decide_as(work, desk, Verdict("APPROVED", "REVIEW_APPROVED", tuple(record.findings)), by=event.by)
