"""Answers to a hold, pure: when they come too late, what stands against an approval by now, how many must approve."""

import pytest
from msgspec.structs import replace

from streamproc.domain.case import Case, Reputation
from streamproc.domain.events import ReviewSubmitted
from streamproc.domain.policy import Freeze, PolicyBook, ScopeLimits, scopes_after
from streamproc.domain.record import PayoutRecord, Review
from streamproc.domain.review import approvals_missing, recheck, refusal_kind, why_not_now, why_refused
from tests.domain.test_governance import bare
from tests.words import ACCOUNT, NOW, policies, reviewed

EXPIRES = NOW + 3_600_000_000
HELD = PayoutRecord(
    payout="pout_1", account=ACCOUNT, received_at=NOW, agent="bot", amount=1_000, currency="INR",
    state="held", bank_status="pending", decision="HELD", decided_at=NOW, hold_expires_at=EXPIRES,
)  # fmt: skip
URL = "https://vendor.example.com/"
UNAVAILABLE = Reputation("unavailable", problem="timeout")


def book(text: str = "reviewers: {asha: {slack: U0ASHA}, vikram: {}}") -> PolicyBook:
    return PolicyBook(scopes_after({}, *policies("policies: {bot: {}}\n" + text)))


def approved_by(name: str, via: str = "") -> Review:
    return Review(by=name, via=via, action="approve", why="", channel="test", at=NOW)


@pytest.mark.parametrize(("at", "kind"), [(EXPIRES - 1, ""), (EXPIRES, "over")])
def test_an_answer_counts_until_the_moment_when_the_hold_runs_out(at: int, kind: str) -> None:
    answer = reviewed("pout_1", at=at)
    assert refusal_kind(HELD, answer, book().people) == kind
    assert why_refused(HELD, answer, book().people).startswith("the hold ran out" if kind else "")
    assert bool(why_refused(HELD, answer, book().people)) == bool(kind)


@pytest.mark.parametrize(
    ("record", "answer", "kind", "why"),
    [
        (None, reviewed("pout_9"), "unknown", "payout pout_9 is not known here"),
        (HELD, reviewed("pout_1", "mallory"), "forbidden", "mallory is not in the list of reviewers"),
        (
            replace(HELD, state="received", decision=None),
            reviewed("pout_1"),
            "over",
            "payout pout_1 is not held: it is received",
        ),
        (
            replace(HELD, state="declined", bank_status="rejected"),
            reviewed("pout_1"),
            "over",
            "the hold is over: the bank says rejected",
        ),
        (
            replace(HELD, state="rejected", decision="REJECTED", reason="X", reviews=[approved_by("vikram")]),
            reviewed("pout_1"),
            "over",
            "already REJECTED by vikram at 2026-09-21T14:13:20Z",
        ),
        (
            replace(
                HELD, state="rejected", decision="REJECTED", decided_at=NOW + 1, reason="HOLD_EXPIRED",
                reviews=[approved_by("vikram")],
            ),
            reviewed("pout_1"),
            "over",
            "already REJECTED (HOLD_EXPIRED) at 2026-09-21T14:13:20Z",
        ),
        (
            replace(HELD, reviews=[approved_by("asha")]),
            reviewed("pout_1"),
            "again",
            "asha has approved already; another reviewer must approve too",
        ),
        (replace(HELD, reviews=[approved_by("asha")]), reviewed("pout_1", action="reject"), "", ""),
        (replace(HELD, reviews=[approved_by("vikram")]), reviewed("pout_1"), "", ""),
    ],
)  # fmt: skip
def test_who_cannot_answer_is_told_why(
    record: PayoutRecord | None, answer: ReviewSubmitted, kind: str, why: str
) -> None:
    people = book().people
    assert (refusal_kind(record, answer, people), why_refused(record, answer, people)) == (kind, why)


@pytest.mark.parametrize(
    ("case", "code"),
    [
        (replace(bare(), freeze=Freeze("agent:bot", "asha", "why")), "FROZEN"),
        (replace(bare(), account=ScopeLimits(frozen=True)), "FROZEN"),
        (replace(bare(), agent=None), "NO_POLICY"),
        (bare(currency="USD"), "CURRENCY_NOT_ALLOWED"),
        (bare("per_txn_limit: 999"), "TXN_LIMIT_EXCEEDED"),
        (bare("require_vendor_url: true"), "VENDOR_URL_REQUIRED"),
        (bare("blocked_domains: [example.com]", url=URL), "DOMAIN_BLOCKED"),
        (replace(bare(url=URL), reputation=Reputation("threat", ("MALWARE",))), "RISK_HIGH"),
    ],
)
def test_what_a_rule_would_reject_by_now_stands_against_an_approval(case: Case, code: str) -> None:
    assert [finding.code for finding in recheck(case)] == [code]
    assert [f.code for f in recheck(replace(case, reputation=case.reputation or UNAVAILABLE))] == [code]


@pytest.mark.parametrize(
    "case",
    [
        bare("require_approval_above: 0"),
        bare("require_verified_identity: true"),
        bare("new_beneficiary: hold"),
        bare("days: [sun]"),
        bare(url="https://p\u0430ypal.example.com/"),
    ],
)
def test_what_a_payout_was_held_for_is_what_an_approval_overrules(case: Case) -> None:
    assert recheck(case) == []
    assert why_not_now(case) == ""


@pytest.mark.parametrize(
    ("on_unavailable", "told", "codes", "waits"),
    [
        ("hold", True, [], False),
        ("reject", True, ["REPUTATION_UNAVAILABLE"], False),
        ("hold", False, [], True),
        ("reject", False, [], True),
    ],
)
def test_an_approval_stands_in_for_a_reputation_only_if_the_reviewer_knew_and_the_policy_lets_a_person_decide(
    on_unavailable: str, told: bool, codes: list[str], waits: bool
) -> None:
    case = replace(bare(f"on_reputation_unavailable: {on_unavailable}", url=URL), reputation=UNAVAILABLE)
    reasons = ["APPROVAL_REQUIRED", *(["REPUTATION_UNAVAILABLE"] if told else [])]
    case = replace(case, payout=replace(case.payout, reasons=reasons))
    assert [finding.code for finding in recheck(case)] == codes
    assert ("(timeout)" in why_not_now(case)) == waits


@pytest.mark.parametrize(
    ("amount", "given", "missing"),
    [
        (1_000, [], 0),
        (1_001, [], 1),
        (1_001, [approved_by("vikram")], 0),
        (1_001, [approved_by("vikram"), approved_by("vikram")], 0),
        (1_001, [replace(approved_by("vikram"), action="reject")], 1),
        (1_001, [approved_by("gone")], 1),
        (1_001, [approved_by("vikram", via="slack:U0ASHA")], 1),
        (1_001, [approved_by("asha", via="slack:U0ASHA")], 0),
    ],
)
def test_above_the_dual_threshold_one_more_must_approve_unless_an_approval_that_still_counts_is_there(
    amount: int, given: list[Review], missing: int
) -> None:
    case = bare("dual_approval_above: 1000", amount=amount)
    case = replace(case, payout=replace(case.payout, reviews=given))
    assert approvals_missing(case, book().people) == missing
