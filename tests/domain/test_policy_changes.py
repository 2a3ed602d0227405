"""Versions are dense, a change is told where something changes and nowhere else, and the fold agrees."""

import json

import pytest
from msgspec.structs import replace

from streamproc.domain.anomaly import written_profile
from streamproc.domain.events import PolicyChanged
from streamproc.domain.policy import (
    PolicyBook,
    ScopeState,
    effective_policy,
    fields_of,
    parse_policy_file,
    patch_scope,
    plan_changes,
    scopes_after,
)
from streamproc.domain.policy_changes import put_policy, replan
from streamproc.errors import InputError, LogBroken
from tests.profiles import OFFICE, policy_fields
from tests.words import attributed

Scopes = dict[str, ScopeState]
TWO = """
defaults: {daily_limit: 500}
policies:
  plain: {}
  own: {daily_limit: 900}
accounts: {acc_1: {daily_limit: 5000}}
teams: {finance: {monthly_limit: 9000}}
reviewers: {asha: {slack: U0ASHA}, vikram: {}}
agents: {plain: {fund_accounts: [fa_1], public_keys: ["ed25519:AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"]}}
"""


def changes(scopes: Scopes, text: str, *, prune: bool = False) -> list[PolicyChanged]:
    file = parse_policy_file(text, name="p.yaml")
    return plan_changes(scopes, file, prune=prune, at=7, by="asha", why="test")


def applied(*texts: str) -> Scopes:
    scopes: Scopes = {}
    for text in texts:
        scopes = scopes_after(scopes, *changes(scopes, text))
    return scopes


def told(events: list[PolicyChanged]) -> list[tuple[str, int]]:
    return [(event.scope, event.version) for event in events]


def patched(scopes: Scopes, scope: str, **fields: object) -> list[PolicyChanged]:
    return patch_scope(scopes, scope, fields, at=8, by="vikram", why="test")


def test_a_first_file_gives_every_scope_version_1() -> None:
    events = changes({}, TWO)
    assert {version for _, version in told(events)} == {1}
    assert events[0].before is None
    assert (events[0].at, events[0].by, events[0].why) == (7, "asha", "test")


def test_the_same_file_again_changes_nothing() -> None:
    assert changes(applied(TWO), TWO) == []
    assert changes(applied(TWO), TWO, prune=True) == []


def test_only_what_differs_gets_a_new_version() -> None:
    (event,) = changes(applied(TWO), "policies: {own: {daily_limit: 901}, plain: {}}")
    assert (event.scope, event.version) == ("agent:own", 2)
    assert (event.before, event.after) == ({"daily_limit": 900}, {"daily_limit": 901})


def test_a_changed_default_gives_a_version_to_each_agent_whose_policy_it_changes_and_no_other() -> None:
    events = changes(applied(TWO), "defaults: {daily_limit: 600}")
    assert told(events) == [("defaults", 2), ("agent:plain", 2)]
    assert events[1].effective is not None
    assert events[1].effective["daily_limit"] == 600
    assert events[1].before == events[1].after == {}


def test_defaults_that_make_an_agent_inconsistent_refuse_the_whole_file() -> None:
    with pytest.raises(
        InputError, match=r"policies\.own\.daily_limit: daily_limit 900 is above weekly_limit 800"
    ):
        changes(applied(TWO), "defaults: {weekly_limit: 800}")


def test_scopes_that_a_file_does_not_name_stay_unless_it_prunes() -> None:
    scopes = applied(TWO)
    assert changes(scopes, "policies: {plain: {}}") == []
    gone = changes(scopes, "policies: {plain: {}}", prune=True)
    assert told(gone) == [("agent:own", 2), ("account:acc_1", 2), ("team:finance", 2)]
    assert all(event.after is None and event.effective is None for event in gone)


def test_a_removed_agent_has_no_policy_and_comes_back_with_the_next_version() -> None:
    scopes = applied(TWO)
    scopes = scopes_after(scopes, *changes(scopes, "policies: {plain: {}}", prune=True))
    assert PolicyBook(scopes).agent("own") is None
    assert told(changes(scopes, "policies: {plain: {}}", prune=True)) == []
    assert told(changes(scopes, TWO)) == [("agent:own", 3), ("account:acc_1", 3), ("team:finance", 3)]


def test_a_version_that_is_skipped_or_repeated_breaks_the_fold() -> None:
    events = changes({}, TWO)
    with pytest.raises(LogBroken, match="version 1 follows version 1"):
        scopes_after(scopes_after({}, *events), events[0])


def test_a_patch_changes_what_it_names_and_nothing_else() -> None:
    scopes = applied(TWO, "policies: {own: {daily_limit: 900, rate_limit: {count: 5, window: 30}}}")
    (event,) = patched(scopes, "agent:own", frozen=True, rate_limit={"count": 6})
    assert event.after == {"daily_limit": 900, "rate_limit": {"count": 6, "window": 30}, "frozen": True}
    assert event.version == 3


def test_a_patch_with_null_lets_the_default_count_again() -> None:
    (event,) = patched(applied(TWO), "agent:own", daily_limit=None)
    assert event.after == {}
    assert event.effective is not None
    assert event.effective["daily_limit"] == 500


def test_a_patch_that_changes_nothing_says_nothing() -> None:
    assert patched(applied(TWO), "agent:own", daily_limit=900) == []


def test_a_patch_of_the_defaults_reaches_the_agents() -> None:
    assert told(patched(applied(TWO), "defaults", frozen=True)) == [
        ("defaults", 2),
        ("agent:plain", 2),
        ("agent:own", 2),
    ]


def test_an_account_without_limits_can_be_frozen() -> None:
    scopes = scopes_after(applied(TWO), *patched(applied(TWO), "account:acc_2", frozen=True))
    limits = PolicyBook(scopes).account("acc_2")
    assert limits is not None
    assert limits.frozen


def test_a_patch_never_gives_an_agent_its_first_policy() -> None:
    with pytest.raises(InputError, match="agent nobody has no policy"):
        patched(applied(TWO), "agent:nobody", frozen=False)


@pytest.mark.parametrize(
    ("scope", "fields"),
    [
        ("agent:own", {"daily_limit": 1.5}),
        ("agent:own", {"weekly_limit": 1}),
        ("account:acc_1", {"per_txn_limit": 1}),
        ("account:bad id", {"frozen": True}),
        ("defaults", {"nonsense": 1}),
        ("reviewers", {"mallory": {}}),
        ("agents", {"own": {}}),
    ],
)
def test_a_wrong_patch_is_refused_whole(scope: str, fields: dict[str, object]) -> None:
    with pytest.raises(InputError):
        patched(applied(TWO), scope, **fields)


def test_the_book_answers_every_question_of_a_decision() -> None:
    book = PolicyBook(
        applied(TWO, "policies: {plain: {allowed_domains: [a.com], blocked_domains: ['*.xyz']}}")
    )
    agent = book.agent("plain")
    assert agent is not None
    assert (agent.version, agent.policy.daily_limit) == (2, 500)
    assert (agent.allowed.match("b.a.com"), agent.blocked.match("b.xyz")) == ("a.com", "*.xyz")
    assert book.agent("plain") is agent
    account, team = book.account("acc_1"), book.team("finance")
    assert account is not None
    assert team is not None
    assert (account.daily_limit, team.monthly_limit) == (5000, 9000)
    assert dict(book.reviewers) == {"asha": "U0ASHA", "vikram": ""}
    assert (book.agent("nobody"), book.account("nobody"), book.team("nobody")) == (None, None, None)


def test_a_fund_account_verifies_only_the_agent_it_is_bound_to() -> None:
    bindings = PolicyBook(applied(TWO)).bindings
    assert bindings.verified_agent("plain", "fa_1")
    assert not bindings.verified_agent("own", "fa_1")
    assert not bindings.verified_agent("plain", "fa_2")
    assert not bindings.verified_agent("plain", "key_1")


def test_defaults_alone_give_nobody_a_policy() -> None:
    assert PolicyBook(applied("defaults: {daily_limit: 5}")).agent("anyone") is None


def test_a_team_that_is_not_there_is_refused_because_nobody_would_keep_its_limit() -> None:
    text = "policies: {bot: {team: finnance}}\nteams: {finance: {daily_limit: 5}}"
    file = parse_policy_file(text, name="p.yaml")
    with pytest.raises(InputError, match="finnance"):
        plan_changes({}, file, prune=False, at=1, by="a", why="b")


def test_the_agent_of_nobody_can_have_no_policy() -> None:
    with pytest.raises(InputError, match="unknown"):
        parse_policy_file("policies: {unknown: {daily_limit: 5}}", name="p.yaml")


# ---- the same change on other policies ----


def change(
    before: dict[str, object] | None, after: dict[str, object] | None, *, scope: str = "agent:bot"
) -> PolicyChanged:
    return PolicyChanged(
        at=1, scope=scope, version=2, before=before, after=after, effective=after, by="asha", why="because"
    )


def test_a_change_made_again_changes_only_what_it_changed_then() -> None:
    current = {"agent:bot": ScopeState(version=5, own={"daily_limit": 500}, effective={"daily_limit": 500})}
    [again] = replan(
        current,
        [change({"daily_limit": 900}, {"daily_limit": 900, "frozen": True})],
        attributed("asha", "because"),
        at=7,
    )
    assert (again.version, again.after, again.by, again.at) == (
        6,
        {"daily_limit": 500, "frozen": True},
        "asha",
        7,
    )


def test_a_field_that_it_took_away_is_taken_away_again_and_a_removed_scope_removed() -> None:
    current = {
        "agent:bot": ScopeState(
            version=5, own={"daily_limit": 5, "frozen": True}, effective={"daily_limit": 5}
        )
    }
    [again] = replan(current, [change({"frozen": True}, {})], attributed("asha", "test"), at=7)
    assert again.after == {"daily_limit": 5}
    [removed] = replan(current, [change({"frozen": True}, None)], attributed("asha", "test"), at=7)
    assert (removed.after, removed.version) == (None, 6)


def test_a_change_that_is_in_force_already_is_none() -> None:
    effective = fields_of(effective_policy({}, {"frozen": True}))
    current = {"agent:bot": ScopeState(version=5, own={"frozen": True}, effective=effective)}
    assert replan(current, [change({}, {"frozen": True})], attributed("asha", "test"), at=7) == []


def test_a_change_that_does_not_fit_any_more_is_refused() -> None:
    current = {"agent:bot": ScopeState(version=5, own={"daily_limit": 900}, effective={"daily_limit": 900})}
    with pytest.raises(InputError, match="weekly_limit"):
        replan(current, [change({}, {"weekly_limit": 500})], attributed("asha", "test"), at=7)


def test_changes_that_were_made_together_are_made_together_again() -> None:
    """An agent's team is made in the same file, after the agent."""
    team = change(None, {"daily_limit": 7}, scope="team:red")
    [agent, made] = replan({}, [change(None, {"team": "red"}), team], attributed("asha", "test"), at=7)
    assert (agent.scope, made.scope) == ("agent:bot", "team:red")
    with pytest.raises(InputError, match="red"):
        replan({}, [change(None, {"team": "red"})], attributed("asha", "test"), at=7)


# ---- what is measured, and not written ----

MEASURED = written_profile(OFFICE)
CALIBRATED = f"policies: {{own: {{daily_limit: 900, {policy_fields()}}}}}"


def own_after(text: str) -> object:
    """The own fields of an agent with a profile, after a file."""
    return applied(CALIBRATED, text)["agent:own"].own


def test_a_file_that_does_not_name_the_profile_keeps_the_one_in_force() -> None:
    kept = own_after("policies: {own: {daily_limit: 1000, anomaly: true}}")
    assert kept == {"daily_limit": 1000, "anomaly": True, "anomaly_profile": MEASURED}
    assert (
        changes(applied(CALIBRATED), "policies: {own: {daily_limit: 900, anomaly: true}}", prune=True) == []
    )


def test_a_file_that_says_null_removes_it_and_one_that_has_another_replaces_it() -> None:
    assert own_after("policies: {own: {anomaly_profile: null}}") == {}
    other = written_profile(replace(OFFICE, threshold=600))
    assert own_after(f"policies: {{own: {json.dumps({'anomaly_profile': other})}}}") == {
        "anomaly_profile": other
    }
    assert changes(applied("policies: {own: {}}"), "policies: {own: {anomaly_profile: null}}") == []


def test_who_is_removed_and_comes_again_has_no_profile() -> None:
    gone = scopes_after(applied(CALIBRATED), *changes(applied(CALIBRATED), "policies: {}", prune=True))
    assert gone["agent:own"].own is None
    [again] = changes(gone, "policies: {own: {anomaly: true}}")
    assert again.after == {"anomaly": True}


def test_a_put_keeps_it_as_a_file_does_and_a_patch_that_says_null_removes_it() -> None:
    scopes = applied(CALIBRATED)
    [put] = put_policy(scopes, "own", {"daily_limit": 5}, at=8, by="vikram", why="")
    assert put.after == {"daily_limit": 5, "anomaly_profile": MEASURED}
    [null] = put_policy(scopes, "own", {"anomaly_profile": None}, at=8, by="vikram", why="")
    assert null.after == {}
    [patch] = patched(scopes, "agent:own", anomaly_profile=None)
    assert patch.after == {"daily_limit": 900, "anomaly": True}
    [threshold] = patched(scopes, "agent:own", anomaly_profile={"threshold": 600})
    assert threshold.after is not None
    assert threshold.after["anomaly_profile"] == MEASURED | {"threshold": 600}


def test_a_change_that_waited_does_not_undo_what_was_measured_meanwhile() -> None:
    before = applied("policies: {own: {daily_limit: 900}}")
    waited = changes(before, "policies: {own: {daily_limit: 1000}}")
    since = scopes_after(before, *patched(before, "agent:own", anomaly_profile=MEASURED))
    [made] = replan(since, waited, attributed("asha", ""), at=9)
    assert made.after == {"daily_limit": 1000, "anomaly_profile": MEASURED}


def test_only_a_policy_that_has_a_profile_names_it_to_workers_of_earlier_versions() -> None:
    """They cannot read a policy with a field that they do not know: every payout would become a dead letter."""
    [plain] = changes({}, "policies: {own: {daily_limit: 900}}")
    [measured] = changes({}, CALIBRATED)
    assert plain.effective is not None
    assert measured.effective is not None
    assert "anomaly_profile" not in plain.effective
    assert measured.effective["anomaly_profile"] == MEASURED


def test_of_defaults_no_profile_is_taken() -> None:
    with pytest.raises(InputError, match=r"line 1, defaults\.anomaly_profile: is measured from one agent's"):
        changes({}, f"defaults: {{{policy_fields()}}}\npolicies: {{own: {{}}}}")
    with pytest.raises(InputError, match="is measured from one agent's payouts"):
        patched(applied(TWO), "defaults", anomaly_profile=MEASURED)


def test_a_section_of_names_is_no_policy_of_an_agent() -> None:
    scopes = applied("reviewers: {anomaly_profile: {}}", "reviewers: {asha: {}}")
    assert scopes["reviewers"].own == {"asha": {}}
