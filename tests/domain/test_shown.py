"""What scripts read of payouts and events: every time in it is ISO 8601 in UTC with µs, or null."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from streamproc.domain import events as e
from streamproc.domain.record import PayoutRecord
from streamproc.domain.shown import event_json, payout_json
from streamproc.domain.wire import decode_events

GOLDEN = sorted((Path(__file__).parent / "golden").glob("*.json"))
AT = 1_795_863_441_002_501
ISO = "2026-11-28T10:57:21.002501Z"
A_TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z")
NAMES_A_TIME = re.compile(r".*_at|at|since|until|.*_until")


def times(shown: Any) -> Iterator[tuple[str, Any]]:
    """Every field that is named as a time, with its value, however deep it stands."""
    if isinstance(shown, dict):
        for name, value in shown.items():
            if NAMES_A_TIME.fullmatch(name):
                yield name, value
            else:
                yield from times(value)
    elif isinstance(shown, list):
        for one in shown:
            yield from times(one)


@pytest.mark.parametrize("path", GOLDEN, ids=lambda path: path.stem)
def test_each_time_of_every_event_is_shown_in_iso_8601_or_is_null(path: Path):
    for sample in json.loads(path.read_text(encoding="utf-8")):
        shown = event_json("0:1-1:0", decode_events(sample["wire"].encode())[0])
        wrong = [(n, v) for n, v in times(shown) if not (v is None or A_TIME.fullmatch(str(v)))]
        assert not wrong


def test_a_reputation_shows_when_it_was_asked_for_and_how_long_it_is_fresh():
    asked = e.ReputationChecked(
        at=AT, payout="p", verdict="clean", checked_at=AT, fresh_until=AT + 300_000_000
    )
    data = event_json("0:1-1:0", asked)["data"]
    assert (data["checked_at"], data["fresh_until"]) == (ISO, "2026-11-28T11:02:21.002501Z")


def test_a_hold_that_ends_never_shows_null():
    decided = e.PayoutDecided(
        at=AT, payout="p", account="acc_1", agent="bot", amount=100, decision="APPROVED", reason="POLICY_OK",
        policy_version=1, bank_status="pending",
    )  # fmt: skip
    assert event_json("0:1-1:0", decided)["data"]["hold_expires_at"] is None


def test_what_the_bank_names_in_seconds_is_shown_like_every_other_time():
    facts = e.BankPayout(id="p", amount=100, currency="INR", status="pending", created_at=AT // 1_000_000)
    seen = e.PayoutObserved(at=AT, payout="p", account="acc_1", source="webhook", facts=facts)
    assert event_json("0:1-1:0", seen)["data"]["facts"]["created_at"] == "2026-11-28T10:57:21.000000Z"


def test_evidence_of_a_finding_shows_its_times_too():
    threat = e.Finding(
        stage="reputation",
        code="RISK_HIGH",
        outcome="REJECTED",
        evidence={"threats": ["X"], "checked_at": AT},
    )
    expired = e.Finding(stage="review", code="HOLD_EXPIRED", outcome="REJECTED", evidence={"expired_at": AT})
    record = PayoutRecord(
        payout="p", account="acc_1", received_at=AT, amount=100, currency="INR", findings=[threat, expired]
    )
    assert [finding["evidence"] for finding in payout_json(record)["findings"]] == [
        {"threats": ["X"], "checked_at": ISO},
        {"expired_at": ISO},
    ]
    screened = e.PayoutScreened(
        at=AT, payout="p", agent="bot", identity="claimed", policy_version=1, findings=[expired]
    )
    assert event_json("0:1-1:0", screened)["data"]["findings"][0]["evidence"] == {"expired_at": ISO}


def test_what_a_register_said_shows_its_times_too():
    seen = e.EntitySeen(verdict="verified", checked_at=AT, fresh_until=AT)
    checked = e.ReputationChecked(at=AT, payout="p", verdict="clean", entity=seen)
    entity = event_json("0:1-1:0", checked)["data"]["entity"]
    assert (entity["checked_at"], entity["fresh_until"]) == (ISO, ISO)
