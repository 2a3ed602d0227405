"""Tokens, pure: until when one is good, what each scope allows, which can be made, and what a revocation leaves."""

from typing import Any, get_args

import pytest
from msgspec.structs import replace

from streamproc.domain import tokens
from streamproc.domain.events import TokenCreated, TokenRevoked
from streamproc.domain.tokens import ALLOWED, Action, digest_of, plan_creation, plan_revocation, tokens_after
from streamproc.errors import InputError
from tests.words import attributed

SHELL = "cli:ann@laptop"
MADE = TokenCreated(
    at=1, name="laptop", scope="approver", digest="d", expires_at=1_000, by="ann", reviewer="asha"
)  # fmt: skip
OF_AGENT = replace(MADE, name="bot-1", scope="agent", agent="bot", account="acc_1", reviewer="")


def test_a_token_is_good_until_the_moment_when_it_expires_or_is_revoked() -> None:
    token = tokens_after({}, [MADE])["laptop"]
    assert [token.opens(now) for now in (1, 999, 1_000)] == [True, True, False]
    assert replace(token, expires_at=0).opens(2**60)
    revoked = tokens_after({}, [MADE, TokenRevoked(at=5, name="laptop", by="ann")])["laptop"]
    assert not revoked.opens(6)


def test_a_token_is_what_its_event_says_and_a_second_revocation_changes_nothing() -> None:
    found = tokens_after(
        {},
        [
            *(MADE, OF_AGENT, TokenRevoked(at=5, name="laptop", by="ann")),
            *(TokenRevoked(at=6, name="laptop", by="eve"), TokenRevoked(at=7, name="nobody", by="eve")),
        ],
    )
    assert set(found) == {"laptop", "bot-1"}
    laptop, bot = found["laptop"], found["bot-1"]
    assert (laptop.scope, laptop.person, laptop.by, laptop.revoked_at) == ("approver", "asha", "ann", 5)
    assert (laptop.digest, laptop.created_at, laptop.expires_at) == ("d", 1, 1_000)
    assert (bot.agent, bot.account, bot.person, bot.revoked_at) == ("bot", "acc_1", "bot-1", 0)
    assert plan_revocation(found, "laptop", attributed("ann", channel=SHELL), at=9) is None
    assert plan_revocation(found, "bot-1", attributed("ann", channel=SHELL), at=9) == TokenRevoked(
        at=9, name="bot-1", by="ann", channel=SHELL
    )


def test_an_agent_neither_reviews_nor_administers_nor_sees_others_and_nobody_else_asks_for_a_payout() -> None:
    token = tokens_after({}, [MADE])["laptop"]
    actions = get_args(Action)
    assert {scope: {one for one in actions if replace(token, scope=scope).may(one)} for scope in ALLOWED} == {
        "agent": {"request", "read own"},
        "viewer": {"read own", "read all"},
        "approver": {"read own", "read all", "review"},
        "admin": {"read own", "read all", "review", "administer"},
    }


def test_what_is_kept_of_a_token_is_its_sha256() -> None:
    assert digest_of("abc") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


@pytest.mark.parametrize(
    ("wanted", "problem"),
    [
        ({}, ""),
        ({"name": "a" * 64}, ""),
        ({"name": "a" * 65}, "a token's name is 1 to 64"),
        ({"name": ""}, "a token's name is 1 to 64"),
        ({"name": ".a"}, "a token's name is 1 to 64"),
        ({"scope": "admin"}, ""),
        ({"scope": "viewer"}, "a token of scope viewer answers no holds"),
        ({"scope": "viewer", "reviewer": ""}, ""),
        ({"reviewer": "slack:U0ASHA"}, "give the reviewer's name, not the account in Slack"),
        ({"reviewer": " "}, "' '"),
        ({"agent": "bot"}, "only a token of scope agent belongs to an agent and an account"),
        ({"account": "acc_1"}, "only a token of scope agent belongs to an agent and an account"),
        ({"scope": "agent", "agent": "bot", "account": "acc_1"}, "a token of scope agent answers no holds"),
        ({"scope": "agent", "agent": "bot", "account": "acc_1", "reviewer": ""}, ""),
        ({"scope": "agent", "account": "acc_1", "reviewer": ""}, "needs --agent"),
        ({"scope": "agent", "agent": "bot", "reviewer": ""}, "needs --account"),
        ({"scope": "agent", "agent": "unknown", "account": "acc_1", "reviewer": ""}, "it gets no token"),
        ({"scope": "agent", "agent": "\n", "account": "acc_1", "reviewer": ""}, r"\n"),
        ({"scope": "agent", "agent": "bot", "account": "\n", "reviewer": ""}, r"\n"),
    ],
)
def test_only_a_token_whose_parts_fit_its_scope_can_be_made(wanted: dict[str, Any], problem: str) -> None:
    event = replace(MADE, **wanted)
    if not problem:
        assert plan_creation({}, event) is event
        return
    with pytest.raises(InputError) as caught:
        plan_creation({}, event)
    assert problem in str(caught.value)


def test_a_name_is_given_once_and_there_are_no_more_tokens_than_the_limit(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    known = tokens_after({}, [MADE])
    with pytest.raises(InputError, match="is there already"):
        plan_creation(known, MADE)
    with pytest.raises(InputError, match="was revoked, and its name stays its own"):
        plan_creation(tokens_after(known, [TokenRevoked(at=5, name="laptop", by="ann")]), MADE)
    with pytest.raises(InputError, match="there is no token 'other'"):
        plan_revocation(known, "other", attributed("ann", channel=SHELL), at=9)
    monkeypatch.setattr(tokens, "TOKENS_MAX", 2)
    assert plan_creation(known, OF_AGENT)
    with pytest.raises(InputError, match="there are 2 tokens, the limit is 2"):
        plan_creation(tokens_after(known, [OF_AGENT]), replace(MADE, name="third"))
