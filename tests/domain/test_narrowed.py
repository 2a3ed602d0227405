"""What the rules under one policy find is what all rules find, of any payout of which the counters were not asked."""

from collections.abc import Iterator
from itertools import product
from typing import get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from streamproc.domain import governance
from streamproc.domain.case import NO_URL, Case, Reputation
from streamproc.domain.events import BeneficiarySeen, EntitySeen
from streamproc.domain.facts import EntityVerdict
from streamproc.domain.governance import RULES, find
from streamproc.domain.narrowed import REACH, rules_under
from streamproc.domain.payouts import fold
from streamproc.domain.policy import (
    AgentPolicy,
    Freeze,
    PolicyBook,
    ScopeLimits,
    parse_policy_file,
    plan_changes,
    scopes_after,
)
from tests.profiles import policy_fields
from tests.words import NOW, observed

ALL = tuple(rule for rules in RULES.values() for rule in rules)
FIELDS = (
    "currencies: [USD]",
    "require_verified_identity: true",
    "per_txn_limit: 300",
    "per_txn_limit: 0",
    "require_vendor_url: true",
    "allowed_domains: [shop.example, 127.0.0.1]",
    'allowed_domains: ["*"]',
    "blocked_domains: [bad.example]",
    'hours: "00:00-00:01"',
    "days: [mon]",
    "new_beneficiary: hold",
    "changed_beneficiary: hold",
    "require_approval_above: 200",
    "dual_approval_above: 200",
    "on_reputation_unavailable: reject",
    "require_entity: true",
    "frozen: true",
    "daily_limit: 5000",
    policy_fields(threshold=300),
    "anomaly: true",
)
URLS = (
    "",
    "https://shop.example/a",
    "https://bad.example/",
    "https://раypal.example/",
    "http://127.0.0.1/",
    "http://localhost/",
    "not a url",
    "ftp://shop.example/",
)


def policy(fields: list[str]) -> AgentPolicy:
    one_each = {field.partition(":")[0]: field for field in fields}
    file = parse_policy_file(f"policies: {{bot: {{{', '.join(one_each.values())}}}}}", name="test.yaml")
    changes = plan_changes({}, file, prune=False, at=NOW, by="test", why="test")
    found = PolicyBook(scopes_after({}, *changes)).agent("bot")
    assert found is not None
    return found


SEEN = (
    None,
    BeneficiarySeen(),
    BeneficiarySeen(known=True, noted=True),
    BeneficiarySeen(known=True, other_vendors=["v.example"]),
    BeneficiarySeen(known=True, other_accounts=["fa_9"]),
)
REPUTATIONS = (None, NO_URL, Reputation("clean"), Reputation("threat"), Reputation("unavailable"))
ENTITIES = tuple(EntitySeen(verdict=verdict) for verdict in get_args(EntityVerdict))
FREEZES = (None, Freeze("agent:bot", "asha", "why"))
SCOPES = (None, ScopeLimits(), ScopeLimits(frozen=True))
NIGHTS = (NOW, NOW + 3 * 86_400_000_000)


def all_cases(agent: AgentPolicy) -> Iterator[Case]:
    """Every mix of what the rules look at, but for freezes, which are not mixed with each other."""
    record = fold([observed()])
    assert record is not None
    payouts = [
        replace(record, amount=amount, vendor_url=url, currency=currency, received_at=at, beneficiary=seen)
        for amount, url, currency, at, seen in product((100, 201, 301), URLS, ("INR", "USD"), NIGHTS, SEEN)
    ]
    for payout, identity, reputation in product(payouts, ("claimed", "verified"), REPUTATIONS):
        yield Case(payout, identity, agent, reputation=reputation)
    for payout, entity in product(payouts[::7], ENTITIES):
        yield Case(payout, "claimed", agent, entity=entity)
    for payout, freeze, account, team in product(payouts[::7], FREEZES, SCOPES, SCOPES):
        yield Case(payout, "claimed", agent, account=account, team=team, freeze=freeze)


def differences(agent: AgentPolicy) -> list[Case]:
    """Of all cases, those of which the rules under the policy find something else than all rules do. URLs come again
    and again, so they are remembered."""
    rules = rules_under(agent)
    return [case for case in all_cases(agent) if find(rules, case) != find(ALL, case)]


@pytest.mark.parametrize("field", ["", *FIELDS])
def test_the_rules_under_a_policy_find_what_all_rules_find(field: str) -> None:
    assert not differences(policy([field] if field else []))


@settings(max_examples=8, deadline=None)
@given(fields=st.lists(st.sampled_from(FIELDS), min_size=2, max_size=5))
def test_and_so_do_those_under_a_policy_that_says_more(fields: list[str]) -> None:
    assert not differences(policy(fields))


def test_a_policy_that_says_little_asks_little() -> None:
    assert len(rules_under(policy([]))) < len(rules_under(policy(["per_txn_limit: 300"]))) < len(ALL)


def test_of_every_rule_it_is_said_when_it_can_find_anything() -> None:
    unsaid = [rule.__name__ for rule in ALL if rule not in REACH]
    assert not unsaid, f"{unsaid}: give each a row of REACH in streamproc/domain/narrowed.py"
    assert set(REACH) == set(ALL)


def test_rules_that_look_at_time_counters_or_the_contact_leave_no_plan() -> None:
    others = {rule for rule, reach in REACH.items() if not reach.alike}
    assert others == {
        governance.entity_unverified,
        governance.no_policy,
        governance.outside_hours,
        governance.anomaly,
        governance.rate,
        governance.window_limit,
    }
