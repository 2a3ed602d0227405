"""`/metrics` says whether a token is wrong or cannot be looked up, and no request makes up a label of it."""

import re

import httpx
import pytest
from prometheus_client import CollectorRegistry

from streamproc.api.metrics import Metrics, Timed
from streamproc.api.route_names import NO_ROUTE
from streamproc.app import opened_api
from streamproc.domain.tokens import Token
from streamproc.errors import LogUnavailable
from streamproc.settings import load
from streamproc.telemetry.exposure import Page
from streamproc.telemetry.metrics import Meters

OF_THE_API = "spt_" + "A" * 43


async def test_while_redis_is_away_a_token_of_the_api_is_not_called_wrong() -> None:
    async def away(_digest: str) -> Token | None:
        raise LogUnavailable("Redis is away: ConnectionError")

    async def page() -> Page:
        pytest.fail("nobody may see it")

    app = Metrics(page, secret="x" * 32, token=away, now_us=lambda: 0)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app=app), base_url="http://here") as http:
        answer = await http.get("/metrics", headers={"authorization": f"Bearer {OF_THE_API}"})
        assert (answer.status_code, answer.headers["retry-after"]) == (503, "5")
        assert "Redis is away" in answer.json()["detail"]
        guess = await http.get("/metrics", headers={"authorization": "Bearer guess"})
        assert guess.status_code == 401


@pytest.mark.parametrize(
    "made_up", ["evil", "evil/made/up", "v1", "payouts/v1", "%2f", "budget/history", "{agent}"]
)
async def test_whatever_a_caller_asks_for_is_counted_under_a_path_of_the_route_table(
    redis_url: str, made_up: str
) -> None:
    """Nobody needs a token for it, and each series costs memory for good."""
    meters = Meters(CollectorRegistry())
    env = {"REDIS_URL": redis_url, "RAZORPAY_WEBHOOK_SECRETS": "whsec", "SLACK_SIGNING_SECRET": "s"}
    async with opened_api(load({f"STREAMPROC_{name}": value for name, value in env.items()})) as app:
        transport = httpx.ASGITransport(app=Timed(app, meters))  # type: ignore[arg-type]
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as http:
            table = (await http.get("/openapi.json")).json()["paths"]
            for path in table:
                for method in ("GET", "POST", "BREW"):
                    await http.request(method, re.sub(r"\{\w+\}", made_up, path))
    counted = {
        sample.labels["route"]
        for family in meters.registry.collect()
        for sample in family.samples
        if sample.name == "streamproc_http_seconds_count"
    }
    assert {path for path in table if "{" not in path} <= counted <= {*table, NO_ROUTE}
