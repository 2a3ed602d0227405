"""What a recovery believes of the groups is what they are."""

import consumers
from consumers.enact import execution
from consumers.inputs import EXECUTION, GOVERNANCE, INPUTS, NOTIFICATION
from consumers.vet import Reputations
from streamproc.domain import events as e
from tests.consumers.test_refuted import Bank, at_once
from tests.words import Vendors

OWN = {
    *(e.PayoutScreened, e.VelocityChecked, e.ReputationChecked, e.BudgetReserved, e.PayoutDecided),
}
"""What governance writes and handles in the same pass."""


def test_every_input_that_a_group_consumes_from_others_is_listed_and_no_other() -> None:
    governance = consumers.governance(Reputations(Vendors()), zone="Asia/Kolkata")
    assert INPUTS[GOVERNANCE] == governance.consumes - OWN
    assert INPUTS[EXECUTION] == execution(Bank(), at_once).consumes
    assert INPUTS[NOTIFICATION] == frozenset()  # after a recovery reminders tell of what is held
    assert set(INPUTS) == set(consumers.GROUPS)
