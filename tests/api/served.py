"""The API over the engine's Valkey, as tests ask it. Each answer is held against `/openapi.json`."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest

from streamproc.api.asgi import create_app
from streamproc.api.auth import AccessControl
from streamproc.api.console import console_operations
from streamproc.api.health import Check
from streamproc.app import operations_of
from streamproc.ingress.razorpay_webhook import RazorpayWebhook
from streamproc.ingress.refusals import Refusals
from streamproc.log.stream import Producer
from streamproc.operate import tokens
from streamproc.operate.gateway import SiteGateway
from streamproc.operate.site import Site
from tests.api.declared import held_against_its_document
from tests.engine import Engine
from tests.words import ACCOUNT, attributed

POLICIES = """
policies:
  bot: {daily_limit: 10_000_000}
  rival: {daily_limit: 10_000_000}
"""
BODY_BYTES_MAX = 4_000
ORDER = {"amount": 250_000, "mode": "IMPS", "purpose": "payout", "fund_account_id": "fa_00000000000001"}
PAYEE = {
    "account_type": "bank_account",
    "bank_account": {"name": "Some Body", "ifsc": "HDFC0000001", "account_number": "000011112222"},
    "contact": {"name": "Some Body", "type": "vendor", "email": "some.body@example.com"},
}


class Api:
    """The application over the engine's Valkey."""

    def __init__(self, http: httpx.AsyncClient, engine: Engine) -> None:
        self.http, self.engine = http, engine
        self.site = Site(engine.url, engine.client, 1)

    async def token(
        self,
        name: str,
        scope: str = "agent",
        agent: str = "bot",
        expires_s: int = 3600,
        *,
        account: str = ACCOUNT,
        reviewer: str = "",
    ) -> str:
        is_agent = scope == "agent"
        made = await tokens.create(
            self.site,
            tokens.TokenSpec(
                name=name, scope=scope, agent=agent if is_agent else "",  # type: ignore[arg-type]
                account=account if is_agent else "", expires_s=expires_s, reviewer=reviewer,
            ),
            attributed("test"),
        )  # fmt: skip
        return made.secret

    async def ask(
        self, token: str, order: Any = ORDER, *, key: str | None = "k", **more: Any
    ) -> httpx.Response:
        headers = {"authorization": f"Bearer {token}", **({} if key is None else {"idempotency-key": key})}
        return await self.http.post("/v1/payouts", json=order, headers=headers, **more)

    async def get(self, token: str, path: str) -> httpx.Response:
        return await self.http.get(f"/v1/payouts/{path}", headers={"authorization": f"Bearer {token}"})


def webhook_of(producer: Producer) -> RazorpayWebhook:
    return RazorpayWebhook(producer, ["whsec"], body_bytes_max=BODY_BYTES_MAX, fallback_account="acc")


async def ready() -> list[Check]:
    return []


@asynccontextmanager
async def serving(
    producer: Producer, gateway: Any, *, per_min: int = 0, account: str = ""
) -> AsyncIterator[httpx.AsyncClient]:
    async with Refusals(producer) as refusals, _served(producer, gateway, refusals, per_min, account) as http:
        yield http
    if isinstance(gateway, SiteGateway):
        await gateway.aclose()


@asynccontextmanager
async def _served(
    producer: Producer, gateway: Any, refusals: Refusals, per_min: int, account: str
) -> AsyncIterator[httpx.AsyncClient]:
    app = create_app(
        webhook_of(producer), body_bytes_max=BODY_BYTES_MAX, ready=ready,
        operations=[*operations_of(producer, gateway, account=account), *console_operations()],
        access=AccessControl(gateway, producer.now_us, refusals, per_min=per_min),
    )  # fmt: skip
    transport = httpx.ASGITransport(app=app)  # type: ignore[arg-type]
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as http:
        await held_against_its_document(http)
        yield http


@pytest.fixture
async def api(redis_url: str) -> AsyncIterator[Api]:
    async with Engine(redis_url) as engine:
        await engine.apply(POLICIES)
        async with serving(engine.producer, SiteGateway(redis_url, 1, None)) as http:
            yield Api(http, engine)


def problem(answer: httpx.Response) -> dict[str, Any]:
    assert answer.headers["content-type"] == "application/problem+json"
    body: dict[str, Any] = answer.json()
    assert body["status"] == answer.status_code
    return body
