"""The stages that a payout passes, and the topology: which of them form which consumer group."""

from consumers import decide, settle, stop
from consumers.entities import Entities
from consumers.fast_path import governance_fast_path, stands_for
from consumers.inputs import EXECUTION as EXECUTION
from consumers.inputs import GOVERNANCE as GOVERNANCE
from consumers.inputs import NOTIFICATION as NOTIFICATION
from consumers.recall import Archived, recall_stage
from consumers.reserve import budget_stage, velocity_stage
from consumers.review import review_stage
from consumers.screen import screen_stage
from consumers.vet import Reputations, reputation_stage
from streamproc.log.work import Group

GROUPS = (GOVERNANCE, EXECUTION, NOTIFICATION)
"""Every group of the default topology; each reads every partition's log."""
FROM_THE_END = (NOTIFICATION,)
"""Groups that begin at the end of a log that is older than they are: nobody is told of what is long over."""


def governance(
    reputations: Reputations,
    *,
    zone: str,
    archived: Archived | None = None,
    retention_s: float = 30 * 86_400.0,
    entities: Entities | None = None,
) -> Group:
    """The group that decides. `zone` is for policies that name none; `archived` remembers old payouts; without
    `entities` no register of legal entities is asked.

    The stages are in the order of the rules; review and settlement come last, since a decision feeds them.
    """
    entities = entities or Entities()
    chain = (
        *((recall_stage(archived, retention_s),) if archived is not None else ()),
        screen_stage(zone),
        velocity_stage(reputations.known, zone),
        reputation_stage(reputations, entities),
        budget_stage(zone),
        decide.STAGE,
        review_stage(reputations),
        stop.STAGE,
        settle.STAGE,
    )
    fast_path = governance_fast_path(reputations, zone=zone, retention_s=retention_s, entities=entities)
    return Group(name=GOVERNANCE, stages=chain, fast_path=fast_path if stands_for(chain) else None)
