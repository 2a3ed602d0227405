"""Every panel of every dashboard, and every rule, asked of a run of the whole system: none is empty.

Prometheus itself is asked where it is installed. Without it, metrics and labels are compared with the page that it
would read.
"""

import asyncio
import json
import re
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import pytest
import pytest_asyncio
import yaml

from streamproc.operate.builders import JobProgress, OnProgress
from streamproc.operate.measured import replay_with_metrics
from tests.bank import free_port, until
from tests.databases import clean
from tests.journeys.system import System
from tests.journeys.test_metrics import SECRET, scraped
from tests.journeys.test_people import told_system
from tests.signals import killed
from tests.telemetry.pages import Samples

pytestmark = pytest.mark.asyncio(loop_scope="module")

ROOT = Path(__file__).parents[2]
PROMETHEUS = shutil.which("prometheus")
RULES = [ROOT / "ops" / "prometheus" / name for name in ("rules.yml", "alerts.yml")]
DASHBOARDS = sorted((ROOT / "ops" / "grafana" / "dashboards").glob("*.json"))
POLICIES = """
defaults: {rate_limit: {count: 0, window: 60s}}
policies:
  bot: {daily_limit: 10_000_000, per_txn_limit: 500_000}
  buyer: {daily_limit: 10_000_000, require_approval_above: 100_000, hold_ttl: 1h}
reviewers: {asha: {slack: U0ASHA}}
"""
EVERYTHING_MAX_S = 150.0
"""For two or three rounds in which everything happens, on a busy machine."""
OF_PROMETHEUS = {"job", "instance"}


class Query(NamedTuple):
    """One query of a panel, with the legend that names its series."""

    dashboard: str
    panel: str
    expression: str
    legend: str


def queries() -> list[Query]:
    """All that are asked of Prometheus."""
    found = []
    for path in DASHBOARDS:
        for panel in json.loads(path.read_text())["panels"]:
            for target in panel["targets"]:
                if target["datasource"]["type"] == "prometheus":
                    found.append(Query(path.stem, panel["title"], target["expr"], target["legendFormat"]))
    assert len(found) > 40
    return found


# ---- a run in which everything happens ----


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def system(valkey: str, postgres_server: str) -> AsyncIterator[System]:
    async with (
        clean(valkey, postgres_server) as dsn,
        told_system(valkey, dsn, metrics_token=SECRET, metrics_agents="5") as running,
    ):
        await running.apply(POLICIES)
        await running.start("poller")
        async with a_replay(running):
            yield running


@asynccontextmanager
async def a_replay(system: System) -> AsyncIterator[None]:
    """A replay that is half done and stays so, seen as the command makes one seen."""
    over = asyncio.Event()

    async def job(hear: OnProgress) -> Any:
        hear(JobProgress(total=10, done=5))
        await over.wait()

    data_dir = Path(system.env["STREAMPROC_DATA_DIR"])
    replaying = asyncio.create_task(replay_with_metrics(data_dir, job, lambda _: None))
    try:
        yield
    finally:
        over.set()
        await replaying


async def everything_happens(system: System) -> None:
    """A payout is paid at the second try, one is refused, one is held, told of, approved and paid, and one waits."""
    await system.bank.faults(
        api=[{"kind": "500", "path": "/v1/payouts/*/approve", "method": "POST", "count": 1}]
    )
    paid = await system.bank.pay(250_000, notes={"agent_id": "bot"})
    refused = await system.bank.pay(500_001, notes={"agent_id": "bot"})
    held, waits = [await system.bank.pay(200_000, notes={"agent_id": "buyer"}) for _ in range(2)]
    for payout, state in ((paid, "processed"), (refused, "rejected"), (held, "held"), (waits, "held")):
        await system.reaches(payout["id"], state)
    await system.review(held["id"], by="asha")
    await system.reaches(held["id"], "processed")
    await system.settled()


# ---- by the page alone ----


def asked(expression: str) -> list[tuple[str, dict[str, str], set[str]]]:
    """Each metric of an expression, the values that its labels must have, and the labels that series are named by."""
    by = set(re.findall(r"\w+", " ".join(re.findall(r"\bby \(([^)]*)\)", expression)))) - OF_PROMETHEUS
    found = []
    for name, braces in re.findall(r"(?<![\w:])((?:streamproc|process)_\w+)(?:\{([^}]*)\})?", expression):
        pairs = re.findall(r'(\w+)(=~?)"([^"]*)"', braces)
        values = {label: value for label, _, value in pairs if label not in OF_PROMETHEUS}
        found.append((name, values, by))
    return found


def has(page: Samples, name: str, values: dict[str, str], labels: set[str]) -> bool:
    """Whether the page has a series of this name with such labels."""
    series = [dict(pairs) for known, pairs in page if known == name]
    return any(
        labels <= set(its) and all(re.fullmatch(value, its.get(label, "")) for label, value in values.items())
        for its in series
    )


async def test_every_metric_and_label_of_dashboards_and_rules_is_on_the_page_of_a_real_run(
    system: System,
) -> None:
    await everything_happens(system)

    async def polled() -> bool:
        return has(await scraped(system), "streamproc_polls_total", {"outcome": "good"}, {"process"})

    await until(polled, what="the poller made a pass")
    page = await scraped(system)
    missing = []
    for query in queries():
        legend = set(re.findall(r"\{\{(\w+)\}\}", query.legend)) - OF_PROMETHEUS
        for name, values, labels in asked(query.expression):
            if not has(page, name, values, labels | legend):
                missing.append((query.dashboard, query.panel, name, values, labels | legend))
    assert missing == []
    rules = [
        rule
        for file in RULES
        for group in yaml.safe_load(file.read_text())["groups"]
        for rule in group["rules"]
    ]
    # What only trouble makes: a rule about it asks for a value that is not there while all is well.
    of_trouble = {"put_off|unknown|failed", "failed"}
    for rule in rules:
        for name, values, labels in asked(rule["expr"]):
            if not of_trouble & set(values.values()):
                assert has(page, name, values, labels), rule
    assert has(page, "streamproc_breaker_state", {"process": "poller-1", "system": "razorpay"}, set())


# ---- by Prometheus ----


@asynccontextmanager
async def prometheus(system: System, directory: Path) -> AsyncIterator[httpx.AsyncClient]:
    """A real one that reads the system's page each second, with our rules."""
    port = free_port()
    config = {
        "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
        "rule_files": [str(path) for path in RULES],
        "scrape_configs": [
            {
                "job_name": "streamproc",
                "authorization": {"credentials": SECRET},
                "static_configs": [{"targets": [f"127.0.0.1:{system.env['STREAMPROC_PORT']}"]}],
            }
        ],
    }
    (directory / "prometheus.yml").write_text(yaml.safe_dump(config))
    process = await asyncio.create_subprocess_exec(
        str(PROMETHEUS),
        f"--config.file={directory / 'prometheus.yml'}",
        f"--storage.tsdb.path={directory / 'data'}",
        f"--web.listen-address=127.0.0.1:{port}",
        "--enable-feature=exemplar-storage",
        "--log.level=error",
    )
    try:
        base_url = f"http://127.0.0.1:{port}"
        async with httpx.AsyncClient(base_url=base_url, timeout=10.0, trust_env=False) as client:

            async def reads() -> bool:
                assert process.returncode is None
                try:
                    return bool(await values_of(client, "up == 1"))
                except (httpx.TransportError, httpx.HTTPStatusError):
                    return False

            await until(reads, what="Prometheus reads the page", deadline_s=30.0)
            yield client
    finally:
        await killed(process)


async def values_of(client: httpx.AsyncClient, expression: str) -> list[float]:
    """The numbers that an expression gives now; those that are none (0 of 0) are no data."""
    answer = await client.get("/api/v1/query", params={"query": expression})
    answer.raise_for_status()
    found = [float(one["value"][1]) for one in answer.json()["data"]["result"]]
    return [value for value in found if value == value]


@pytest.mark.skipif(
    PROMETHEUS is None, reason="Prometheus is not installed: nobody runs the queries themselves"
)
async def test_prometheus_gives_data_for_every_panel_and_evaluates_every_rule(
    system: System, tmp_path: Path
) -> None:
    async with prometheus(system, tmp_path) as client:
        empty: list[Query] = queries()

        async def all_have_data() -> bool:
            # Rates need what happens between two scrapes, so it goes on until all have seen it.
            await everything_happens(system)
            for query in list(empty):
                if await values_of(client, query.expression.replace("$__rate_interval", "2m")):
                    empty.remove(query)
            return not empty

        try:
            await until(all_have_data, what="every panel has data", deadline_s=EVERYTHING_MAX_S)
        except AssertionError:
            raise AssertionError(f"no data for {empty}") from None

        groups = (await client.get("/api/v1/rules")).json()["data"]["groups"]
        rules = [rule for group in groups for rule in group["rules"]]
        assert {(rule["name"], rule["health"], rule.get("lastError", "")) for rule in rules} == {
            (rule["name"], "ok", "") for rule in rules
        }
        recorded = [rule["name"] for rule in rules if rule["type"] == "recording"]
        assert recorded
        for name in recorded:
            assert await values_of(client, name), name
        firing = {rule["name"] for rule in rules if rule["type"] == "alerting" and rule["state"] == "firing"}
        assert firing == set()
