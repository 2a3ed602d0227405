"""Who may do what: every operation of `/openapi.json`, asked by everybody, about what is theirs and what is another's.

A new operation has no line in EXPECTED, and then this fails: whoever adds a route says here who may use it.
"""

from collections.abc import AsyncIterator
from typing import Any, NamedTuple

import httpx
import pytest

from streamproc.app import opened_api
from streamproc.domain.tokens import ALLOWED
from streamproc.operate import tokens
from streamproc.settings import load
from tests.api.served import ORDER, Api
from tests.engine import Engine
from tests.words import NOW, attributed, observed

POLICIES = """
defaults: {rate_limit: {count: 0, window: 60}}
policies:
  bot: {daily_limit: 1_000_000_000, require_approval_above: 500_000}
  rival: {daily_limit: 1_000_000_000, require_approval_above: 500_000}
reviewers: [approver, admin]
"""


class Line(NamedTuple):
    """The statuses: of an agent about its own and about another's, of a viewer, an approver and an admin."""

    own: int
    foreign: int
    viewer: int
    approver: int
    admin: int
    body: Any = None
    headers: dict[str, str] = {}  # noqa: RUF012  # a NamedTuple's default, never changed


AS_IT_IS = {"daily_limit": 1_000_000_000, "require_approval_above": 500_000}
EXPECTED = {
    "requestPayout": Line(202, 202, 403, 403, 403, ORDER, {"idempotency-key": "k"}),
    "showPayout": Line(200, 404, 200, 200, 200),
    "listPayoutEvents": Line(200, 404, 200, 200, 200),
    "listHolds": Line(200, 200, 200, 200, 200),
    "approveHold": Line(403, 403, 403, 200, 200, {"reason": "seen"}),
    "rejectHold": Line(403, 403, 403, 200, 200, {"reason": "seen"}),
    "showPolicy": Line(200, 404, 200, 200, 200),
    "listPolicyChanges": Line(200, 404, 200, 200, 200),
    "showBudget": Line(200, 404, 200, 200, 200),
    "replacePolicy": Line(403, 403, 403, 403, 200, AS_IT_IS),
    "changePolicy": Line(403, 403, 403, 403, 200, AS_IT_IS),
    "listProposals": Line(403, 403, 200, 200, 200),
    "confirmProposal": Line(403, 403, 403, 403, 404),
    "withdrawProposal": Line(403, 403, 403, 403, 404),
    "listFreezes": Line(403, 403, 200, 200, 200),
    "freeze": Line(403, 403, 403, 403, 200, {"why": "a drill"}),
    "unfreeze": Line(403, 403, 403, 403, 200),
    "showMetrics": Line(401, 401, 200, 200, 200),  # its own refusal, since its own token is none of the API's
    "listAudit": Line(403, 403, 503, 503, 503),  # there is no Postgres here
}
"""By operationId. What a foreign agent may ask for is its own: 202 and 200 there show nothing of another's."""
OPEN = {
    "isAlive": 200, "isReady": 200, "showOpenapi": 200, "deliverWebhook": 401, "deliverClick": 401,
    "findConsole": 308, "showConsoleHtml": 200, "showConsoleJs": 200, "showConsoleCss": 200,
}  # fmt: skip
"""What needs no token, and what it says to anybody; webhooks have their signatures instead."""
WRITES_OF_AGENTS = {"requestPayout"}


class Operation(NamedTuple):
    method: str
    path: str
    described: dict[str, Any]

    @property
    def name(self) -> str:
        name: str = self.described["operationId"]
        return name

    @property
    def needs_token(self) -> bool:
        return self.described["security"] != []


async def operations(http: httpx.AsyncClient) -> list[Operation]:
    paths = (await http.get("/openapi.json")).json()["paths"]
    return [
        Operation(method.upper(), path, described)
        for path, there in paths.items()
        for method, described in there.items()
    ]


class Asking:
    """Asks each operation about a payout that waits for a person, a new one each time."""

    def __init__(self, api: Api) -> None:
        self.api = api
        self._made = 0

    async def held(self, agent: str) -> str:
        self._made += 1
        payout = f"pout_{self._made:03}"
        await self.api.engine.deliver(observed(payout, 600_000, agent=agent, at=NOW + self._made))
        return payout

    async def __call__(self, asked: Operation, secret: str, *, of: str = "bot") -> int:
        line = EXPECTED.get(asked.name)
        path = asked.path
        if "{payout}" in path:
            path = path.replace("{payout}", await self.held(of))
        for name, value in {"agent": of, "scope": "team:nobody", "proposal": "prop_" + "0" * 16}.items():
            path = path.replace(f"{{{name}}}", value)
        path += "?why=over" if asked.name == "unfreeze" else ""
        assert "{" not in path, f"say what stands for the parameters of {path}"
        headers = dict(line.headers) if line else {}
        if secret:
            headers["authorization"] = f"Bearer {secret}"
        body = line.body if line else None
        sent = {} if body is None else {"json": body}
        answer = await self.api.http.request(asked.method, path, headers=headers, **sent)
        assert str(answer.status_code) in asked.described["responses"], (asked.name, answer.text)
        return answer.status_code


@pytest.fixture
async def api(redis_url: str) -> AsyncIterator[Api]:
    async with Engine(redis_url) as engine:
        await engine.apply(POLICIES)
        env = {"REDIS_URL": redis_url, "RAZORPAY_WEBHOOK_SECRETS": "whsec", "SLACK_SIGNING_SECRET": "s"}
        async with opened_api(load({f"STREAMPROC_{name}": value for name, value in env.items()})) as app:
            transport = httpx.ASGITransport(app=app)  # type: ignore[arg-type]
            async with httpx.AsyncClient(transport=transport, base_url="http://test") as http:
                yield Api(http, engine)


async def test_every_operation_has_its_line_and_no_line_is_of_none(api: Api) -> None:
    there = await operations(api.http)
    assert {one.name for one in there if one.needs_token} == set(EXPECTED)
    assert {one.name for one in there if not one.needs_token} == set(OPEN)


async def test_everybody_may_do_what_the_table_says_and_nothing_else(api: Api) -> None:
    secrets = {
        "own": await api.token("own"),
        "foreign": await api.token("foreign", agent="rival"),
        **{scope: await api.token(scope, scope) for scope in ("viewer", "approver", "admin")},
    }
    ask, wrong = Asking(api), []
    for asked in await operations(api.http):
        for who, secret in secrets.items():
            expected = getattr(EXPECTED[asked.name], who) if asked.needs_token else OPEN[asked.name]
            said = await ask(asked, secret)
            if said != expected:
                wrong.append((asked.name, who, said, expected))
    assert wrong == []


async def test_without_a_good_token_everything_that_needs_one_is_401(api: Api) -> None:
    revoked = [await api.token(f"revoked-{scope}", scope) for scope in ALLOWED]
    expired = [await api.token(f"expired-{scope}", scope, expires_s=0) for scope in ALLOWED]
    for scope in ALLOWED:
        assert await tokens.revoke(api.site, f"revoked-{scope}", attributed("test"))
    before = len(await api.engine.client.xrange(api.engine.names.log))
    ask = Asking(api)
    for asked in await operations(api.http):
        for secret in ("", "spt_" + "x" * 43, *revoked, *expired):
            expected = 401 if asked.needs_token else OPEN[asked.name]
            assert await ask(asked, secret) == expected, asked.name
    written = await api.engine.entries()
    kinds = {type(event).__name__ for entry in written[before:] for event in entry}
    assert not kinds & {"PayoutRequested", "ReviewSubmitted", "PolicyChanged"}


async def test_an_agents_token_writes_nothing_but_requests_for_payouts_by_any_route(api: Api) -> None:
    """By what the table says, so that no new route can be forgotten in the one above."""
    writes = [one for one in await operations(api.http) if one.method != "GET" and one.needs_token]
    for one in writes:
        if one.name not in WRITES_OF_AGENTS:
            assert one.described["x-action"] not in ALLOWED["agent"], one.name
    ask, agent = Asking(api), await api.token("a")
    for one in writes:
        if one.name not in WRITES_OF_AGENTS:
            assert await ask(one, agent) == 403, one.name
