"""An alert says in full what it is about: the money and the times are ours, and hide no account number."""

import pytest

from streamproc.domain import events as e
from streamproc.domain.alerts import alarm_of
from streamproc.domain.notice import alert_notice
from streamproc.domain.reconciliation import Mismatch, compared, windows_apart
from streamproc.domain.record import PayoutRecord
from tests.words import ACCOUNT, NOW

AT = 1_795_863_441_002_501


def said(event: e.Event) -> dict[str, str]:
    """The lines of the event's alert, by their labels."""
    alarm = alarm_of(event, "0:1-1")
    assert alarm is not None
    lines = alert_notice("x", alarm.code, alarm.facts).lines
    return dict(line.split(": ", 1) for line in lines if ": " in line)


def rejected(code: str, **evidence: str | int | bool | list[str] | None) -> e.PayoutDecided:
    finding = e.Finding(stage="budget", code=code, outcome="REJECTED", evidence=evidence)
    return e.PayoutDecided(
        at=NOW, payout="p", account=ACCOUNT, agent="bot", amount=100, decision="REJECTED", reason=code,
        findings=[finding], policy_version=1, bank_status="pending",
    )  # fmt: skip


def test_a_full_budget_names_its_limit_and_what_is_used_however_large() -> None:
    full = rejected("LIMIT_EXCEEDED", window="2026-11-28", limit=10**12, used=10**12 - 50)
    assert said(full)["found"] == "window 2026-11-28, limit ₹10,00,00,00,000.00, used ₹9,99,99,99,999.50"


def test_a_threat_names_the_time_at_which_it_was_found() -> None:
    found = said(rejected("RISK_HIGH", threats=["MALWARE"], checked_at=AT))["found"]
    assert found == "threats [MALWARE], checked_at 2026-11-28T10:57:21Z"


@pytest.mark.parametrize("evidence", [{"why": "to 50100123456789"}, {"threats": ["50100123456789"]}])
def test_what_a_stranger_wrote_shows_the_last_four_digits_of_a_long_number(evidence: e.Evidence) -> None:
    assert "**********6789" in said(rejected("FROZEN", **evidence))["found"]


def mismatch(found: Mismatch | None) -> e.ReconcileMismatch:
    assert found is not None
    return e.ReconcileMismatch(
        at=NOW, payout=found.payout, account=ACCOUNT, kind=found.kind, ours=found.ours, theirs=found.theirs,
        subject=found.subject,
    )  # fmt: skip


def test_an_amount_that_does_not_agree_is_shown_on_both_sides_in_rupees() -> None:
    ours = PayoutRecord(
        payout="pout_1", account=ACCOUNT, received_at=NOW, amount=1_234_567_890, currency="INR"
    )
    theirs = e.BankPayout(id="pout_1", amount=987_654_321, currency="INR", status="pending")
    lines = said(mismatch(compared(ours, theirs)))
    assert (lines["ours"], lines["theirs"]) == ("₹1,23,45,678.90", "₹98,76,543.21")


def test_a_window_that_does_not_agree_is_shown_on_both_sides_in_rupees() -> None:
    window = ("agent:bot", "2026-11")
    counters, folded = {window: (123_456_789, 5)}, {window: (0, 10**11)}
    lines = said(mismatch(windows_apart(counters, folded, now_s=NOW / 1e6, retention_s=0)[window]))
    assert lines["ours"] == "₹12,34,567.89 reserved, ₹0.05 committed"
    assert lines["theirs"] == "₹0.00 reserved, ₹1,00,00,00,000.00 committed"
