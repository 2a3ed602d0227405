"""A policy file is taken whole or refused whole, with every problem, its line and its field."""

import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamproc.domain.money import AMOUNT_MAX_PAISE
from streamproc.domain.policy import (
    Policy,
    RateLimit,
    effective_policy,
    fields_of,
    parse_policy_file,
    plan_changes,
)
from streamproc.domain.policy_changes import put_policy
from streamproc.domain.policy_fields import ACCOUNT_FIELDS, POLICY_FIELDS
from streamproc.domain.policy_file import FILE_CHARS_MAX, PolicyFile
from streamproc.errors import InputError

DEMO = Path(__file__).parents[2] / "ops" / "demo" / "policies.yaml"


def problems(text: str, name: str = "p.yaml") -> list[str]:
    with pytest.raises(InputError) as refused:
        parse_policy_file(text, name=name)
    return str(refused.value).splitlines()


def problem_with(fields: object) -> str:
    assert isinstance(fields, dict)
    with pytest.raises(InputError) as refused:
        effective_policy({}, fields)
    return str(refused.value)


def test_a_file_is_read_as_it_was_written() -> None:
    file = parse_policy_file(
        "policies:\n  bot: {daily_limit: 5_000, hold_ttl: 24h}\n  idle:\nreviewers: [asha, vikram]\n",
        name="p.yaml",
    )
    assert file.policies == {"bot": {"daily_limit": 5000, "hold_ttl": "24h"}, "idle": {}}
    assert file.reviewers == {"asha": {}, "vikram": {}}
    assert file.defaults is None


def test_json_and_toml_say_the_same_as_yaml() -> None:
    yaml = parse_policy_file("policies: {bot: {daily_limit: 5}}", name="p.yaml")
    json = parse_policy_file('{"policies": {"bot": {"daily_limit": 5}}}', name="p.json")
    toml = parse_policy_file("[policies.bot]\ndaily_limit = 5", name="p.toml")
    assert yaml.policies == json.policies == toml.policies


def test_every_problem_is_told_at_once_with_line_and_field() -> None:
    text = """\
policies:
  bot:
    daily_limit: 5.5
    dayly_limit: 7
    allowed_domains:
      - ok.com
      - "http://bad"
  "no id": {}
accounts:
  acc_1: {per_txn_limit: 1}
agent: {}
"""
    assert problems(text) == [
        "p.yaml: line 11, agent: 'agent' is not known; did you mean 'agents'?",
        "p.yaml: line 8, policies.no id: text 'no id': an id is 1 to 64 of A-Z a-z 0-9 . _ @ : / - "
        "and starts with one of A-Z a-z 0-9",
        "p.yaml: line 3, policies.bot.daily_limit: amounts are integer paise, not 5.5",
        "p.yaml: line 4, policies.bot.dayly_limit: 'dayly_limit' is not known; did you mean 'daily_limit'?",
        "p.yaml: line 7, policies.bot.allowed_domains[1]: http://bad: a rule is a host, without a scheme",
        "p.yaml: line 10, accounts.acc_1.per_txn_limit: 'per_txn_limit' is a field of agents only; "
        "here are daily_limit, weekly_limit, monthly_limit, timezone, frozen, fee_fund_accounts",
    ]


@pytest.mark.parametrize("section", ["policies", "agents"])
def test_a_key_written_twice_is_refused_and_both_lines_are_named(section: str) -> None:
    (problem,) = problems(f"{section}:\n  bot: {{}}\n  bot: {{}}\n")
    assert problem == f"p.yaml: line 3, {section}.bot: written twice, first on line 2"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "mapping with some of"),
        ("policies: &x {}\nteams: *x\n", "line 2, teams: aliases"),
        ("policies: !!python/object:os.system {}", "tags"),
        ("policies: {}\n---\npolicies: {}\n", "line 2: a policy file is one document"),
        ("? [a]\n: b\n", "line 1: a key is text"),
        ("policies: [\n", "not YAML"),
        ("[" * 50_000, "nested deeper"),
        ("policies: {}\n\x00", "not YAML"),
        ("x" * (FILE_CHARS_MAX + 1), f"the limit is {FILE_CHARS_MAX}"),
        ("policies: [bot]", "must map ids to fields"),
        ("policies: {bot: 5}", "must be a mapping of fields"),
        ("reviewers: [asha, asha]", "listed twice"),
        ("reviewers: {a: {slack: U1A}, b: {slack: U1A}}", "already the reviewer 'a'"),
        ("agents: {bot: {fund_accounts: [x]}}", "agents.bot.fund_accounts"),
    ],
)
def test_a_text_that_is_no_policy_file_is_refused(text: str, reason: str) -> None:
    assert reason in "\n".join(problems(text))


@pytest.mark.parametrize(
    "name", ["proposals", "proposals/x", "a/history", "a/b/budget", "a//b", "a/", "a/../b", "a/./b"]
)
def test_an_agent_whose_path_in_the_api_would_be_another_one_can_have_no_policy(name: str) -> None:
    (problem,) = problems(f"policies:\n  {name}: {{}}\n")
    assert problem.startswith(
        f"p.yaml: line 2, policies.{name}: '{name}' would be another path of the HTTP API"
    )
    with pytest.raises(InputError, match="would be another path of the HTTP API"):
        put_policy({}, name, {"daily_limit": 1}, at=1, by="asha", why="test")
    assert parse_policy_file(
        f"accounts: {{{name}: {{}}}}", name="p.yaml"
    ).accounts  # those stand in no such path


@pytest.mark.parametrize("name", ["history", "budget", "a/proposals", "proposals.x", "a/history/b", "a/b"])
def test_an_agent_whose_path_is_its_own_can(name: str) -> None:
    assert parse_policy_file(f"policies: {{{name}: {{}}}}", name="p.yaml").policies


@given(st.text(max_size=120), st.sampled_from(["p.yaml", "p.toml"]))
def test_any_text_is_a_file_or_an_input_error(text: str, name: str) -> None:
    for written in (text, f"policies:\n  a: {text}", f"policies: {{a: {{team: {text}}}}}"):
        try:
            parsed = parse_policy_file(written, name=name)
        except InputError:
            continue
        assert isinstance(parsed, PolicyFile)


@pytest.mark.parametrize("field", ["daily_limit", "weekly_limit", "per_txn_limit", "require_approval_above"])
def test_an_amount_from_0_to_the_largest_passes_and_beyond_is_refused(field: str) -> None:
    for amount in (0, AMOUNT_MAX_PAISE):
        assert getattr(effective_policy({}, {field: amount}), field) == amount
    for amount in (-1, AMOUNT_MAX_PAISE + 1):
        assert str(amount) in problem_with({field: amount})


@pytest.mark.parametrize("value", [True, 1.0, "100", [1], {"a": 1}])
def test_what_is_no_integer_is_no_amount(value: object) -> None:
    assert "amounts are integer paise" in problem_with({"daily_limit": value})


def test_an_octal_looking_amount_is_not_read_as_octal() -> None:
    assert (
        "amounts are integer paise, not text '050000'" in problems("policies: {a: {daily_limit: 050000}}")[0]
    )


@pytest.mark.parametrize(
    ("field", "passes", "refused"),
    [
        ("hold_ttl", 60, 59),
        ("hold_ttl", "90d", 90 * 86_400 + 1),
        ("hold_ttl", "24h", "1.5h"),
        ("hold_ttl", "3600", "3600000ms"),
        ("hold_ttl", "9d", "٩d"),
        ("rate_limit", {"count": 0}, {"count": -1}),
        ("rate_limit", {"count": 10_000}, {"count": 10_001}),
        ("rate_limit", {"count": 1, "window": 1}, {"count": 1, "window": 0}),
        ("rate_limit", {"count": 1, "window": "1d"}, {"count": 1, "window": 86_401}),
        ("rate_limit", {"count": 1}, {"window": 60}),
        ("hours", "09:00-18:00", "09:00-09:00"),
        ("hours", "22:00-06:00", "22:00-24:01"),
        ("hours", "09:00-18:00", "٠٩:00-18:00"),
        ("days", ["mon", "sun"], ["monday"]),
        ("timezone", "Asia/Kolkata", "Asia/Nowhere"),
        ("timezone", "UTC", "../UTC"),
        ("timezone", "Europe/Paris", "Europe"),
        ("currencies", ["INR"], []),
        ("currencies", ["INR", "USD"], ["inr"]),
        ("on_rate_limit", "hold", "ignore"),
        ("new_beneficiary", "hold", "reject"),
        ("changed_beneficiary", "hold", True),
        ("queued_hold", "allow", "hold"),
        ("frozen", True, "yes"),
        ("frozen", False, 0),
        ("team", "finance", "-finance"),
        ("team", "a" * 64, "a" * 65),
        ("allowed_domains", ["evil.com"], "evil.com"),
    ],
)
def test_a_field_passes_at_its_boundary_and_is_refused_beyond(
    field: str, passes: object, refused: object
) -> None:
    effective_policy({}, {field: passes})
    assert field in problem_with({field: refused})


@pytest.mark.parametrize(
    ("smaller", "larger"),
    [
        ("per_txn_limit", "daily_limit"),
        ("daily_limit", "weekly_limit"),
        ("weekly_limit", "monthly_limit"),
        ("per_txn_limit", "monthly_limit"),
        ("require_approval_above", "dual_approval_above"),
    ],
)
def test_limits_may_be_equal_and_one_paisa_more_is_refused_naming_both(smaller: str, larger: str) -> None:
    effective_policy({}, {smaller: 500, larger: 500})
    assert f"{smaller} 501 is above {larger} 500" in problem_with({smaller: 501, larger: 500})


def test_a_policy_of_nothing_has_the_documented_defaults() -> None:
    policy = effective_policy({}, {})
    assert policy == Policy()
    assert (policy.hold_ttl_s, policy.rate_limit, policy.currencies) == (86_400, RateLimit(10, 60), ("INR",))
    assert (policy.on_rate_limit, policy.on_reputation_unavailable, policy.queued_hold) == (
        "reject",
        "hold",
        "cancel",
    )


def test_own_fields_win_over_defaults_and_null_takes_a_default_limit_away() -> None:
    defaults = {"daily_limit": 5, "per_txn_limit": 4}
    policy = effective_policy(defaults, {"per_txn_limit": 3, "daily_limit": None})
    assert (policy.daily_limit, policy.per_txn_limit) == (None, 3)


def test_a_policy_survives_being_written_out() -> None:
    policy = effective_policy(
        {},
        {
            "hours": "22:30-06:00",
            "rate_limit": {"count": 3, "window": "5m"},
            "hold_ttl": "2h",
            "days": ["mon"],
        },
    )
    assert effective_policy({}, fields_of(policy)) == policy


def test_the_demo_policies_can_be_put_in_force() -> None:
    file = parse_policy_file(DEMO.read_text(encoding="utf-8"), name="policies.yaml")
    changes = plan_changes({}, file, prune=False, at=1, by="asha", why="demo")
    assert {c.scope for c in changes} == {f"agent:{a}" for a in file.policies} | {"defaults", "reviewers"}


def test_every_field_is_in_the_document_of_the_rules():
    text = (Path(__file__).parents[2] / "docs" / "governance.md").read_text(encoding="utf-8")
    table = text.partition("## Fields of a policy file")[2].partition("\n## ")[0]
    rows = {row.split(" | ")[0]: row for row in table.splitlines() if row.startswith("| `")}
    named = {name for names in rows for name in re.findall(r"`(\w+)`", names)}
    wrong = sorted(named ^ (set(POLICY_FIELDS) | set(ACCOUNT_FIELDS)))
    assert not wrong, f'{wrong}: put right the table "Fields of a policy file" of docs/governance.md'
