"""Agents over HTTP: what is taken, what is refused and why, and who may see what."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from streamproc.api.payouts import KEY_USED, NO_REQUEST
from streamproc.archive.pool import opened_pool
from streamproc.domain.events import PayoutRequested
from streamproc.domain.payouts import PayoutRecord
from streamproc.log.names import META
from streamproc.log.restore import mark_recovered, mark_recovering
from streamproc.log.scripts import SEEN_TTL_S
from streamproc.log.stream import BEGUN
from streamproc.operate import gateway, tokens
from streamproc.operate.gateway import SiteGateway
from tests.api.served import BODY_BYTES_MAX, ORDER, PAYEE, Api, api, problem, serving
from tests.bank import free_port
from tests.engine import Engine
from tests.words import ACCOUNT, attributed, observed

__all__ = ["api"]


async def requests_in(engine: Engine) -> list[PayoutRequested]:
    return [
        event for entry in await engine.entries() for event in entry if isinstance(event, PayoutRequested)
    ]


async def test_a_request_is_taken_under_its_own_id_and_decided(api: Api) -> None:
    token = await api.token("t")
    answer = await api.ask(token, {**ORDER, "vendor_url": "https://vendor.example.com/"})
    assert answer.status_code == 202
    shown = answer.json()
    assert (shown["agent"], shown["identity"], shown["amount"]) == ("bot", "verified", 250_000)
    assert answer.headers["location"] == f"/v1/payouts/{shown['payout']}"
    await api.engine.settled()
    later = (await api.get(token, shown["payout"])).json()
    assert (later["decision"], later["reason"]) == ("APPROVED", "POLICY_OK")
    assert later["bank_payout"] is None


async def test_another_currency_is_refused_by_the_policy_and_so_is_in_the_log(api: Api) -> None:
    token = await api.token("t")
    payout = (await api.ask(token, {**ORDER, "currency": "USD"})).json()["payout"]
    await api.engine.settled()
    later = (await api.get(token, payout)).json()
    assert (later["decision"], later["reason"], later["currency"]) == (
        "REJECTED",
        "CURRENCY_NOT_ALLOWED",
        "USD",
    )
    [asked] = await requests_in(api.engine)
    assert asked.currency == "USD"


async def test_the_same_key_and_body_is_the_same_payout_for_good_and_another_body_is_refused(
    api: Api,
) -> None:
    token = await api.token("t")
    answers = await asyncio.gather(*(api.ask(token) for _ in range(4)))
    assert {answer.status_code for answer in answers} == {202}
    assert len({answer.json()["payout"] for answer in answers}) == 1
    refused = await api.ask(token, {**ORDER, "amount": 250_001})  # not handled yet, perhaps
    await api.engine.settled()
    spaced = dict(reversed(ORDER.items()))
    again, other = await api.ask(token, spaced), await api.ask(token, {**ORDER, "amount": 250_001})
    assert (again.status_code, again.json()["decision"]) == (202, "APPROVED")
    assert {(one["status"], one["type"]) for one in map(problem, (refused, other))} == {(409, KEY_USED)}
    assert len(await requests_in(api.engine)) == 1


async def test_keys_belong_to_the_tokens_agent_and_not_to_the_token(api: Api) -> None:
    one, two, rival = await api.token("a"), await api.token("b"), await api.token("c", agent="rival")
    payouts = [(await api.ask(token)).json()["payout"] for token in (one, two, rival)]
    assert payouts[0] == payouts[1] != payouts[2]


async def test_an_agents_token_sees_its_own_payouts_and_others_see_all(api: Api) -> None:
    mine, rival = await api.token("a"), await api.token("b", agent="rival")
    payout = (await api.ask(mine)).json()["payout"]
    await api.engine.deliver(observed("pout_1", agent="somebody"))
    for path in (payout, f"{payout}/events"):
        assert (await api.get(mine, path)).status_code == 200
        assert problem(await api.get(rival, path)) == problem(
            await api.get(rival, path.replace(payout, "spi_no"))
        )
    assert (await api.get(mine, "pout_1")).status_code == 404
    for scope in ("viewer", "approver", "admin"):
        token = await api.token(scope, scope)
        assert (await api.get(token, payout)).status_code == 200
        assert (await api.get(token, "pout_1")).json()["agent"] == "somebody"
        assert problem(await api.ask(token))["status"] == 403


async def test_a_token_that_is_unknown_revoked_or_expired_opens_nothing(api: Api) -> None:
    good, expired = await api.token("good"), await api.token("expired", expires_s=0)
    assert (await api.ask(good)).status_code == 202
    assert await tokens.revoke(api.site, "good", attributed("test"))
    assert not await tokens.revoke(api.site, "good", attributed("test"))
    for wrong in (good, expired, good + "x", "", "spt_"):
        answer = await api.ask(wrong, key="other")
        assert (answer.status_code, answer.headers["www-authenticate"]) == (401, "Bearer"), wrong
    assert (await api.http.get("/v1/payouts/x", headers={"authorization": "Basic eDp5"})).status_code == 401


async def test_neither_log_nor_redis_holds_a_token(api: Api) -> None:
    secret = await api.token("t")
    dumped = str(await api.engine.client.hgetall(api.engine.names.tokens)) + str(await api.engine.entries())
    assert secret not in dumped
    assert secret.removeprefix("spt_") not in dumped


async def test_every_wrong_field_is_named_at_once_and_no_value_is_repeated(api: Api) -> None:
    token = await api.token("t")
    wrong = {
        **ORDER, "amount": 99.5, "mode": "UPI", "narration": "inv/7", "refernce": 1,
        "fund_account": {**PAYEE, "bank_account": {**PAYEE["bank_account"], "ifsc": "12345"}},  # type: ignore[dict-item]
    }  # fmt: skip
    del wrong["fund_account_id"]
    answer = await api.ask(token, wrong)
    fields = {error["field"] for error in problem(answer)["errors"]}
    assert answer.status_code == 422
    assert fields == {
        "amount", "narration", "refernce", "fund_account.account_type", "fund_account.bank_account.ifsc",
    }  # fmt: skip
    for personal in ("000011112222", "Some Body", "some.body@example.com", "12345"):
        assert personal not in answer.text
    assert await requests_in(api.engine) == []


@pytest.mark.parametrize(
    ("more", "key", "status"),
    [
        ({"content": b"{}", "headers": {"content-type": "text/plain"}}, "k", 415),
        ({"content": b"{", "headers": {"content-type": "application/json"}}, "k", 400),
        ({"content": b"[]", "headers": {"content-type": "application/json"}}, "k", 400),
        (
            {"content": b'{"amount":' + b"9" * 3_900 + b"}", "headers": {"content-type": "application/json"}},
            "k",
            422,
        ),
        ({"content": b" " * (BODY_BYTES_MAX + 1), "headers": {"content-type": "application/json"}}, "k", 413),
        ({"content": b'{"\\ud800":1}', "headers": {"content-type": "application/json"}}, "k", 422),
        (
            {"content": b'{"notes":{"\\ud800":"x"}}', "headers": {"content-type": "application/json"}},
            "k",
            422,
        ),
        (
            {"content": b'{"amount":100,"amount":20000}', "headers": {"content-type": "application/json"}},
            "k",
            400,
        ),
        ({"json": ORDER}, None, 422),
        ({"json": ORDER}, "two words", 422),
        ({"json": ORDER}, "k" * 129, 422),
    ],
)
async def test_what_is_no_request_is_refused_by_name(
    api: Api, more: dict[str, Any], key: str | None, status: int
) -> None:
    token = await api.token("t")
    headers = {"authorization": f"Bearer {token}", **more.pop("headers", {})}
    headers |= {} if key is None else {"idempotency-key": key}
    answer = await api.http.post("/v1/payouts", headers=headers, **more)
    assert problem(answer)["status"] == status
    assert await requests_in(api.engine) == []


async def test_the_beneficiary_is_masked_wherever_it_is_shown(api: Api) -> None:
    token = await api.token("t")
    order = {**ORDER, "fund_account": PAYEE}
    del order["fund_account_id"]
    answer = await api.ask(token, order)
    events = await api.get(token, f"{answer.json()['payout']}/events")
    [asked] = await requests_in(api.engine)
    assert asked.intent.beneficiary is not None
    assert asked.intent.beneficiary.account_number == "000011112222"  # the bank needs it
    for text in (answer.text, events.text):
        for personal in ("000011112222", "Some Body", "some.body"):
            assert personal not in text
    assert "2222" in events.text


@pytest.mark.parametrize(
    ("order", "secret"),
    [
        (
            {"vendor_url": "https://vendor.example/", "fund_account_id": "fa_00000000000009"},
            "fa_00000000000001",
        ),
        ({"vendor_url": "https://other.example/"}, "vendor.example"),
    ],
    ids=["where the vendor is paid", "who is paid there"],
)
async def test_an_agent_does_not_learn_from_evidence_whom_other_agents_pay_and_where(
    api: Api, order: dict[str, Any], secret: str
) -> None:
    await api.engine.apply("policies: {rival: {changed_beneficiary: hold}}")
    await api.ask(await api.token("a"), {**ORDER, "vendor_url": "https://vendor.example/"})
    await api.engine.settled()
    rival, viewer = await api.token("b", agent="rival"), await api.token("v", "viewer")
    payout = (await api.ask(rival, {**ORDER, **order})).json()["payout"]
    await api.engine.settled()
    shown = (await api.get(rival, payout)).json()
    assert shown["reasons"] == ["BENEFICIARY_CHANGED"]
    for path in (payout, f"{payout}/events"):
        assert secret not in (await api.get(rival, path)).text
        assert secret in (await api.get(viewer, path)).text
    assert secret not in json.dumps((await api.ask(rival, {**ORDER, **order})).json()["findings"])


@pytest.mark.parametrize("amount", [100, 900_000], ids=["that is approved", "that has no room"])
async def test_an_agent_does_not_learn_from_a_vendors_window_how_much_other_agents_pay_there(
    api: Api, amount: int
) -> None:
    limited = "{vendor_daily_limit: 1_000_000}"
    await api.engine.apply(f"policies: {{bot: {limited}, rival: {limited}}}")
    vendor = {"vendor_url": "https://vendor.example/"}
    await api.ask(await api.token("a"), {**ORDER, **vendor, "amount": 777_700})
    await api.engine.settled()
    rival, viewer = await api.token("b", agent="rival"), await api.token("v", "viewer")
    order = {**ORDER, **vendor, "amount": amount}
    payout = (await api.ask(rival, order)).json()["payout"]
    await api.engine.settled()
    shown = (await api.get(rival, payout)).json()
    assert shown["decision"] == ("APPROVED" if amount == 100 else "REJECTED")
    assert [one["evidence"].get("limit") for one in shown["findings"]] == (
        [] if amount == 100 else [1_000_000]
    )
    for path in (payout, f"{payout}/events"):
        assert "777700" not in (await api.get(rival, path)).text
        assert "777700" in (await api.get(viewer, path)).text
    assert "777700" not in (await api.ask(rival, order)).text


async def test_of_a_story_with_too_many_entries_the_first_are_shown_and_that_there_are_more(
    api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An agent with the bank's keys could make its story so long that showing it stops the bank's webhooks."""
    monkeypatch.setattr(gateway, "STORY_ENTRIES_MAX", 2)
    await api.engine.deliver(observed("pout_1", agent="bot"))
    for status in ("processing", "processed"):
        await api.engine.deliver(observed("pout_1", agent="bot", status=status))
    shown = (await api.get(await api.token("v", "viewer"), "pout_1/events")).json()
    assert len({event["id"].rpartition(":")[0] for event in shown["items"]}) == 2
    assert shown["notes"][-1] == "it has more than 2 entries: what the later ones tell is missing here"


async def test_a_reference_that_the_bank_shows_without_a_request_is_no_ones_key(api: Api) -> None:
    token = await api.token("t")
    payout = (await api.ask(token)).json()["payout"]
    await api.engine.stop()
    await api.engine.client.delete(api.engine.names.payout(payout), api.engine.names.seen(f"in:{payout}"))
    stub = PayoutRecord(payout=payout, account=ACCOUNT, received_at=1)
    from streamproc.domain.payouts import encode_record

    await api.engine.client.hset(api.engine.names.payout(payout), "s", encode_record(stub))
    refused = problem(await api.ask(token))
    assert (refused["status"], refused["type"]) == (409, NO_REQUEST)
    assert "A person must look at it" in refused["detail"]


async def test_while_the_log_is_away_every_answer_is_503_with_a_time_to_ask_again(redis_url: str) -> None:
    async with Engine(redis_url) as engine:
        dead = SiteGateway(f"redis://127.0.0.1:{free_port()}/0", 1, None)
        async with serving(engine.producer, dead) as http:
            api = Api(http, engine)
            token = "spt_" + "x" * 43
            for answer in (await api.ask(token), await api.get(token, "spi_x")):
                assert problem(answer)["status"] == 503
                assert int(answer.headers["retry-after"]) > 0


@asynccontextmanager
async def without_postgres(redis_url: str, *, has_archive: bool = True) -> AsyncIterator[Api]:
    """The API while Postgres is away, or where none is configured."""
    async with (
        Engine(redis_url) as engine,
        opened_pool("postgresql://nobody@127.0.0.1:1/none") as pool,
        serving(engine.producer, SiteGateway(redis_url, 1, pool if has_archive else None)) as http,
    ):
        yield Api(http, engine)


async def test_while_postgres_is_away_a_young_log_takes_new_requests_and_knows_its_own(
    redis_url: str,
) -> None:
    async with without_postgres(redis_url) as api:
        token = await api.token("t")
        first, again = await api.ask(token), await api.ask(token)
        assert (first.status_code, again.status_code) == (202, 202)
        assert first.json()["payout"] == again.json()["payout"]
        await api.engine.settled()
        # It has ended, long ago.
        await api.engine.client.delete(api.engine.names.payout(first.json()["payout"]))
        assert (await api.ask(token, {**ORDER, "amount": 250_001})).status_code == 409
        assert len(await requests_in(api.engine)) == 1


@pytest.mark.parametrize("has_archive", [True, False], ids=["it is away", "there is none"])
@pytest.mark.parametrize(
    "log", ["too old", "of unknown age", "cut", "rebuilt", "of tomorrow", "of a clock that was ahead"]
)
async def test_a_key_that_only_the_archive_could_know_is_not_taken_for_a_new_one(
    redis_url: str, log: str, has_archive: bool
) -> None:
    async with without_postgres(redis_url, has_archive=has_archive) as api:
        token, client = await api.token("t"), api.engine.client
        match log:
            case "too old":
                await client.hset(META, BEGUN, str((await client.time())[0] - SEEN_TTL_S))
            case "of tomorrow":
                await client.hset(META, BEGUN, str((await client.time())[0] + 86_400))
            case "of a clock that was ahead":
                ahead_ms = ((await client.time())[0] + SEEN_TTL_S) * 1_000
                await client.xadd(api.engine.names.log, {"e": "[]", "m": "{}"}, id=f"{ahead_ms}-0")
            case "of unknown age":
                await client.hdel(META, BEGUN)
            case "cut":
                await client.xadd(api.engine.names.log, {"e": "[]", "m": "{}"})
                await client.xtrim(api.engine.names.log, maxlen=1, approximate=False)
            case "rebuilt":
                await mark_recovering(client, 1, 1)
                await mark_recovered(client, [0], 1)
        before = len(await requests_in(api.engine))
        answer = await api.ask(token)
        assert (answer.status_code, "retry-after" in answer.headers) == (503, True)
        assert len(await requests_in(api.engine)) == before


async def test_while_the_log_is_lost_nobodys_token_is_called_unknown(api: Api) -> None:
    """An agent takes 401 for an end; what is lost comes back by `recover`."""
    token = await api.token("t")
    await api.engine.stop()
    await api.engine.client.flushdb()
    answer = await api.get(token, "spi_00000000000000000000000000")
    assert (answer.status_code, "retry-after" in answer.headers) == (503, True)
