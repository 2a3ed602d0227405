"""What counts as a difference between the bank and us."""

import pytest

from streamproc.domain.events import BankPayout
from streamproc.domain.payouts import PayoutRecord
from streamproc.domain.reconciliation import compared


def record(**fields: int | str) -> PayoutRecord:
    return PayoutRecord(
        payout="pout_1", account="acc_1", received_at=1, amount=100, bank_status="processed", **fields
    )  # type: ignore[arg-type]


def shown(**fields: int | str) -> BankPayout:
    return BankPayout(id="pout_1", amount=100, currency="INR", status="processed", **fields)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("ours", "theirs", "kind"),
    [
        ({}, {}, None),
        ({"utr": "U1", "fees": 118, "tax": 18}, {"utr": "U1", "fees": 118, "tax": 18}, None),
        ({}, {"utr": "U1"}, "behind"),
        ({}, {"fees": 118}, "behind"),
        ({"fees": 118}, {"fees": 118, "tax": 18}, "behind"),
        ({"fees": 118}, {"fees": 236}, "behind"),
        ({"utr": "U1", "fees": 118, "tax": 18}, {}, None),
        ({"fees": 118}, {"fees": 59}, "ahead"),
        ({"utr": "U2"}, {"utr": "U1"}, "ahead"),
    ],
    ids=[
        "nothing is named yet",
        "the same",
        "a UTR",
        "fees",
        "the tax within them",
        "more fees",
        "the bank leaves out what it named before",
        "fewer fees",
        "another UTR, which the fold does not take over",
    ],
)
def test_a_utr_fees_and_tax_that_an_observation_would_add_are_behind_and_others_ahead(
    ours: dict[str, int | str], theirs: dict[str, int | str], kind: str | None
) -> None:
    found = compared(record(**ours), shown(**theirs))
    assert (found.kind if found else None) == kind
