"""What the stages share: recording rate slots, reservations, decisions and stops."""

from collections.abc import Sequence

from streamproc.domain.asks import uses
from streamproc.domain.beneficiaries import note, pair_of, to_note
from streamproc.domain.budget import US, BudgetAnswer, RateAnswer
from streamproc.domain.case import Case, case_under
from streamproc.domain.events import (
    BankCommand,
    BeneficiaryNoted,
    BeneficiarySeen,
    BudgetReserved,
    Finding,
    Identity,
    PayoutDecided,
    PayoutStopped,
    VelocityChecked,
)
from streamproc.domain.governance import BEFORE_MONEY_MOVES, RULES, Verdict, conclude, find
from streamproc.domain.payouts import PayoutRecord
from streamproc.domain.policy import AgentPolicy
from streamproc.domain.reminders import hold_timers
from streamproc.log.work import BatchContext, Work


async def objection(record: PayoutRecord, ctx: BatchContext) -> Finding | None:
    """The freeze that forbids to move a payout's money by the policies of this very moment, or None.

    Asked right before every call that moves money. A freeze that comes between this answer and the bank's is not seen.
    """
    found = find(BEFORE_MONEY_MOVES, case_under(await ctx.book_now(), record))
    return found[0] if found else None


async def stopped(work: Work, command: BankCommand, caused_by: str, ctx: BatchContext) -> bool:
    """Whether the payout must not be sent any more because it was frozen since its approval; that is recorded.

    To be asked right before each call that moves money. Governance then rejects the payout, and the bank is told in the
    usual way.
    """
    found = await objection(work.known(), ctx)
    if found is not None:
        work.emit(
            PayoutStopped(
                at=ctx.now_us,
                payout=work.payout,
                command=command,
                finding=found,
                maybe_sent=work.maybe_sent,
                caused_by=caused_by,
            )
        )
    return found is not None


def found_by(stage: str, case: Case) -> list[Finding]:
    """What a stage's rules find. If the policy was removed between two commits, what screening finds by now: that
    rejects it."""
    return find(RULES[stage if case.agent is not None else "screening"], case)


def record_slot(
    work: Work, ctx: BatchContext, answer: RateAnswer | None, findings: Sequence[Finding]
) -> None:
    """Record the rate slot with the terms that it was asked for; `answer` None: the policy limits no rate."""
    work.emit(velocity_checked(work.payout, ctx.now_us, answer, findings))


def velocity_checked(
    payout: str, at: int, answer: RateAnswer | None, findings: Sequence[Finding]
) -> VelocityChecked:
    """The event that a rate slot was asked for at `at` (µs); with `answer` None the policy has no rate limit."""
    return VelocityChecked(
        at=at,
        payout=payout,
        number=answer.number if answer else 0,
        used=answer.used if answer else 0,
        limit=answer.count if answer else 0,
        window_s=answer.window_us // US if answer else 0,
        findings=list(findings),
    )


def record_reservation(
    work: Work, ctx: BatchContext, answer: BudgetAnswer, findings: Sequence[Finding]
) -> None:
    """Record what was reserved: the amount and the windows of the answer, whatever is known of the payout by now."""
    agent = ctx.book.agent(work.known().agent)
    work.emit(
        BudgetReserved(
            at=ctx.now_us,
            payout=work.payout,
            amount=answer.amount,
            number=answer.number,
            windows=uses(answer.windows, answer.before),
            findings=list(findings),
            count_fees=agent is not None and agent.policy.count_fees,
        )
    )


def record_decision(work: Work, ctx: BatchContext, findings: Sequence[Finding]) -> None:
    """Record the decision that follows from all findings."""
    decide_as(work, ctx, conclude(findings))


def decide_as(work: Work, ctx: BatchContext, verdict: Verdict, *, by: str = "") -> None:
    """Record `verdict`, with the beneficiary of an approval and the timers of a hold. `by`: the reviewer, if a
    person decided."""
    record = work.known()
    agent, identity = ctx.book.agent(record.agent), ctx.party(record).identity
    decision = decision_of(record, agent, identity, verdict, ctx.now_us, by=by)
    work.emit(decision)
    for noted in noted_by(decision, record, record.beneficiary):
        work.emit(noted)
    if decision.decision == "HELD":
        for timer in hold_timers(record.payout, decision.at, decision.hold_expires_at):
            work.set_timer(timer)


def decision_of(
    record: PayoutRecord,
    agent: AgentPolicy | None,
    identity: Identity,
    verdict: Verdict,
    at: int,
    *,
    by: str = "",
) -> PayoutDecided:
    """The event of a decision under a policy at a time (µs)."""
    held = verdict.decision == "HELD"
    ttl_s = agent.policy.hold_ttl_s if agent is not None else 0
    codes = verdict.reasons
    return PayoutDecided(
        at=at,
        payout=record.payout,
        account=record.account,
        agent=record.agent,
        amount=record.amount,
        decision=verdict.decision,
        reason=verdict.reason,
        reasons=codes if len(codes) > 1 else [],
        findings=list(verdict.findings),
        policy_version=agent.version if agent is not None else 0,
        bank_status=record.bank_status,
        cancel_held=held and agent is not None and agent.policy.queued_hold == "cancel",
        identity=identity,
        hold_expires_at=at + ttl_s * US if held else 0,
        by=by,
    )


def noted_by(
    decision: PayoutDecided, record: PayoutRecord, seen: BeneficiarySeen | None
) -> list[BeneficiaryNoted]:
    """What an approval adds to the registry of beneficiaries; `seen`: what that had before."""
    if decision.decision != "APPROVED" or (seen is not None and seen.noted):
        return []
    pair = pair_of(record.account, record.fund_account, record.vendor_url)
    return [note(pair, record.payout, decision.at)] if to_note(pair, seen) else []
