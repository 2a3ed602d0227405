"""`/metrics` says whether a token is wrong or cannot be looked up: only the first is the caller's to mend."""

import httpx
import pytest

from streamproc.api.metrics import Metrics
from streamproc.domain.tokens import Token
from streamproc.errors import LogUnavailable
from streamproc.telemetry.exposure import Page

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
