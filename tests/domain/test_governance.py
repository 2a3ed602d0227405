"""The rules through `decide`, pure: boundaries in pairs, the order of rules, and what a hold does not stop."""

import ast
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from streamproc.domain.budget import (
    Admission,
    Ask,
    Counters,
    Ledger,
    Limits,
    RateAnswer,
    RateAsk,
    Window,
    windows_of,
)
from streamproc.domain.case import NO_URL, Case, Reputation
from streamproc.domain.governance import RULES, decide
from streamproc.domain.notice import MEANINGS
from streamproc.domain.payouts import PayoutRecord, fold
from streamproc.domain.policy import (
    AgentPolicy,
    PolicyBook,
    ScopeLimits,
    parse_policy_file,
    plan_changes,
    scopes_after,
)
from tests.words import ACCOUNT, NOW, observed

FAR = 4_000_000_000


def policy(fields: str) -> AgentPolicy:
    """Agent `bot` under the fields of a policy file."""
    file = parse_policy_file(f"policies: {{bot: {{{fields}}}}}", name="test.yaml")
    changes = plan_changes({}, file, prune=False, at=NOW, by="test", why="test")
    found = PolicyBook(scopes_after({}, *changes)).agent("bot")
    assert found is not None
    return found


def payout(amount: int = 1000, url: str | None = None, currency: str = "INR") -> PayoutRecord:
    record = fold([observed(amount=amount, url=url, currency=currency)])
    assert record is not None
    return record


def outcome(case: Case) -> tuple[str, str]:
    verdict = decide(case)
    return verdict.decision, verdict.reason


def bare(fields: str = "", **facts: object) -> Case:
    record = payout(**facts)  # type: ignore[arg-type]
    return Case(payout=record, identity="claimed", agent=policy(fields), reputation=NO_URL)


@pytest.mark.parametrize(
    ("fields", "amount", "expected"),
    [
        ("per_txn_limit: 1000", 1000, ("APPROVED", "POLICY_OK")),
        ("per_txn_limit: 1000", 1001, ("REJECTED", "TXN_LIMIT_EXCEEDED")),
        ("per_txn_limit: 0", 100, ("REJECTED", "TXN_LIMIT_EXCEEDED")),
        ("", 10**15, ("APPROVED", "POLICY_OK")),
        ("require_approval_above: 1000", 1000, ("APPROVED", "POLICY_OK")),
        ("require_approval_above: 1000", 1001, ("HELD", "APPROVAL_REQUIRED")),
        ("require_approval_above: 0", 100, ("HELD", "APPROVAL_REQUIRED")),
        ("dual_approval_above: 1000", 1000, ("APPROVED", "POLICY_OK")),
        ("dual_approval_above: 1000", 1001, ("HELD", "APPROVAL_REQUIRED")),
        ("require_approval_above: 500, dual_approval_above: 1000", 501, ("HELD", "APPROVAL_REQUIRED")),
    ],
)
def test_a_limit_lets_pass_what_equals_it_and_not_one_paisa_more(
    fields: str, amount: int, expected: tuple[str, str]
) -> None:
    assert outcome(bare(fields, amount=amount)) == expected


@pytest.mark.parametrize(("spent", "expected"), [(900, "POLICY_OK"), (901, "LIMIT_EXCEEDED")])
@pytest.mark.parametrize("scope", ["agent:bot", "team:t", "account:a", "vendor:v"])
def test_a_window_lets_pass_what_exactly_fills_it_and_not_one_paisa_more(
    scope: str, spent: int, expected: str
) -> None:
    ledger = Ledger(counters=Counters(budgets={(scope, "d"): (spent - 100, 100)}))
    admission = ledger.admit(Ask("p", 100, 1, None, (Window(scope, "d", 1000, FAR),)))
    verdict = decide(replace(bare(amount=100), admission=admission))
    assert verdict.reason == expected
    if expected == "LIMIT_EXCEEDED":
        evidence = verdict.findings[-1].evidence
        named = {key: evidence[key] for key in ("scope", "window", "limit", "used", "reserved", "committed")}
        assert named == {
            "scope": scope,
            "window": "d",
            "limit": 1000,
            "used": spent,
            "reserved": spent - 100,
            "committed": 100,
        }


@pytest.mark.parametrize(("before", "limited"), [(9, False), (10, True)])
def test_the_eleventh_in_the_window_is_limited_and_the_tenth_is_not(before: int, limited: bool) -> None:
    ledger = Ledger()
    rate = RateAsk("bot", 10, 60_000_000, False)
    for i in range(before):
        ledger.admit(Ask(f"p{i}", 100, NOW + i, rate))
    admission = ledger.admit(Ask("last", 100, NOW + 59_999_999, rate))
    expected = ("REJECTED", "RATE_LIMITED") if limited else ("APPROVED", "POLICY_OK")
    assert outcome(replace(bare("rate_limit: {count: 10, window: 60}"), admission=admission)) == expected


def test_a_slot_is_free_again_exactly_when_its_window_is_over() -> None:
    for later, limited in ((59_999_999, True), (60_000_000, False)):
        ledger = Ledger()
        rate = RateAsk("bot", 1, 60_000_000, False)
        ledger.admit(Ask("first", 100, NOW, rate))
        answer = ledger.admit(Ask("second", 100, NOW + later, rate)).rate
        assert answer is not None
        assert answer.limited is limited


FROZEN = ScopeLimits(frozen=True)
LIMITED = Admission(RateAnswer(1, 10, True), None)
THREAT = Reputation("threat", ("MALWARE",))


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("https://who:hunter2@127.0.0.1/inv#7", "https://127.0.0.1/inv"),
        ("ht\ntps://who:hunter2@127.0.0.1/@7", "https://127.0.0.1/@7"),
        ("https://hunter2@a..b/", "https://***@a..b/"),
        ("ftp://who:hunter2/hunter2@vendor.example", "ftp://***@vendor.example"),
        ("who:hunter2@vendor.example", "***@vendor.example"),
        (f"ftp://who:hunter2{300 * 'x'}@vendor.example", "ftp://***@vendor.example"),
        ("http://0x7f.1/#7", "http://0x7f.1/#7"),
        (f"ftp://vendor.example/{300 * 'x'}", f"ftp://vendor.example/{179 * 'x'}"),
    ],
)
def test_evidence_of_a_bad_url_does_not_tell_who_logs_in(url: str, shown: str) -> None:
    [finding] = decide(bare(url=url)).findings
    assert (finding.code, finding.evidence["url"]) == ("VENDOR_URL_INVALID", shown)


@pytest.mark.parametrize(
    ("case", "scope"),
    [
        (bare("frozen: true"), "agent"),
        (replace(bare(), account=FROZEN), "account"),
        (replace(bare(), team=FROZEN), "team"),
        (replace(bare(), account=ScopeLimits(), team=ScopeLimits()), None),
    ],
)
def test_a_payout_is_frozen_by_the_policy_of_its_agent_its_account_or_its_team(
    case: Case, scope: str | None
) -> None:
    found = [(finding.code, finding.evidence["scope"]) for finding in decide(case).findings]
    assert found == ([("FROZEN", scope)] if scope else [])


def test_the_order_of_rules_is_the_order_of_reasons() -> None:
    """A payout that every rule objects to is told the first; each mended objection shows the next."""
    everything = bare(
        "per_txn_limit: 10, daily_limit: 100, blocked_domains: ['*'], rate_limit: {count: 1, window: 60}",
        amount=5000,
        url="https://malware.example.net",
        currency="USD",
    )
    worst = replace(everything, account=FROZEN, admission=LIMITED, reputation=THREAT)
    assert outcome(worst) == ("REJECTED", "FROZEN")
    thawed = replace(worst, account=None)
    assert outcome(replace(thawed, agent=None)) == ("REJECTED", "NO_POLICY")
    assert outcome(thawed) == ("REJECTED", "CURRENCY_NOT_ALLOWED")
    rupees = replace(thawed, payout=replace(thawed.payout, currency="INR"))
    assert outcome(rupees) == ("REJECTED", "TXN_LIMIT_EXCEEDED")
    small = replace(rupees, payout=replace(rupees.payout, amount=10))
    assert outcome(small) == ("REJECTED", "DOMAIN_BLOCKED")
    allowed = replace(small, agent=policy("rate_limit: {count: 1, window: 60}"))
    assert outcome(allowed) == ("REJECTED", "RATE_LIMITED")
    slow = replace(allowed, admission=Admission())
    assert outcome(slow) == ("REJECTED", "RISK_HIGH")
    assert outcome(replace(slow, reputation=Reputation("clean"))) == ("APPROVED", "POLICY_OK")


def test_a_hold_keeps_every_reason_and_a_later_rejection_wins() -> None:
    held = replace(
        bare("require_verified_identity: true, require_approval_above: 0"),
        reputation=Reputation("unavailable", problem="timeout"),
    )
    verdict = decide(held)
    assert (verdict.decision, verdict.reasons) == (
        "HELD",
        ["IDENTITY_UNVERIFIED", "REPUTATION_UNAVAILABLE", "APPROVAL_REQUIRED"],
    )
    assert decide(replace(held, reputation=THREAT)).reasons == ["RISK_HIGH", "IDENTITY_UNVERIFIED"]


def test_every_stage_of_the_table_is_in_the_order_of_the_chain() -> None:
    assert list(RULES) == ["screening", "velocity", "reputation", "anomaly", "budget", "approval"]


@given(received=st.integers(1_600_000_000, 1_900_000_000), limit=st.none() | st.integers(0, 10**9))
def test_the_windows_of_a_payout_are_its_calendar_in_the_zone_of_the_policy(
    received: int, limit: int | None
) -> None:
    from datetime import datetime
    from zoneinfo import ZoneInfo

    agents = policy("daily_limit: 5, weekly_limit: 6, monthly_limit: 7, timezone: Asia/Kolkata").policy
    windows = windows_of(
        Limits(agents, account=ScopeLimits(daily_limit=limit)),
        agent="bot",
        account=ACCOUNT,
        vendor="v",
        received_at=received * 1_000_000,
        zone="UTC",
    )
    local = datetime.fromtimestamp(received, ZoneInfo("Asia/Kolkata"))
    week = local.strftime("%G-W%V")
    assert [w.window for w in windows[:3]] == [local.strftime("%Y-%m-%d"), week, local.strftime("%Y-%m")]
    assert all(w.ends_at > received for w in windows)
    utc_day = datetime.fromtimestamp(received, ZoneInfo("UTC")).strftime("%Y-%m-%d")
    assert [w.window for w in windows[3:]] == ([] if limit is None else [utc_day])


ROOT = Path(__file__).parents[2]


def codes() -> set[str]:
    """The codes of all findings that the rules can make: the second argument of `_held("screening", "CODE", ...)`."""
    tree = ast.parse((ROOT / "streamproc" / "domain" / "governance.py").read_text(encoding="utf-8"))
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call) and len(node.args) == 2]
    return {
        code.value
        for call in calls
        if isinstance(code := call.args[1], ast.Constant)
        and isinstance(code.value, str)
        and isinstance(call.func, ast.Name)
    }


def test_every_code_has_words_for_people_and_a_row_in_the_document_of_the_rules() -> None:
    found = codes()
    assert {"FROZEN", "RATE_LIMITED", "APPROVAL_REQUIRED"} <= found
    no_words = sorted(found - MEANINGS.keys())
    assert not no_words, f"{no_words}: say what each means in MEANINGS of streamproc/domain/notice.py"
    table = (ROOT / "docs" / "governance.md").read_text(encoding="utf-8").partition("## ")[0]
    no_row = sorted(found - set(re.findall(r"`([A-Z_]+)`", table)))
    assert not no_row, f"{no_row}: give each a row in the table of docs/governance.md"
