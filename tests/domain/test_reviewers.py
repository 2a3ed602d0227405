"""Who may review: people by name or by Slack account, and never an agent; a policy that says otherwise is refused."""

from collections.abc import Mapping

import pytest

from streamproc.domain.policy import (
    PolicyBook,
    ScopeState,
    parse_policy_file,
    plan_changes,
    plan_freeze,
    scopes_after,
)
from streamproc.errors import InputError
from tests.words import policies

PEOPLE = """
policies:
  bot: {daily_limit: 500}
reviewers:
  asha: {slack: U0ASHA}
  vikram: {}
agents:
  bot: {slack: [U0BOT, W0BOT], owners: [vikram]}
"""


def book(text: str = PEOPLE) -> PolicyBook:
    return PolicyBook(scopes_after({}, *policies(text)))


def apply(text: str, current: Mapping[str, ScopeState]) -> None:
    plan_changes(current, parse_policy_file(text, name="p.yaml"), prune=False, at=1, by="ann", why="why")


def refusal(text: str, current: Mapping[str, ScopeState] | None = None) -> list[str]:
    with pytest.raises(InputError) as caught:
        apply(text, current or {})
    return str(caught.value).splitlines()


def old(**own: object) -> PolicyBook:
    """Policies as a version of before could have put them in force."""
    states = {
        scope.replace("_", ":"): ScopeState(version=1, own=fields, effective=fields)  # type: ignore[arg-type]
        for scope, fields in own.items()
    }
    return PolicyBook(states)


def test_the_lists_of_people_are_read() -> None:
    people = book().people
    assert people.name_of("slack:U0ASHA") == people.name_of("asha") == "asha"
    assert people.name_of("slack:U0EVE") == "slack:U0EVE"
    assert people.name_of("U0ASHA") == "U0ASHA", "only Slack says whose account was used"
    assert people.why_not("U0ASHA", "bot") == "U0ASHA is not in the list of reviewers"
    assert people.why_not("slack:U0ASHA", "bot") == people.why_not("vikram", "other") == ""
    assert people.why_not("vikram", "bot") == "vikram acts for the agent bot and cannot review its payouts"
    assert "own account" in people.why_not("slack:W0BOT", "bot")


@pytest.mark.parametrize("owner", ["Vikram", "VIKRAM", "ｖｉｋｒａｍ"])
def test_an_owner_in_another_spelling_is_the_same_person(owner: str) -> None:
    people = old(reviewers={"vikram": {}}, agents={"bot": {"owners": [owner]}}).people
    assert people.why_not("vikram", "bot") == "vikram acts for the agent bot and cannot review its payouts"
    assert people.why_not("vikram", "other") == ""


def test_an_agents_namesake_in_another_spelling_does_not_review_its_payouts() -> None:
    people = book("policies: {bot: {}}\nreviewers: {Bot: {}}").people
    assert people.why_not("Bot", "bot") == "Bot asked for this payout and cannot review it"
    assert people.why_not("Bot", "other") == ""


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            "policies:\n  bot: {}\nreviewers:\n  asha: {}\n  bot: {}\n",
            "p.yaml: line 5, reviewers.bot: 'bot' is an agent's id, and an agent can never review",
        ),
        (
            "reviewers:\n  bot: {}\nagents:\n  bot: {fund_accounts: [fa_1]}\n",
            "p.yaml: line 2, reviewers.bot: 'bot' is an agent's id, and an agent can never review",
        ),
        (
            "reviewers: [unknown]\n",
            "p.yaml: line 1, reviewers.unknown: 'unknown' is an agent's id, and an agent can never review",
        ),
        (
            "reviewers:\n  asha: {slack: U0BOT}\nagents:\n  bot: {slack: [U0BOT]}\n",
            "p.yaml: line 2, reviewers.asha.slack: Slack user U0BOT of reviewer 'asha' is the agent bot's own"
            " account: it can never review",
        ),
        (
            "reviewers:\n  'slack:U0ASHA': {}\n",
            "p.yaml: line 2, reviewers.slack:U0ASHA: begins with 'slack:', as an answer from Slack does;"
            " give a name, with {slack: U…}",
        ),
        (
            "reviewers:\n  asha: {slack: U1}\n  vikram: {slack: U1}\n",
            "p.yaml: line 3, reviewers.vikram.slack: Slack user U1 is already the reviewer 'asha'",
        ),
        (
            "reviewers:\n  asha: {slack: U1}\n  Asha: {}\n",
            "p.yaml: line 3, reviewers.Asha: is the same name as 'asha' but for case, blanks or width",
        ),
        (
            "agents:\n  bot: {slack: [asha]}\n",
            "p.yaml: line 2, agents.bot.slack: must be a Slack user id like U012ABCDEF, not text 'asha'",
        ),
        ("agents:\n  bot: {owners: ['']}\n", "p.yaml: line 2, agents.bot.owners: text ''"),
    ],
)
def test_an_agent_among_the_reviewers_is_refused_with_its_line(text: str, expected: str) -> None:
    [line] = refusal(text)
    assert line.startswith(expected)


def test_it_is_refused_too_where_the_other_half_is_in_force_already() -> None:
    current = scopes_after({}, *policies(PEOPLE))
    assert refusal("policies:\n  vikram: {}\n", current) == [
        "p.yaml: line 2, policies.vikram: 'vikram' is an agent's id, and an agent can never review"
    ]
    assert refusal("agents:\n  other:\n    slack: [U0ASHA]\n", current)[0].startswith(
        "p.yaml: line 3, agents.other.slack: Slack user U0ASHA"
    )
    assert refusal("reviewers: [bot]", current)[0].startswith("p.yaml: line 1, reviewers.bot")


def test_what_was_in_force_before_never_stands_in_the_way_of_a_freeze_or_a_lower_limit() -> None:
    current = {
        "agent:bot": ScopeState(version=1, own={"daily_limit": 5}, effective={"daily_limit": 5}),
        "reviewers": ScopeState(version=1, own={"bot": {}}, effective={"bot": {}}),
    }
    assert plan_freeze(current, "agent:bot", frozen=True, at=1, by="ann", why="why")
    file = parse_policy_file("policies: {bot: {daily_limit: 4}}", name="p.yaml")
    assert plan_changes(current, file, prune=False, at=1, by="ann", why="why")


@pytest.mark.parametrize(
    ("people", "by", "problem"),
    [
        (
            old(reviewers={"bot": {}}, agent_bot={}).people,
            "bot",
            "bot is an agent, and an agent never reviews",
        ),
        (
            old(reviewers={"bot": {}}, agents={"bot": {}}).people,
            "bot",
            "bot is an agent, and an agent never reviews",
        ),
        (
            old(reviewers={"asha": {"slack": "U1"}}, agents={"bot": {"slack": ["U1"]}}).people,
            "asha",
            "the Slack account of asha is the agent bot's own, and an agent never reviews",
        ),
        (
            old(reviewers={"asha": {"slack": "U1"}, "vikram": {"slack": "U1"}}).people,
            "slack:U1",
            "Slack user U1 is not in the list of reviewers",
        ),
        (
            old(reviewers={"slack:U1": {}}).people,
            "slack:U1",
            "Slack user U1 is not in the list of reviewers",
        ),
        (old(reviewers={"unknown": {}}).people, "unknown", "unknown is an agent, and an agent never reviews"),
    ],
)
def test_what_an_older_version_let_in_still_lets_no_agent_review(
    people: object, by: str, problem: str
) -> None:
    assert people.why_not(by, "somebody-elses") == problem  # type: ignore[attr-defined]


def test_an_agent_whose_policy_was_removed_still_cannot_review_its_own_payout() -> None:
    people = old(reviewers={"bot": {}}).people
    assert people.why_not("bot", "bot") == "bot asked for this payout and cannot review it"
    assert people.why_not("bot", "other") == ""
