"""A proposal is closed once: who came first stays, in every fold of the log."""

import pytest

from streamproc.domain.events import Event
from streamproc.domain.policy_events import PolicyProposed, ProposalConfirmed, ProposalWithdrawn
from streamproc.domain.proposals import proposals_after

ID = "prop_0123456789abcdef"
PROPOSED = PolicyProposed(
    at=1, proposal=ID, changes=[], loosens=[], by="asha", why="more room", channel="cli", expires_at=100
)
CONFIRMED = ProposalConfirmed(at=2, proposal=ID, by="vikram", channel="cli", base=[])
WITHDRAWN = ProposalWithdrawn(at=3, proposal=ID, by="asha", why="no more")


@pytest.mark.parametrize(
    ("events", "state"),
    [([CONFIRMED, WITHDRAWN], "confirmed"), ([WITHDRAWN, CONFIRMED], "withdrawn")],
)
def test_what_comes_after_its_end_changes_nothing(events: list[Event], state: str) -> None:
    first, later = events
    closed = proposals_after({}, [PROPOSED, first])
    assert closed[ID].state(now_us=50) == state
    assert proposals_after(closed, [later]) == closed


def test_an_end_of_a_proposal_that_is_not_known_makes_none() -> None:
    assert proposals_after({}, [CONFIRMED, WITHDRAWN]) == {}
