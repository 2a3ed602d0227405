"""/metrics of a running system: every process is on the page, and nobody reads it who may not."""

import re
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import pytest_asyncio

from streamproc.operate import tokens
from streamproc.operate.site import Site
from tests.databases import clean
from tests.journeys.conftest import POLICIES
from tests.journeys.system import ACCOUNT, System, running_system
from tests.journeys.truth import at_rest
from tests.telemetry.pages import Samples, samples, total
from tests.words import attributed

pytestmark = pytest.mark.asyncio(loop_scope="module")

SECRET = "metrics-token-of-the-test"


@asynccontextmanager
async def measured_system(redis_url: str, dsn: str) -> AsyncIterator[System]:
    """Every role, one worker, no poller."""
    async with running_system(redis_url, dsn, metrics_token=SECRET, metrics_agents="5") as running:
        await running.apply(POLICIES)
        yield running


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def system(valkey: str, postgres_server: str) -> AsyncIterator[System]:
    """For what does not depend on what was counted before. Only one test has payouts: it counts each."""
    async with clean(valkey, postgres_server) as dsn, measured_system(valkey, dsn) as running:
        yield running


async def scraped(system: System, token: str = SECRET) -> Samples:
    """The page as Prometheus gets it."""
    headers = {"authorization": f"Bearer {token}", "accept": "application/openmetrics-text; version=1.0.0"}
    answer = await system.api.get("/metrics", headers=headers)
    assert answer.status_code == 200, answer.text
    return samples(answer.text)


async def test_one_page_shows_what_every_process_did_and_what_the_stores_hold(system: System) -> None:
    paid = await system.bank.pay(250_000, notes={"agent_id": "bot"})
    refused = await system.bank.pay(500_001, notes={"agent_id": "small"})
    held = await system.bank.pay(800_000, notes={"agent_id": "careful"})
    for payout, state in ((paid, "processed"), (refused, "rejected"), (held, "held")):
        await system.reaches(payout["id"], state)
    await system.settled()
    await assert_the_page_shows_it_all(system)


@at_rest  # a process counts what it has done, so after it
async def assert_the_page_shows_it_all(system: System) -> None:
    found = await scraped(system)
    assert total(found, "streamproc_decisions_total", decision="APPROVED", reason="POLICY_OK") == 1
    assert total(found, "streamproc_decisions_total", process="worker-1", reason="TXN_LIMIT_EXCEEDED") == 1
    assert total(found, "streamproc_decided_paise_total", decision="HELD") == 800_000
    assert total(found, "streamproc_decision_seconds_count") == 3
    assert total(found, "streamproc_bank_told_seconds_count", command="approve", outcome="done") == 1
    assert total(found, "streamproc_settled_seconds_count", settlement="committed") == 1
    assert total(found, "streamproc_barrier_seconds_count", outcome="ok") == 1
    assert total(found, "streamproc_outbound_seconds_count", system="razorpay", outcome="2xx") >= 2
    # First looks took it, in one batch or in up to three, as their webhooks came; the bank's later words did not.
    assert 1 <= total(found, "streamproc_stage_seconds_count", stage="fast_path") <= 3
    assert total(found, "streamproc_stage_seconds_count", stage="screening") >= 1
    assert total(found, "streamproc_entries_total", group="governance", outcome="done") >= 3
    assert total(found, "streamproc_breaker_state", system="razorpay", state="closed") == 1
    assert total(found, "streamproc_appends_total", process="serve-1", producer="webhook", outcome="new") >= 3
    assert total(found, "streamproc_http_seconds_count", route="/webhooks/razorpay", status="200") >= 3
    length = total(found, "streamproc_log_entries", partition="0")
    assert total(found, "streamproc_archived_entries_total", process="projector-1") == length
    assert total(found, "streamproc_holds_open") == 1
    assert total(found, "streamproc_holds_open_paise") == 800_000
    assert total(found, "streamproc_holds_untold") == 1  # neither Slack nor ntfy is set
    assert 0 < total(found, "streamproc_holds_untold_oldest_seconds") < 3600
    assert total(found, "streamproc_group_up") == 3
    assert total(found, "streamproc_group_lag_entries") == 0
    assert total(found, "streamproc_views_behind_entries") == 0
    assert total(found, "streamproc_views_oldest_seconds") == 0
    assert 0 <= total(found, "streamproc_unsigned_oldest_seconds") < 600
    assert total(found, "streamproc_store_up") == 2
    assert found["streamproc_budget_used_ratio", (("scope", "agent:bot"), ("window", "day"))] == 0.0025
    assert {name: total(found, "streamproc_up", process=name) for name in ("serve-1", "worker-1", "projector-1")} == {
        "serve-1": 1, "worker-1": 1, "projector-1": 1,
    }  # fmt: skip
    assert total(found, "process_resident_memory_bytes", process="worker-1") > 0
    assert undocumented(found) == set()


def undocumented(found: Samples) -> set[str]:
    """Families of a page that docs/telemetry.md does not name, and families that it names and the page has not."""
    text = (Path(__file__).parents[2] / "docs" / "telemetry.md").read_text()
    told = set(re.findall(r"`(streamproc_[a-z_]+)`", "".join(re.findall(r"^\| `streamproc.*", text, re.M))))
    shown = {re.sub(r"_(bucket|sum|count)$", "", name) for name, _ in found if name.startswith("streamproc_")}
    # There was nothing to count of these: no hold ended, nobody was told, nothing was claimed, no poller runs.
    absent = {"streamproc_replay_entries_done", "streamproc_replay_entries_wanted"}
    absent |= {
        "streamproc_hold_seconds",
        "streamproc_taken_up_entries_total",
        "streamproc_notifications_total",
        "streamproc_polls_total",
    }
    return (shown ^ told) - absent


async def test_what_a_caller_makes_up_is_in_no_label(system: System) -> None:
    await system.api.get("/v1/payouts/pout_00000000000001")
    await system.api.get("/nowhere/at/all")
    await system.api.request("BREW", "/healthz")
    text = str(sorted(name for name in await scraped(system)))
    assert "/v1/payouts/{payout}" in text
    assert "pout_0000" not in text
    assert "nowhere" not in text
    assert "BREW" not in text


async def test_nobody_reads_the_page_without_a_token_that_may_read_everything(system: System) -> None:
    site = Site(system.redis_url, system.redis, 1)
    given = {
        scope: (
            await tokens.create(
                site,
                tokens.TokenSpec(
                    name=f"the-{scope}", scope=scope, agent="bot" if scope == "agent" else "",
                    account=ACCOUNT if scope == "agent" else "", expires_s=3600,
                ),
                attributed("test"),
            )
        ).secret
        for scope in ("agent", "viewer", "approver", "admin")
    }  # fmt: skip

    async def status(**headers: str) -> int:
        return (await system.api.get("/metrics", headers=headers)).status_code

    assert await status() == 401
    assert await status(authorization=SECRET) == 401
    assert await status(authorization=f"Basic {SECRET}") == 401
    assert await status(authorization=f"Bearer {SECRET}x") == 401
    assert await status(authorization="Bearer") == 401
    assert await status(authorization=f"Bearer {given['agent']}") == 401
    assert [await status(authorization=f"Bearer {given[s]}") for s in ("viewer", "approver", "admin")] == [
        200
    ] * 3
    assert (
        await system.api.post("/metrics", headers={"authorization": f"Bearer {SECRET}"})
    ).status_code == 405

    await system.cli("token", "revoke", "the-viewer")
    assert await status(authorization=f"Bearer {given['viewer']}") == 401


async def test_a_process_that_hangs_is_said_to_and_does_not_hide_the_others(system: System) -> None:
    worker = system.roles["worker-1"]
    worker.send_signal(signal.SIGSTOP)
    try:
        await assert_only_the_worker_is_down(system)
    finally:
        worker.send_signal(signal.SIGCONT)


@at_rest  # a busy machine makes others late too
async def assert_only_the_worker_is_down(system: System) -> None:
    found = await scraped(system)
    assert found.get(("streamproc_up", (("process", "worker-1"),))) == 0
    assert found.get(("streamproc_up", (("process", "projector-1"),))) == 1
