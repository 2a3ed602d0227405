"""Screening: rules 1 to 9. The first look at a payout; it asks nothing outside this process."""

from collections.abc import Sequence

from consumers.verdicts import record_decision
from streamproc.domain.case import case_of
from streamproc.domain.events import Fact, PayoutMalformed, PayoutObserved, PayoutRequested, PayoutScreened
from streamproc.domain.governance import RULES, find, is_rejected
from streamproc.domain.intent import is_intent
from streamproc.domain.payouts import is_open
from streamproc.errors import Unprocessable
from streamproc.log.work import BatchContext, Item, Stage, Work

CONSUMES: frozenset[type[Fact]] = frozenset({PayoutObserved, PayoutRequested, PayoutMalformed})


def screen_stage(zone: str) -> Stage:
    """Rules 1 to 9 for every payout that is open and not decided yet."""

    async def screen(items: Sequence[Item], ctx: BatchContext) -> None:
        for work, event in items:
            if type(event) is PayoutMalformed:
                work.fail(Unprocessable(f"rule 1: {event.problem}"))
                continue
            record = work.known()
            if type(event) is PayoutObserved and is_intent(record.payout):
                continue  # an intent is decided by its request; other payouts under its reference never are
            if record.decision is None and not record.bypassed and is_open(record):
                _screen_one(work, ctx, zone)

    return Stage(name="screening", consumes=CONSUMES, handle=screen)


def _screen_one(work: Work, ctx: BatchContext, zone: str) -> None:
    record = work.known()
    case = case_of(record, ctx.party(record), zone=zone)
    findings = find(RULES["screening"], case)
    if is_rejected(findings):
        record_decision(work, ctx, findings)
        return
    assert case.agent is not None  # rule 3 rejects without one
    work.emit(
        PayoutScreened(
            at=ctx.now_us,
            payout=record.payout,
            agent=record.agent,
            identity=case.identity,
            policy_version=case.agent.version,
            findings=findings,
            beneficiary=work.beneficiary,
        )
    )
