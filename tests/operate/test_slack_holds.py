"""What Slack's webhook asks of the system: is the request new, which payout is it, would the answer count now."""

import asyncio
import time

import asyncpg
import httpx
import pytest

from streamproc.domain.events import ReviewSubmitted
from streamproc.errors import LogUnavailable, TryAgain
from streamproc.ingress.refusals import Refusals
from streamproc.ingress.slack_review import Hold
from streamproc.operate.slack_holds import SiteHolds, opened_slack_review
from streamproc.secret import Secret
from streamproc.settings import Settings
from tests.engine import Engine
from tests.operate.words import NOBODY_THERE, archive
from tests.slack import SECRET, form, headers
from tests.words import ACCOUNT, observed, reviewed

OTHER_SECRET = "of-another-installation"
BODY_BYTES_MAX = 4_096
POLICIES = """
policies: {bot: {daily_limit: 10_000_000, require_approval_above: 100_000}}
reviewers: {asha: {slack: U0ASHA}}
"""


def click(engine: Engine, user: str = "U0ASHA", payout: str = "pout_1") -> ReviewSubmitted:
    return reviewed(payout, f"slack:{user}", at=engine.producer.now_us(), why="", channel="slack")


async def held(engine: Engine) -> None:
    await engine.apply(POLICIES)
    await engine.deliver(observed("pout_1", 200_000))


@pytest.mark.parametrize(
    ("secret", "body", "status"),
    [
        ("", form("{}"), 503),  # it is not set, which is said
        (SECRET, form("{}"), 400),  # from Slack, though nothing that can be read
        (OTHER_SECRET, form("{}"), 401),
        (SECRET, form("x" * BODY_BYTES_MAX), 413),
    ],
)
async def test_the_webhook_is_of_this_installations_secret_and_limit(
    redis_url: str, secret: str, body: bytes, status: int
) -> None:
    settings = Settings(
        redis_url=redis_url, partitions=1, body_limit=BODY_BYTES_MAX, slack_base_url="http://127.0.0.1:1/api",
        slack_signing_secret=Secret(secret), slack_bot_token=Secret("xoxb-nobody"),
    )  # fmt: skip
    async with (
        Engine(redis_url) as engine,
        Refusals(engine.producer) as refusals,
        opened_slack_review(settings, None, refusals) as app,
    ):
        transport = httpx.ASGITransport(app=app)  # type: ignore[arg-type]
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as http:
            answer = await http.post("/webhooks/slack", content=body, headers=headers(body, time.time()))
    assert answer.status_code == status, answer.text


async def test_of_many_who_ask_at_one_moment_one_is_the_first(redis_url: str) -> None:
    processes = [SiteHolds(redis_url, 1, None) for _ in range(4)]
    asked = [process.first_time("k", 60) for process in processes for _ in range(10)]
    answers = await asyncio.gather(*asked)
    assert sorted(answers) == [False] * 39 + [True]
    assert await processes[0].first_time("another", 60)


async def test_a_key_is_forgotten_in_the_end(redis_url: str) -> None:
    async with Engine(redis_url) as engine:
        assert await SiteHolds(redis_url, 1, None).first_time("k", 60)
        [key] = await engine.client.keys("*once*")
        assert 0 < await engine.client.ttl(key) <= 60


async def test_a_hold_is_found_and_whether_an_answer_would_count_by_the_policies_of_now(
    redis_url: str,
) -> None:
    async with Engine(redis_url) as engine:
        await held(engine)
        holds = SiteHolds(redis_url, 1, None)
        assert await holds.find(click(engine)) == Hold(ACCOUNT, 200_000, "")
        stranger = await holds.find(click(engine, "U0EVE"))
        assert stranger is not None
        assert stranger.problem == "Slack user U0EVE is not in the list of reviewers"
        await engine.apply("reviewers: {asha: {slack: U0EVE}}")
        moved = await holds.find(click(engine, "U0EVE"))
        assert moved is not None
        assert moved.problem == ""
        assert await holds.find(click(engine, payout="pout_never")) is None


async def test_after_a_failover_the_same_revision_may_name_other_reviewers(redis_url: str) -> None:
    """The new server had lost a change, and another one got its number."""
    async with Engine(redis_url) as engine:
        await held(engine)
        holds = SiteHolds(redis_url, 1, None)
        assert await holds.find(click(engine)) == Hold(ACCOUNT, 200_000, "")
        rev = await engine.client.hget(engine.names.policy, "rev")
        await engine.apply("reviewers: {asha: {slack: U0EVE}}")
        await engine.client.hset(engine.names.policy, "rev", rev)
        gone = await holds.find(click(engine))
        assert gone is not None
        assert gone.problem == "Slack user U0ASHA is not in the list of reviewers"


async def test_a_payout_that_left_redis_is_found_in_the_archive_and_one_that_is_not_there_is_unknown(
    redis_url: str, postgres: str
) -> None:
    async with Engine(redis_url) as engine:
        await held(engine)
        await engine.review("pout_1", "asha", "approve", account=ACCOUNT)
        await archive(redis_url, postgres)
        await engine.client.delete(engine.names.payout("pout_1"))
        async with asyncpg.create_pool(postgres, min_size=0) as pool:
            holds = SiteHolds(redis_url, 1, pool)
            found = await holds.find(click(engine))
            assert await holds.find(click(engine, payout="pout_never")) is None
    assert found is not None
    assert found.account == ACCOUNT
    assert found.problem.startswith("already APPROVED by asha")


async def test_while_the_archive_is_away_an_unknown_payout_is_not_said_to_be_unknown(redis_url: str) -> None:
    async with Engine(redis_url) as engine:
        pool = await asyncpg.create_pool(NOBODY_THERE, min_size=0, timeout=1.0)
        with pytest.raises(TryAgain):
            await SiteHolds(redis_url, 1, pool).find(click(engine, payout="pout_old"))
        await pool.close()


async def test_while_redis_is_away_nothing_is_new(redis_url: str) -> None:
    with pytest.raises(LogUnavailable):
        await SiteHolds("redis://127.0.0.1:1/0", 1, None).first_time("k", 60)
