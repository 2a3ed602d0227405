"""A case: everything that the rules look at of one payout, gathered before they are applied. Pure."""

from typing import Literal

from msgspec import Struct

from streamproc.domain.budget import NOTHING_ASKED, Admission
from streamproc.domain.events import EntitySeen, Identity
from streamproc.domain.identity import Party, party_of
from streamproc.domain.payouts import PayoutRecord
from streamproc.domain.policy import AgentPolicy, Freeze, PolicyBook, ScopeLimits


class Reputation(Struct, frozen=True):
    """What is known of a vendor URL. `problem`: why it is `unavailable`. Times in µs."""

    verdict: Literal["clean", "threat", "unavailable", "no_url"]
    threats: tuple[str, ...] = ()
    checked_at: int = 0
    fresh_until: int = 0
    problem: str = ""


NO_URL = Reputation("no_url")
DEFAULT_ZONE = "Asia/Kolkata"
"""For cases of which no rule that looks at the time is asked."""


class Case(Struct, frozen=True):
    """Everything that a rule may look at; None for parts that are not known yet."""

    payout: PayoutRecord
    identity: Identity
    agent: AgentPolicy | None
    """The agent's policy; its name is in `payout`."""
    zone: str = DEFAULT_ZONE
    """The time zone of policies that name none."""
    account: ScopeLimits | None = None
    """What limits the account, and `team` what limits the agent's team."""
    team: ScopeLimits | None = None
    admission: Admission = NOTHING_ASKED
    reputation: Reputation | None = None
    freeze: Freeze | None = None
    entity: EntitySeen | None = None


def case_of(
    record: PayoutRecord,
    party: Party,
    *,
    zone: str = DEFAULT_ZONE,
    admission: Admission = NOTHING_ASKED,
    reputation: Reputation | None = None,
    entity: EntitySeen | None = None,
) -> Case:
    """The case of a payout under the policies that `party` names."""
    return Case(
        payout=record,
        identity=party.identity,
        agent=party.agent,
        zone=zone,
        account=party.account,
        team=party.team,
        admission=admission,
        reputation=reputation,
        freeze=party.freeze,
        entity=entity,
    )


def case_under(
    book: PolicyBook, record: PayoutRecord, zone: str = DEFAULT_ZONE, reputation: Reputation | None = None
) -> Case:
    """The case of a payout under the policies of `book`, before the counters and the register are asked."""
    return case_of(record, party_of(record, book), zone=zone, reputation=reputation)
