"""A hold that is approved after its policy was tightened is rejected, wherever the approval comes from."""

import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from typing import TypeAlias

import httpx
import pytest
from msgspec.structs import replace

from streamproc.clients.slack import open_slack
from streamproc.domain.button import button_value
from streamproc.domain.case import Reputation
from streamproc.ingress.refusals import Refusals
from streamproc.ingress.slack_review import SlackReview
from streamproc.operate.holds import answer
from streamproc.operate.slack_holds import SiteHolds
from tests.engine import Engine
from tests.operate.words import site_of
from tests.slack import SECRET, block_actions, form, headers
from tests.words import ACCOUNT, Vendors, attributed, observed

VENDOR = "https://vendor.example.com/"
LOOSE = "daily_limit: 10_000_000, require_approval_above: 100_000"
POLICIES = """
policies: {{bot: {{{fields}}}}}
reviewers: {{asha: {{slack: U0ASHA}}}}
"""
Approve: TypeAlias = Callable[[Engine], Awaitable[None]]


class Fleeting(Vendors):
    """Safe Browsing whose answers hold for no time, so that an approval is past their cache time."""

    async def __call__(self, urls: Sequence[str]) -> dict[str, Reputation]:
        """Every URL's reputation, already old."""
        answers = await super().__call__(urls)
        return {url: replace(answer, fresh_until=answer.checked_at) for url, answer in answers.items()}


async def by_slack(engine: Engine) -> None:
    async with slack_of(engine) as http:
        body = form(block_actions("U0ASHA", "hold.approve", button_value("pout_1", SECRET)))
        said = await http.post("/webhooks/slack", content=body, headers=headers(body, time.time()))
        assert said.status_code == 200
    await engine.settled()


async def by_command(engine: Engine) -> None:
    async with site_of(engine.url) as site:
        await answer(site, "pout_1", "approve", attributed("asha", "fine"))
    await engine.settled()


@asynccontextmanager
async def slack_of(engine: Engine) -> AsyncIterator[httpx.AsyncClient]:
    async with (
        Refusals(engine.producer) as refusals,
        open_slack("http://127.0.0.1:1/api", "xoxb-nobody") as modals,
    ):
        review = SlackReview(
            engine.producer, SiteHolds(engine.url, 1, None), modals, refusals, secret=SECRET,
            body_bytes_max=100_000,
        )  # fmt: skip
        transport = httpx.ASGITransport(app=review)  # type: ignore[arg-type]
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as http:
            yield http


async def lower_limit(engine: Engine) -> None:
    await engine.apply(POLICIES.format(fields=f"{LOOSE}, per_txn_limit: 199_999"))


async def block_domain(engine: Engine) -> None:
    await engine.apply(POLICIES.format(fields=f"{LOOSE}, blocked_domains: [example.com]"))


async def allow_others_only(engine: Engine) -> None:
    await engine.apply(POLICIES.format(fields=f"{LOOSE}, allowed_domains: [other.example.net]"))


async def freeze_by_policy(engine: Engine) -> None:
    await engine.apply(POLICIES.format(fields=f"{LOOSE}, frozen: true"))


async def freeze_agent(engine: Engine) -> None:
    await engine.freeze("agent:bot")


async def freeze_account(engine: Engine) -> None:
    await engine.freeze(f"account:{ACCOUNT}")


async def become_a_threat(engine: Engine) -> None:
    engine.vendors.verdicts["vendor"] = "threat"


@pytest.mark.parametrize("approve", [by_slack, by_command])
@pytest.mark.parametrize(
    ("tighten", "reason"),
    [
        (lower_limit, "TXN_LIMIT_EXCEEDED"),
        (block_domain, "DOMAIN_BLOCKED"),
        (allow_others_only, "DOMAIN_BLOCKED"),
        (freeze_by_policy, "FROZEN"),
        (freeze_agent, "FROZEN"),
        (freeze_account, "FROZEN"),
        (become_a_threat, "RISK_HIGH"),
    ],
)
async def test_an_approval_after_the_policy_was_tightened_is_a_rejection(
    redis_url: str, tighten: Approve, reason: str, approve: Approve
) -> None:
    async with Engine(redis_url, vendors=Fleeting()) as engine:
        await engine.apply(POLICIES.format(fields=LOOSE))
        await engine.deliver(observed("pout_1", 200_000, url=VENDOR))
        assert (await engine.record("pout_1")).state == "held"
        await tighten(engine)
        await approve(engine)
        record = await engine.record("pout_1")
    assert (record.decision, record.reason, record.reviews[0].by) == ("REJECTED", reason, "asha")
    assert record.reservation is not None
    assert record.reservation.state == "released"


@pytest.mark.parametrize("approve", [by_slack, by_command])
async def test_without_a_change_the_same_approval_approves(redis_url: str, approve: Approve) -> None:
    async with Engine(redis_url, vendors=Fleeting()) as engine:
        await engine.apply(POLICIES.format(fields=f"{LOOSE}, per_txn_limit: 200_000"))
        await engine.deliver(observed("pout_1", 200_000, url=VENDOR))
        await approve(engine)
        assert (await engine.record("pout_1")).decision == "APPROVED"
