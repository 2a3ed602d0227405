"""Who asks: refusals of known tokens are in the log, of unknown ones not; a rate; pages of other sites."""

import asyncio
import json
import logging
from collections.abc import AsyncIterator
from contextlib import aclosing

import httpx
import pytest

from streamproc.api import routing
from streamproc.api.asgi import create_app
from streamproc.app import operations_of
from streamproc.domain.events import AccessRefused
from streamproc.domain.tokens import Token
from streamproc.errors import InputError, LogUnavailable
from streamproc.ingress.body import BODY_READ_S_MAX
from streamproc.ingress.refusals import Refusals
from streamproc.operate import tokens
from streamproc.operate.gateway import SiteGateway
from tests.api.served import ORDER, POLICIES, Api, api, problem, ready, serving, webhook_of
from tests.deadline import DEADLINE_S
from tests.engine import Engine
from tests.words import ACCOUNT, attributed

__all__ = ["api"]


async def refused(engine: Engine, count: int) -> list[AccessRefused]:
    async with asyncio.timeout(DEADLINE_S):
        while True:
            found = [e for entry in await engine.entries() for e in entry if isinstance(e, AccessRefused)]
            if len(found) >= count:
                return found
            await asyncio.sleep(0.01)


async def test_who_is_refused_by_name_is_in_the_log_and_a_made_up_token_writes_nothing(
    api: Api, caplog: pytest.LogCaptureFixture
) -> None:
    viewer, agent = await api.token("v", "viewer"), await api.token("a")
    expired = await api.token("old", "viewer", expires_s=0)
    assert await tokens.revoke(api.site, "a", attributed("test"))
    with caplog.at_level(logging.WARNING):
        assert (await api.get("spt_" + "x" * 43, "pout_9")).status_code == 401
    assert "requests with a token that nobody knows: 1" in caplog.text
    assert (await api.ask(viewer)).status_code == 403
    assert (await api.get(agent, "pout_1")).status_code == 401
    assert (await api.get(expired, "pout_2")).status_code == 401
    found = {(e.subject, e.what, e.problem, e.payout_named) for e in await refused(api.engine, 3)}
    assert found == {
        ("v", "POST /v1/payouts", "scope viewer does not allow it", ""),
        ("a", "GET /v1/payouts/{payout}", "revoked token", "pout_1"),
        ("old", "GET /v1/payouts/{payout}", "expired token", "pout_2"),
    }


async def test_only_a_request_with_a_token_that_nobody_knows_is_counted_as_one(
    api: Api, caplog: pytest.LogCaptureFixture
) -> None:
    known = await api.token("v", "viewer")
    with caplog.at_level(logging.WARNING):
        assert (await api.get(known, "pout_1")).status_code == 404
        assert (await api.http.get("/v1/payouts/pout_1")).status_code == 401
        assert "nobody knows" not in caplog.text
        for unknown in ("Bearer x", "Basic dTpw"):
            assert (
                await api.http.get("/v1/payouts/pout_1", headers={"authorization": unknown})
            ).status_code == 401
    assert "requests with a token that nobody knows: 1" in caplog.text


async def test_a_token_that_asks_too_often_is_told_when_and_can_still_read_while_others_are_not_slowed(
    redis_url: str,
) -> None:
    async with Engine(redis_url) as engine:
        await engine.apply(POLICIES)
        async with serving(engine.producer, SiteGateway(redis_url, 1, None), per_min=3) as http:
            api = Api(http, engine)
            one, other = await api.token("one"), await api.token("other")
            answers = await asyncio.gather(*(api.ask(one, key=f"k{n}") for n in range(5)))
            assert sorted(answer.status_code for answer in answers) == [202, 202, 202, 429, 429]
            late = await api.ask(one, ORDER)
            assert "one may ask for something 3 times a minute" in problem(late)["detail"]
            assert 0 < int(late.headers["retry-after"]) <= 60
            looks = [(await api.get(one, "spi_x")).status_code for _ in range(31)]
            assert looks == [404] * 30 + [429]
            assert "one may read 30 times a minute" in problem(await api.get(one, "spi_x"))["detail"]
            assert (await api.ask(other, ORDER)).status_code == 202
            assert (await http.get("/healthz")).status_code == 200


async def test_a_token_that_is_revoked_while_the_body_is_held_back_opens_nothing(
    api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(routing, "TOKEN_GOOD_S", 0.0)
    secret = await api.token("a")

    async def held_back() -> AsyncIterator[bytes]:
        body = json.dumps(ORDER).encode()
        yield body[:5]
        assert await tokens.revoke(api.site, "a", attributed("test"))
        yield body[5:]

    headers = {
        "authorization": f"Bearer {secret}",
        "idempotency-key": "k",
        "content-type": "application/json",
    }
    answer = await api.http.post("/v1/payouts", content=held_back(), headers=headers)
    assert answer.status_code == 401
    [event] = await refused(api.engine, 1)
    assert (event.subject, event.problem) == ("a", "revoked token")


def test_a_look_at_a_token_is_good_for_less_time_than_a_body_may_take() -> None:
    assert routing.TOKEN_GOOD_S < BODY_READ_S_MAX


class AwayGateway(SiteGateway):
    """Its Redis is away."""

    async def token(self, digest: str) -> Token | None:
        raise LogUnavailable("Redis is away")


async def test_while_redis_is_away_anybody_can_ask_and_few_lines_are_logged(
    redis_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with (
        Engine(redis_url) as engine,
        serving(engine.producer, AwayGateway(redis_url, 1, None)) as http,
    ):
        made_up = {"authorization": f"Bearer spt_{'x' * 43}"}
        answers = [await http.get("/v1/payouts/spi_x", headers=made_up) for _ in range(5)]
    assert [(answer.status_code, answer.headers["retry-after"]) for answer in answers] == [(503, "5")] * 5
    assert "the log cannot be asked now" in problem(answers[0])["detail"]
    logged = [line for line in caplog.messages if "Redis is away" in line]
    assert logged == [
        "requests not answered, since their token could not be looked up: 1, the last: Redis is away"
    ]


class BusyGateway(SiteGateway):
    """Does not come to an answer until it may."""

    def __init__(self, redis_url: str) -> None:
        super().__init__(redis_url, 1, None)
        self.asked, self.may_answer = 0, asyncio.Event()

    async def token(self, digest: str) -> Token | None:
        self.asked += 1
        await self.may_answer.wait()
        return await super().token(digest)


async def test_where_too_many_ask_the_next_is_refused_at_once_and_those_in_hand_are_served(
    redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(routing, "IN_HAND_MAX", 2)
    async with Engine(redis_url) as engine:
        await engine.apply(POLICIES)
        gateway = BusyGateway(redis_url)
        async with serving(engine.producer, gateway) as http:
            api = Api(http, engine)
            token = await api.token("one")
            first = [asyncio.create_task(api.ask(token, key=f"k{n}")) for n in range(2)]
            while gateway.asked < 2:
                await asyncio.sleep(0.01)
            too_many = await api.ask(token, key="k3")
            assert too_many.status_code == 503
            assert problem(too_many)["detail"] == "2 requests are in hand, the limit is 2; ask again"
            assert too_many.headers["retry-after"] == "1"
            assert (await http.get("/healthz")).status_code == 200
            gateway.may_answer.set()
            assert [(await answer).status_code for answer in first] == [202, 202]
            assert (await api.ask(token, key="k3")).status_code == 202


async def test_a_token_of_a_reviewer_says_who_answers_by_it(api: Api) -> None:
    async def make(name: str, scope: str, reviewer: str) -> None:
        of = {"agent": "bot", "account": ACCOUNT} if scope == "agent" else {"agent": "", "account": ""}
        await tokens.create(
            api.site, tokens.TokenSpec(name=name, scope=scope, expires_s=60, reviewer=reviewer, **of),  # type: ignore[arg-type]
            attributed("test"),
        )  # fmt: skip

    await make("laptop", "approver", "asha")
    await make("phone", "admin", "asha")
    await make("vikram", "approver", "")
    shown = {token.name: tokens.token_json(token, what) for token, what in await tokens.listed(api.site)}
    assert {name: one["reviewer"] for name, one in shown.items()} == {
        "laptop": "asha", "phone": "asha", "vikram": "vikram",
    }  # fmt: skip
    for scope, reviewer in (
        ("viewer", "asha"),
        ("agent", "asha"),
        ("approver", "two words"),
        ("admin", "slack:U1"),
    ):
        with pytest.raises(InputError):
            await make("wrong", scope, reviewer)


@pytest.mark.parametrize("origins", [(), ("https://console.example.com",)])
async def test_pages_of_other_sites_may_call_only_where_a_setting_names_them(
    redis_url: str, origins: tuple[str, ...]
) -> None:
    async with Engine(redis_url) as engine, Refusals(engine.producer):
        app = create_app(webhook_of(engine.producer), body_bytes_max=100, ready=ready, cors_origins=origins)
        transport = httpx.ASGITransport(app=app)  # type: ignore[arg-type]
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as http:
            for origin in ("https://console.example.com", "https://evil.example", "null"):
                asked = {"origin": origin, "access-control-request-method": "GET"}
                plain = await http.get("/healthz", headers={"origin": origin})
                before = await http.options("/healthz", headers=asked)
                for answer in (plain, before):
                    allowed = answer.headers.get("access-control-allow-origin")
                    assert allowed == (origin if origin in origins else None)
                    assert "access-control-allow-credentials" not in answer.headers
                    assert "content-security-policy" in answer.headers


async def test_a_page_of_an_allowed_site_may_send_every_header_that_a_route_reads(redis_url: str) -> None:
    page = "https://console.example.com"
    async with Engine(redis_url) as engine, aclosing(SiteGateway(redis_url, 1, None)) as gateway:
        table = operations_of(engine.producer, gateway)
        app = create_app(
            webhook_of(engine.producer), body_bytes_max=100, ready=ready,
            operations=table, cors_origins=(page,),
        )  # fmt: skip
        read = {one.name for operation in table for one in operation.reads if one.where == "header"}
        assert read >= {"Idempotency-Key", "If-Match", "If-None-Match"}
        transport = httpx.ASGITransport(app=app)  # type: ignore[arg-type]
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as http:
            for header in (*sorted(read), "Authorization", "Content-Type"):
                asked = {
                    "origin": page,
                    "access-control-request-method": "PUT",
                    "access-control-request-headers": header,
                }
                answer = await http.options("/v1/policies/bot", headers=asked)
                assert answer.status_code == 200, f"{header}: {answer.text}"
