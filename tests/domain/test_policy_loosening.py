"""What counts as loosening: every field has its rule, and where none fires no payout is decided more freely."""

from collections import deque
from functools import cache
from itertools import permutations
from random import Random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import fields, replace

from streamproc.domain import policy_loosening
from streamproc.domain.asks import charged_windows, rate_ask, vendor_charged
from streamproc.domain.budget import Admission, BudgetAnswer, Counters, RateAnswer
from streamproc.domain.case import Case, Reputation
from streamproc.domain.domains import DomainRule, compile_domains, parse_rule
from streamproc.domain.events import BeneficiarySeen, Identity, PayoutObserved
from streamproc.domain.governance import decide
from streamproc.domain.payouts import PayoutRecord, fold
from streamproc.domain.policy import (
    AgentPolicy,
    Policy,
    RateLimit,
    ScopeLimits,
    fields_of,
    parse_policy_file,
    plan_changes,
    scopes_after,
)
from streamproc.domain.policy_changes import ScopeState, plan_freeze
from streamproc.domain.policy_events import PolicyChanged
from streamproc.domain.policy_loosening import OF_LIMITS, OF_POLICY, loosened
from tests.profiles import OFFICE
from tests.words import NOW, observed, policies

HOSTS = ["evil.com", "shop.example.com", "example.com", "127.0.0.1", "localhost", "a.localhost", "x.xyz"]
RULES = [
    *(
        "evil.com",
        "=evil.com",
        "*.evil.com",
        "example.com",
        "shop.example.com",
        "*.example.com",
        "*.xyz",
        "*",
    ),
    *("127.0.0.1", "localhost", "*.localhost", "com"),
]
AMOUNTS = [100, 499, 500, 501, 1_000, 5_000]
PROFILES = [
    None,
    *(replace(OFFICE, threshold=at) for at in (400, 500, 700)),
    replace(OFFICE, amounts=(500,) * 20),
]
LIMITS = st.none() | st.sampled_from([0, *AMOUNTS])
RULE_LISTS = st.lists(st.sampled_from(RULES), max_size=3).map(tuple)

POLICIES = st.builds(
    Policy,
    daily_limit=LIMITS,
    weekly_limit=LIMITS,
    monthly_limit=LIMITS,
    per_txn_limit=LIMITS,
    require_approval_above=LIMITS,
    vendor_daily_limit=LIMITS,
    allowed_domains=RULE_LISTS,
    blocked_domains=RULE_LISTS,
    require_vendor_url=st.booleans(),
    rate_limit=st.builds(RateLimit, st.integers(0, 3), st.sampled_from([1, 60])),
    on_rate_limit=st.sampled_from(["reject", "hold"]),
    on_reputation_unavailable=st.sampled_from(["reject", "hold"]),
    require_verified_identity=st.booleans(),
    new_beneficiary=st.sampled_from(["ignore", "hold"]),
    changed_beneficiary=st.sampled_from(["ignore", "hold"]),
    hours=st.sampled_from([None, (540, 1_080), (1_320, 360), (0, 1_440), (1_170, 1_200)]),
    days=st.lists(st.sampled_from(["mon", "tue", "sun"]), unique=True).map(tuple),
    timezone=st.sampled_from([None, "Asia/Kolkata", "UTC"]),
    anomaly=st.booleans(),
    anomaly_profile=st.sampled_from(PROFILES),
    currencies=st.sampled_from([("INR",), ("INR", "USD"), ("USD",)]),
    team=st.sampled_from([None, "red", "blue"]),
    frozen=st.booleans(),
)
TEAMS = {"red": ScopeLimits(daily_limit=600), "blue": ScopeLimits(daily_limit=5_000)}


def state_of(policy: Policy) -> ScopeState:
    own = fields_of(policy)
    return ScopeState(version=1, own=own, effective=own)


def change(old: Policy, new: Policy) -> tuple[dict[str, ScopeState], PolicyChanged]:
    """An agent's policy, and its change to another."""
    before, after = state_of(old), fields_of(new)
    changed = PolicyChanged(
        at=1, scope="agent:bot", version=2, before=before.own, after=after, effective=after, by="a", why=""
    )
    return {"agent:bot": before}, changed


def says(old: Policy, new: Policy) -> list[str]:
    """The fields by which the change loosens."""
    scopes, changed = change(old, new)
    return [one.field for one in loosened(scopes, [changed])]


class World:
    """A payout and what was spent and asked before it: the same under every policy."""

    def __init__(self, chance: Random) -> None:
        host = chance.choice(["", *HOSTS])
        self.event: PayoutObserved = observed(
            amount=chance.choice(AMOUNTS),
            url=f"https://{host}/" if host else None,
            currency=chance.choice(["INR", "INR", "INR", "USD"]),
            at=NOW + chance.randrange(7 * 24) * 3_600_000_000,
        )
        self.spent = chance.choice([0, 0, 500, 4_000])
        self.slots = chance.choice([0, 0, 1, 2, 3])
        self.slots_ago = chance.choice([500_000, 30_000_000])
        self.identity: Identity = chance.choice(["claimed", "verified"])
        self.reputation = Reputation(chance.choice(["clean", "clean", "unavailable"]))
        self.seen = chance.choice(
            [None, BeneficiarySeen(known=True), BeneficiarySeen(known=True, other_vendors=["x"])]
        )

    def decided(self, policy: Policy) -> str:
        """What the whole chain says under a policy."""
        record = fold([self.event])
        assert record is not None
        record = replace(record, beneficiary=self.seen)
        allowed, blocked = compile_domains(policy.allowed_domains), compile_domains(policy.blocked_domains)
        case = Case(
            payout=record,
            identity=self.identity,
            agent=AgentPolicy(1, policy, allowed, blocked),
            reputation=self.reputation,
            team=TEAMS.get(policy.team or ""),
        )
        return decide(replace(case, admission=self._admission(case, record))).decision

    def _admission(self, case: Case, record: PayoutRecord) -> Admission:
        counters, ask, rate = Counters(), rate_ask(case), None
        if ask is not None:
            times = deque([record.received_at - self.slots_ago] * self.slots)
            counters.rates[ask.agent] = times
            used, limited = counters.take_slot(ask, record.received_at)
            rate = RateAnswer(1, used, limited, ask.count, ask.window_us)
        windows = charged_windows(case, vendor_charged(case), case.zone)
        counters.budgets = {(w.scope, w.window): (self.spent, 0) for w in windows}
        exceeded, before = counters.reserve(windows, record.amount)
        return Admission(rate, BudgetAnswer(1, record.amount, exceeded, windows, before))


FREEDOM = {"REJECTED": 0, "HELD": 1, "APPROVED": 2}


WORLDS = [World(Random(n)) for n in range(150)]
NAMES = [field.name for field in fields(Policy)]
FEW = st.lists(st.sampled_from(NAMES), min_size=1, max_size=3, unique=True)


@cache
def freedom(policy: Policy) -> list[int]:
    """How freely each world's payout is decided."""
    return [FREEDOM[world.decided(policy)] for world in WORLDS]


def is_nowhere_freer(new: Policy, old: Policy) -> bool:
    return all(after <= before for after, before in zip(freedom(new), freedom(old), strict=True))


@st.composite
def pairs(draw: Any) -> tuple[Policy, Policy]:
    """Two policies of few fields that differ in few: wholly random ones loosen something, and reject everything."""
    some, other, own, changed = draw(POLICIES), draw(POLICIES), draw(FEW), draw(FEW)
    old = replace(Policy(), **{name: getattr(some, name) for name in own})
    return old, replace(old, **{name: getattr(other, name) for name in changed})


@settings(max_examples=200, deadline=None)
@given(pair=pairs())
def test_where_nothing_loosens_no_payout_is_decided_more_freely(pair: tuple[Policy, Policy]):
    old, new = pair
    assert says(old, new) or is_nowhere_freer(new, old)


SOME_LIMITS = [None, 0, 499, 500, 4_600]
VALUES: dict[str, list[Any]] = {
    "daily_limit": SOME_LIMITS,
    "weekly_limit": SOME_LIMITS,
    "monthly_limit": SOME_LIMITS,
    "per_txn_limit": SOME_LIMITS,
    "require_approval_above": SOME_LIMITS,
    "vendor_daily_limit": [None, 0, 499, 4_600],
    "allowed_domains": [(), *((rule,) for rule in RULES), ("example.com", "evil.com"), ("*", "127.0.0.1")],
    "blocked_domains": [(), *((rule,) for rule in RULES), ("example.com", "evil.com")],
    "require_vendor_url": [False, True],
    "rate_limit": [RateLimit(count, window) for count in (0, 1, 2, 3) for window in (1, 60)],
    "on_rate_limit": ["reject", "hold"],
    "on_reputation_unavailable": ["reject", "hold"],
    "require_verified_identity": [False, True],
    "new_beneficiary": ["ignore", "hold"],
    "changed_beneficiary": ["ignore", "hold"],
    "require_entity": [False, True],
    "hours": [None, (540, 1_080), (1_320, 360), (0, 1_440), (1_000, 1_200)],
    "days": [(), ("mon",), ("tue", "mon"), ("sun",)],
    "timezone": [None, "UTC", "America/New_York"],
    "anomaly": [False, True],
    "anomaly_profile": PROFILES,
    "currencies": [("INR",), ("INR", "USD"), ("USD",)],
    "team": [None, "red", "blue"],
    "frozen": [False, True],
}
NEVER_DECIDES = {
    *("dual_approval_above", "hold_ttl_s", "queued_hold", "count_fees"),
}
BESIDE = {
    "on_rate_limit": {"rate_limit": RateLimit(1, 60)},
    "timezone": {"hours": (540, 1_080), "days": ("mon",)},
    "anomaly": {"anomaly_profile": OFFICE},
    "anomaly_profile": {"anomaly": True},
}
"""Fields by which others come to matter."""


@pytest.mark.parametrize("field", [name for name in NAMES if name not in NEVER_DECIDES])
def test_of_each_field_every_step_that_frees_a_payout_is_named(field: str):
    assert field in VALUES, f"{field}: add values of it to VALUES, or it to NEVER_DECIDES, in this file"
    found = set()
    for before, after in permutations(VALUES[field], 2):
        old, new = (replace(Policy(**BESIDE.get(field, {})), **{field: value}) for value in (before, after))
        freer = not is_nowhere_freer(new, old)
        assert says(old, new) == [field] or not freer, (before, after)
        found.add(freer)
    enough = found == {True, False} or field == "team" or len(VALUES[field]) == 2
    assert enough, f"{field}: no payout of WORLDS is decided otherwise by it: add one, by AMOUNTS or in World"


def test_every_field_of_a_policy_and_of_limits_has_its_rule():
    for table, kind in ((OF_POLICY, Policy), (OF_LIMITS, ScopeLimits)):
        names = {field.name for field in fields(kind)}
        say = f"by field of {kind.__name__}, in streamproc/domain/policy_loosening.py, what loosens: "
        assert set(table) == names, say + ", ".join(sorted(set(table) ^ names))


def test_a_field_without_a_rule_is_looser_whenever_it_differs(monkeypatch: pytest.MonkeyPatch):
    # A copy: put back into the table itself, the field would come last in what all later tests are told.
    without = {name: looser for name, looser in OF_POLICY.items() if name != "hold_ttl_s"}
    monkeypatch.setattr(policy_loosening, "OF_POLICY", without)
    assert says(Policy(), Policy(hold_ttl_s=600)) == ["hold_ttl"]


B, R = {"require_vendor_url": True}, RateLimit


@pytest.mark.parametrize(
    ("old", "new", "field"),
    [
        ({"daily_limit": 5}, {"daily_limit": 6}, "daily_limit"),
        ({"weekly_limit": 5}, {}, "weekly_limit"),
        ({"monthly_limit": 0}, {"monthly_limit": 1}, "monthly_limit"),
        ({"per_txn_limit": 5}, {}, "per_txn_limit"),
        ({"vendor_daily_limit": 5}, {"vendor_daily_limit": 9}, "vendor_daily_limit"),
        ({"require_approval_above": 5}, {}, "require_approval_above"),
        ({"dual_approval_above": 5}, {"dual_approval_above": 6}, "dual_approval_above"),
        ({"allowed_domains": ("a.com",)}, {}, "allowed_domains"),
        ({"allowed_domains": ("a.com",)}, {"allowed_domains": ("a.com", "b.com")}, "allowed_domains"),
        ({"allowed_domains": ("=a.com",)}, {"allowed_domains": ("a.com",)}, "allowed_domains"),
        ({"allowed_domains": ("*.a.com",)}, {"allowed_domains": ("=a.com",)}, "allowed_domains"),
        ({}, {"allowed_domains": ("127.0.0.1",)}, "allowed_domains"),
        ({"allowed_domains": ("*",)}, {"allowed_domains": ("*", "x.localhost")}, "allowed_domains"),
        ({"blocked_domains": ("a.com",)}, {}, "blocked_domains"),
        ({"blocked_domains": ("a.com",)}, {"blocked_domains": ("*.a.com",)}, "blocked_domains"),
        (B, {}, "require_vendor_url"),
        ({"rate_limit": R(3, 60)}, {"rate_limit": R(0, 60)}, "rate_limit"),
        ({"rate_limit": R(3, 60)}, {"rate_limit": R(3, 59)}, "rate_limit"),
        ({"rate_limit": R(3, 60)}, {"rate_limit": R(4, 90)}, "rate_limit"),
        ({}, {"on_rate_limit": "hold"}, "on_rate_limit"),
        ({"on_reputation_unavailable": "reject"}, {}, "on_reputation_unavailable"),
        ({"require_verified_identity": True}, {}, "require_verified_identity"),
        ({"new_beneficiary": "hold"}, {}, "new_beneficiary"),
        ({"changed_beneficiary": "hold"}, {}, "changed_beneficiary"),
        ({"hours": (540, 1_080)}, {"hours": (540, 1_081)}, "hours"),
        ({"hours": (540, 1_080)}, {"hours": (1_320, 360)}, "hours"),
        ({"days": ("mon",)}, {}, "days"),
        ({"days": ("mon",)}, {"days": ("tue",)}, "days"),
        ({}, {"timezone": "UTC"}, "timezone"),
        ({}, {"currencies": ("INR", "USD")}, "currencies"),
        ({"team": "red"}, {}, "team"),
        ({"team": "red"}, {"team": "blue"}, "team"),
        ({}, {"queued_hold": "allow"}, "queued_hold"),
        ({"count_fees": True}, {}, "count_fees"),
        ({"frozen": True}, {}, "frozen"),
        ({"anomaly": True}, {}, "anomaly"),
        ({"anomaly_profile": OFFICE}, {}, "anomaly_profile"),
        ({"anomaly_profile": OFFICE}, {"anomaly_profile": replace(OFFICE, threshold=501)}, "anomaly_profile"),
        (
            {"anomaly_profile": OFFICE},
            {"anomaly_profile": replace(OFFICE, payouts=90, threshold=1)},
            "anomaly_profile",
        ),
    ],
)
def test_each_of_these_loosens(old: dict[str, Any], new: dict[str, Any], field: str):
    assert says(Policy(**old), Policy(**new)) == [field]


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ({}, {"daily_limit": 5}),
        ({"daily_limit": 5}, {"daily_limit": 5}),
        ({"hold_ttl_s": 600}, {"hold_ttl_s": 6_000}),
        ({}, {"allowed_domains": ("a.com", "*.b.com")}),
        ({"allowed_domains": ("a.com",)}, {"allowed_domains": ("x.a.com", "=a.com", "*.a.com")}),
        ({"blocked_domains": ("x.a.com",)}, {"blocked_domains": ("a.com",)}),
        ({"blocked_domains": ("127.0.0.1",)}, {"blocked_domains": ("*",)}),
        ({"rate_limit": R(0, 60)}, {"rate_limit": R(9, 60)}),
        ({"rate_limit": R(3, 60)}, {"rate_limit": R(2, 61)}),
        ({"hours": (1_320, 360)}, {"hours": (60, 120)}),
        ({}, {"days": ("mon",)}),
        ({"currencies": ("INR", "USD")}, {"currencies": ("INR",)}),
        ({}, {"team": "red"}),
        ({}, {"anomaly": True}),
        ({}, {"anomaly_profile": OFFICE}),
        ({"anomaly_profile": OFFICE}, {"anomaly_profile": replace(OFFICE, threshold=499)}),
    ],
)
def test_each_of_these_only_tightens(old: dict[str, Any], new: dict[str, Any]):
    assert says(Policy(**old), Policy(**new)) == []


# ---- whole files, and other scopes ----


def by_file(before: str, after: str, *, prune: bool = False) -> list[tuple[str, str]]:
    """Scope and field of what a file loosens that follows another one."""
    scopes = scopes_after({}, *policies(before))
    file = parse_policy_file(after, name="next.yaml")
    changes = plan_changes(scopes, file, prune=prune, at=1, by="asha", why="")
    return [(one.scope, one.field) for one in loosened(scopes, changes)]


ON = "changes: {loosening: two_people}"


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        (ON, "policies: {bot: {daily_limit: 5}}", [("agent:bot", "")]),
        ("defaults: {daily_limit: 5}\npolicies: {bot: {}}", "defaults: {daily_limit: 9}",
         [("defaults", "daily_limit"), ("agent:bot", "daily_limit")]),
        ("defaults: {daily_limit: 5}\npolicies: {bot: {daily_limit: 3}}", "policies: {bot: {}}",
         [("agent:bot", "daily_limit")]),
        ("accounts: {acc_1: {daily_limit: 5}}", "accounts: {acc_1: {}}", [("account:acc_1", "daily_limit")]),
        ("accounts: {acc_1: {}}", "accounts: {acc_1: {fee_fund_accounts: [fa_1]}}",
         [("account:acc_1", "fee_fund_accounts")]),
        ("teams: {red: {weekly_limit: 5, frozen: true}}", "teams: {red: {weekly_limit: 5}}",
         [("team:red", "frozen")]),
        ("reviewers: [asha]", "reviewers: [asha, ravi]", [("reviewers", "ravi")]),
        ("reviewers: {asha: {slack: U1A}}", "reviewers: {asha: {slack: U2A}}", [("reviewers", "asha")]),
        ("agents: {bot: {fund_accounts: [fa_1]}}", "agents: {bot: {fund_accounts: [fa_1, fa_2]}}",
         [("agents", "bot.fund_accounts")]),
        (ON, "changes: {}", [("changes", "loosening")]),
        (ON, "changes: {loosening: one_person}", [("changes", "loosening")]),
        ("{}", ON, []),
        ("reviewers: {asha: {slack: U1A}, ravi: {}}", "reviewers: [asha]", []),
        ("agents: {bot: {fund_accounts: [fa_1]}}", "agents: {}", []),
        ("agents: {bot: {owners: [asha]}}", "agents: {}", [("agents", "bot.owners")]),
        ("agents: {bot: {slack: [U1A, U2A]}}", "agents: {bot: {slack: [U1A]}}", [("agents", "bot.slack")]),
        ("agents: {bot: {owners: [asha]}}", "agents: {bot: {owners: [asha, ravi]}}", []),
    ],
)  # fmt: skip
def test_what_a_file_loosens_is_named_by_scope_and_field(
    before: str, after: str, expected: list[tuple[str, str]]
):
    if before == "{}":
        before = "policies: {}"
    assert by_file(before, after) == expected


def test_removing_an_agents_policy_tightens_and_removing_an_accounts_limits_loosens():
    before = "policies: {bot: {daily_limit: 5}}\naccounts: {acc_1: {daily_limit: 5}}"
    assert by_file(before, "policies: {other: {}}", prune=True) == [
        ("account:acc_1", "daily_limit"),
        ("agent:other", ""),
    ]


def test_lifting_a_freeze_loosens_and_freezing_does_not():
    froze = plan_freeze({}, "agent:bot", frozen=True, at=1, by="asha", why="")
    scopes = scopes_after({}, *froze)
    lifts = plan_freeze(scopes, "agent:bot", frozen=False, at=1, by="asha", why="")
    assert loosened({}, froze) == []
    assert [(one.scope, one.field) for one in loosened(scopes, lifts)] == [("freeze:agent:bot", "")]


def test_a_scope_that_nobody_knows_is_looser():
    odd = PolicyChanged(
        at=1, scope="moon", version=1, before=None, after={}, effective={}, by="a", why=""
    )  # fmt: skip
    assert [one.scope for one in loosened({}, [odd])] == ["moon"]


def test_each_domain_rule_is_read_once_however_long_the_lists_are(monkeypatch: pytest.MonkeyPatch):
    read: list[str] = []

    def counted(text: str) -> DomainRule:
        read.append(text)
        return parse_rule(text)

    monkeypatch.setattr(policy_loosening, "parse_rule", counted)
    many = tuple(f"bad-{n}.example.com" for n in range(50))

    assert OF_POLICY["blocked_domains"](many, many) == ""
    assert read == []

    assert OF_POLICY["blocked_domains"](many, (*many[1:], "new.example.com")) != ""
    assert OF_POLICY["allowed_domains"](many, (*many[1:], "new.example.com")) != ""
    assert len(read) <= 4 * len(many)
