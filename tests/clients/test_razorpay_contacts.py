"""The bank is asked who has a fund account, and whatever it says instead, nobody has it."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from msgspec.json import encode

from streamproc.clients.breaker import FAILURES_MAX
from streamproc.clients.ration import Take
from streamproc.clients.razorpay_contacts import FRESH_S, TIMEOUT_S, Contacts, open_contacts
from streamproc.domain.legal_entities import CONTACT_CHARS_MAX, ContactSeen
from tests.bank import running_sandbox
from tests.clients.loopback import NO_ANSWERS, Asked, Loopback, Script, always, loopback, response, silent_for
from tests.clients.turns import OwnTurns

NOW_US = 1_760_000_000_000_000
ACCOUNT = {"id": "fa_1", "entity": "fund_account", "contact_id": "cont_1", "account_type": "vpa"}
CONTACT = {"id": "cont_1", "entity": "contact", "name": "Asha Paper Works Pvt. Ltd."}


def shown(account: object = ACCOUNT, contact: object = CONTACT) -> Script:
    """A bank that has one fund account and one contact."""

    async def answer(asked: Asked) -> bytes | None:
        body = account if asked.path.startswith("/v1/fund_accounts/") else contact
        return response(200, encode(body))

    return answer


@asynccontextmanager
async def contacts(
    script: Script, *, per_s: float = 50, take: Take | None = None
) -> AsyncIterator[tuple[Contacts, Loopback]]:
    async with loopback(script) as server:
        client = open_contacts(
            server.url + "/v1",
            key_id="key",
            key_secret="secret",
            per_s=per_s,
            take=take or OwnTurns(per_s, int(per_s)).take,
            now_us=lambda: NOW_US,
        )
        try:
            yield client, server
        finally:
            await client.aclose()


async def of(script: Script, fund_account: str = "fa_1") -> ContactSeen:
    async with contacts(script) as (client, _):
        return (await client.lookup([fund_account]))[fund_account]


async def test_a_fund_account_has_a_contact_and_that_has_a_name() -> None:
    async with contacts(shown()) as (client, server):
        found = await client.lookup(["fa_1", "fa_1"])
    fresh = NOW_US + FRESH_S * 1_000_000
    assert found == {"fa_1": ContactSeen(name=str(CONTACT["name"]), checked_at=NOW_US, fresh_until=fresh)}
    assert [(asked.method, asked.path) for asked in server.asked] == [
        ("GET", "/v1/fund_accounts/fa_1"),
        ("GET", "/v1/contacts/cont_1"),
    ]
    assert {asked.headers["authorization"] for asked in server.asked} == {"Basic a2V5OnNlY3JldA=="}


@pytest.mark.parametrize(
    "script",
    [
        *NO_ANSWERS,
        always(400, {"error": {"code": "BAD_REQUEST_ERROR", "description": "The id does not exist"}}),
        always(401),
        always(200, [ACCOUNT]),
        shown(account=ACCOUNT | {"id": "fa_2"}),
        shown(account=ACCOUNT | {"contact_id": None}),
        shown(account=ACCOUNT | {"contact_id": "../payouts"}),
        shown(contact=CONTACT | {"id": "cont_2"}),
        shown(contact=CONTACT | {"name": None}),
        shown(contact=CONTACT | {"name": ["Asha"]}),
        shown(contact=CONTACT | {"name": " ,. "}),
        shown(contact=CONTACT | {"name": "x" * (CONTACT_CHARS_MAX + 1)}),
        shown(contact=CONTACT | {"notes": "x" * 1_000_000}),
    ],
)
async def test_whatever_goes_wrong_there_is_a_problem_and_no_name_and_that_is_never_kept(
    script: Script,
) -> None:
    seen = await of(script)
    assert (seen.name, seen.checked_at, seen.fresh_until) == ("", NOW_US, NOW_US)
    assert seen.problem
    assert "secret" not in seen.problem


async def test_an_id_that_could_lead_elsewhere_is_not_asked_for() -> None:
    async with contacts(shown()) as (client, server):
        found = await client.lookup(["../payouts?x", ""])
    assert [seen.name for seen in found.values()] == ["", ""]
    assert server.asked == []


async def test_half_of_the_turns_are_left_to_calls_that_move_money() -> None:
    """Eight turns are free and none comes while this runs; each fund account takes two."""
    turns = OwnTurns(per_s=0.000_1, burst=8)
    async with contacts(shown(), per_s=8, take=turns.take) as (client, server):
        found = await client.lookup([f"fa_{n}" for n in range(1, 9)])
    assert len(server.asked) == 4
    assert {seen.problem for seen in found.values() if "turn" in seen.problem}
    assert [(await turns.take(within_s=0))[0] for _ in range(5)] == [True] * 4 + [False]


async def test_while_calls_that_move_money_take_each_turn_that_comes_nobody_is_asked() -> None:
    """A turn comes every eighth of a second, and none is ever left."""

    async def busy(*, within_s: float, beside: int = 0) -> tuple[bool, float]:
        wait_s = (1 + beside) / 8
        return (True, wait_s) if wait_s <= within_s else (False, wait_s - within_s)

    async with contacts(shown(), per_s=8, take=busy) as (client, server):
        found = await client.lookup(["fa_1", "fa_2"])
    assert server.asked == []
    assert ["turn" in seen.problem for seen in found.values()] == [True, True]


async def test_a_batch_waits_until_as_many_turns_are_free_as_are_left_to_others() -> None:
    refused: list[float] = []

    async def soon(*, within_s: float, beside: int = 0) -> tuple[bool, float]:
        refused.append(within_s)
        return (True, 0) if len(refused) > 3 else (False, 0.01)

    async with contacts(shown(), per_s=8, take=soon) as (client, _):
        assert (await client.lookup(["fa_1"]))["fa_1"].name == CONTACT["name"]
    assert len(refused) == 5


async def test_a_bank_that_does_not_answer_costs_a_batch_a_limited_time_and_then_the_breaker_opens() -> None:
    async with contacts(silent_for(TIMEOUT_S)) as (client, server):
        for n in range(FAILURES_MAX + 2):
            await client.lookup([f"fa_{n}"])
        assert client.breaker.state == "open"
    assert len(server.asked) == FAILURES_MAX


async def test_the_sandbox_answers_as_the_bank_does() -> None:
    async with running_sandbox() as bank:
        made = await bank.pay(250_000)
        client = open_contacts(
            bank.url,
            key_id=bank.config.key_id,
            key_secret=bank.config.key_secret,
            per_s=50,
            take=OwnTurns(50, 50).take,
        )
        try:
            found = await client.lookup([made["fund_account_id"], "fa_00000000000000"])
        finally:
            await client.aclose()
    known, unknown = found.values()
    assert (bool(known.name), known.problem) == (True, "")
    assert (unknown.name, unknown.problem) == ("", "the bank answered 400")
