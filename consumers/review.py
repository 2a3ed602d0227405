"""Review: a person answers a hold, or nobody does in time.

A hold is decided once. Two answers at the same moment are two entries: the slower commit is refused because the payout
changed, and when its entry is handled again it finds who was first. An approval checks again what may have changed
since the hold. An agent is nobody's reviewer, least of all its own. A Slack account is resolved to a reviewer here; the
record names the reviewer and the account that was used.
"""

from collections.abc import Sequence

from consumers.verdicts import decide_as
from consumers.vet import Reputations, reputation_checked
from streamproc.domain.case import NO_URL, Reputation, case_of
from streamproc.domain.events import (
    Evidence,
    Finding,
    ReviewCounted,
    ReviewRefused,
    ReviewSubmitted,
    TimerFired,
)
from streamproc.domain.governance import Verdict
from streamproc.domain.review import (
    approvals_missing,
    recheck,
    refusal_kind,
    reviewer_of,
    why_not_now,
    why_refused,
)
from streamproc.log.work import BatchContext, Item, Stage, Work


def review_stage(reputations: Reputations) -> Stage:
    """Answers of reviewers, and expiry of holds."""

    async def review(items: Sequence[Item], ctx: BatchContext) -> None:
        approvals = [work for work, event in items if _is_live_approval(work, event)]
        urls = {w.known().vendor_url for w in approvals}
        answers = await reputations.of(urls, ctx.cache, ctx.now_us) if urls else {}
        for work, event in items:
            if type(event) is TimerFired:
                _expire(work, event, ctx)
            elif type(event) is ReviewSubmitted:
                reputation = answers.get(work.record.vendor_url, NO_URL) if work.record else NO_URL
                _review_one(work, event, ctx, reputation)

    return Stage(name="review", consumes=frozenset({ReviewSubmitted, TimerFired}), handle=review)


def _is_live_approval(work: Work, event: object) -> bool:
    return (
        type(event) is ReviewSubmitted
        and event.action == "approve"
        and work.record is not None
        and work.record.state == "held"
    )


def _expire(work: Work, event: TimerFired, ctx: BatchContext) -> None:
    record = work.record
    if event.timer != "hold_expiry" or record is None:
        return
    if record.state != "held" or record.hold_expires_at > event.at:
        return
    _reject(work, ctx, "HOLD_EXPIRED", "", {"expired_at": event.at})


def _reject(work: Work, ctx: BatchContext, code: str, reviewer: str, evidence: Evidence) -> None:
    finding = Finding(stage="review", code=code, outcome="REJECTED", evidence=evidence)
    decide_as(work, ctx, Verdict("REJECTED", code, (*work.known().findings, finding)), by=reviewer)


def _review_one(work: Work, event: ReviewSubmitted, ctx: BatchContext, reputation: Reputation) -> None:
    if problem := why_refused(work.record, event, ctx.book.people):
        _refuse(work, event, ctx, problem)
    elif event.action == "reject":
        name = reviewer_of(event, ctx.book.people)
        _count(work, event, ctx, needed=0)
        _reject(work, ctx, "REVIEW_REJECTED", name, {"by": name, "why": event.why})
    else:
        _approve(work, event, ctx, reputation)


def _refuse(work: Work, event: ReviewSubmitted, ctx: BatchContext, problem: str) -> None:
    work.emit(
        ReviewRefused(
            at=ctx.now_us,
            payout=event.payout,
            by=reviewer_of(event, ctx.book.people),
            action=event.action,
            channel=event.channel,
            problem=problem,
            kind=refusal_kind(work.record, event, ctx.book.people) or "unavailable",
        )
    )


def _count(work: Work, event: ReviewSubmitted, ctx: BatchContext, *, needed: int) -> None:
    name = reviewer_of(event, ctx.book.people)
    work.emit(
        ReviewCounted(
            at=ctx.now_us,
            payout=event.payout,
            by=name,
            via=event.by if event.by != name else "",
            action=event.action,
            why=event.why,
            channel=event.channel,
            needed=needed,
        )
    )


def _approve(work: Work, event: ReviewSubmitted, ctx: BatchContext, reputation: Reputation) -> None:
    record = work.known()
    name = reviewer_of(event, ctx.book.people)
    case = case_of(record, ctx.party(record), reputation=reputation)
    found = recheck(case)
    if not found and (problem := why_not_now(case)):
        _refuse(work, event, ctx, problem)
        return
    if reputation.fresh_until != record.reputation_fresh_until and reputation.verdict != "no_url":
        threats = [finding for finding in found if finding.code == "RISK_HIGH"]
        work.emit(reputation_checked(ctx.now_us, work.payout, reputation, threats))
    if found:
        _count(work, event, ctx, needed=0)
        decide_as(work, ctx, Verdict("REJECTED", found[-1].code, (*record.findings, *found)), by=name)
        return
    missing = approvals_missing(case, ctx.book.people)
    _count(work, event, ctx, needed=missing)
    if not missing:
        decide_as(work, ctx, Verdict("APPROVED", "REVIEW_APPROVED", tuple(record.findings)), by=name)
