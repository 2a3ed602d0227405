"""Approval (rule 17) and the end of the chain (rule 18)."""

from collections.abc import Sequence

from consumers.verdicts import found_by, record_decision
from streamproc.domain.case import case_of
from streamproc.domain.events import BudgetReserved
from streamproc.log.work import BatchContext, Item, Stage


async def decide(items: Sequence[Item], ctx: BatchContext) -> None:
    """Ask a person, or approve."""
    for work, event in items:
        if type(event) is BudgetReserved:
            record = work.known()
            case = case_of(record, ctx.party(record), admission=work.admission)
            record_decision(work, ctx, [*event.findings, *found_by("approval", case)])


STAGE = Stage(name="approval", consumes=frozenset({BudgetReserved}), handle=decide)
