"""Stop: rejects an approved payout that execution found frozen before it was sent.

Execution only records that it did not send it. The rejection is a decision like any other: it is recorded here, and
execution tells the bank of it in the usual way.
"""

from collections.abc import Sequence

from consumers.verdicts import decide_as
from streamproc.domain.events import PayoutStopped
from streamproc.domain.governance import Verdict
from streamproc.domain.states import MOVING_STATUSES, RELEASING_STATUSES
from streamproc.log.work import BatchContext, Item, Stage


async def stop(items: Sequence[Item], ctx: BatchContext) -> None:
    """Reject what still waits at the bank; what moved meanwhile cannot be rejected any more."""
    for work, event in items:
        record = work.known()
        if (
            type(event) is PayoutStopped
            and record.decision == "APPROVED"
            and record.bank_status not in MOVING_STATUSES | RELEASING_STATUSES
        ):
            finding = event.finding
            decide_as(work, ctx, Verdict("REJECTED", finding.code, (*record.findings, finding)))


STAGE = Stage(name="stop", consumes=frozenset({PayoutStopped}), handle=stop)
