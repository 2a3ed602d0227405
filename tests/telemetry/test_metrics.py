"""What one process counts, and how it is asked."""

import asyncio
import os
import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any

import httpx
import pytest
from prometheus_client import CollectorRegistry
from prometheus_client import Histogram as Reference
from prometheus_client.openmetrics.exposition import generate_latest

from streamproc.operate.measured import measured, replay_with_metrics
from streamproc.run_file import NAME_VARIABLE
from streamproc.secret import Secret
from streamproc.settings import Settings
from streamproc.telemetry import watch
from streamproc.telemetry.exposure import DIRECTORY, Shown, exposed, gather, snapshot
from streamproc.telemetry.histogram import Histogram
from streamproc.telemetry.metrics import Meters
from tests.bank import free_port, until
from tests.deadline import DEADLINE_S
from tests.engine import Engine
from tests.operate.words import TOO_LONG
from tests.telemetry.pages import samples
from tests.words import observed

SECRET = "a-token-of-the-test"
EXPOSED = """
import asyncio, sys
from pathlib import Path
from prometheus_client import CollectorRegistry
from streamproc.telemetry.exposure import exposed

async def run():
    async with exposed(Path(sys.argv[1]), "worker", CollectorRegistry()) as name:
        print(name, flush=True)
        await asyncio.Event().wait()

asyncio.run(run())
"""
POLICIES = "policies: {bot: {daily_limit: 10_000_000, rate_limit: {count: 0, window: 60s}}}"


@pytest.fixture
def meters() -> Iterator[Meters]:
    """This process counts."""
    counting = Meters(CollectorRegistry())
    watch.turn_on(counting)
    yield counting
    watch.turn_off()


async def test_each_decision_is_counted_once_at_most_while_workers_die(
    redis_url: str, meters: Meters
) -> None:
    async with Engine(redis_url, workers=3, claim_idle_s=0.2) as engine:
        await engine.apply(POLICIES)
        asking = asyncio.create_task(engine.deliver(*(observed(f"pout_{n:014}", 100) for n in range(300))))
        for _ in range(5):
            await engine.crash()
        await asking
        decided = sum(
            type(event).__name__ == "PayoutDecided" for entry in await engine.entries() for event in entry
        )
    counted = sum(
        p.value for f in snapshot(meters.registry) for p in f.points if p.name == "streamproc_decisions_total"
    )
    assert decided == 300
    assert 0 < counted <= 300


async def test_what_happens_seldom_is_counted_from_0_so_that_the_first_time_is_an_increase(
    redis_url: str, meters: Meters
) -> None:
    async with Engine(redis_url) as engine:
        await engine.settled()
    counted = {
        (point.name, *point.labels.values()): point.value
        for family in snapshot(meters.registry)
        for point in family.points
        if point.name.endswith("_total") and point.name.startswith("streamproc_")
    }
    assert counted == {
        ("streamproc_alarms_total", "bypassed"): 0,
        ("streamproc_alarms_total", "cancel_requested"): 0,
        ("streamproc_alarms_total", "stopped"): 0,
        ("streamproc_decided_paise_total", "APPROVED"): 0,
        ("streamproc_decided_paise_total", "HELD"): 0,
        ("streamproc_decided_paise_total", "REJECTED"): 0,
        ("streamproc_entries_total", "governance", "deferred"): 0,
        ("streamproc_entries_total", "governance", "set_aside"): 0,
        ("streamproc_taken_up_entries_total", "governance", "claim"): 0,
        ("streamproc_taken_up_entries_total", "governance", "retry"): 0,
    }


async def test_a_name_is_free_again_when_its_process_has_ended(tmp_path: Path) -> None:
    deep = tmp_path / ("d" * 100)  # longer than a socket's address may be
    deep.mkdir()
    registry = CollectorRegistry()
    async with exposed(deep, "worker", registry) as first, exposed(deep, "worker", registry) as second:
        assert (first, second) == ("worker-1", "worker-2")
        assert len((await gather(deep))[0].points) == 2
    async with exposed(deep, "worker", registry) as third:
        assert third == "worker-1"
    assert list((deep / DIRECTORY).glob("*.sock")) == []


async def test_a_child_of_up_is_called_as_in_its_output_and_its_lock_says_which_process_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    registry, lock = CollectorRegistry(), tmp_path / DIRECTORY / "worker-2.lock"
    monkeypatch.setenv(NAME_VARIABLE, "worker-2")
    async with (
        exposed(tmp_path, "worker", registry) as wanted,
        exposed(tmp_path, "worker", registry) as next_,
    ):
        assert (wanted, next_) == ("worker-2", "worker-1")  # a name in use is nobody else's
        assert lock.read_text().split() == [str(os.getpid()), socket.gethostname()]
        async with exposed(tmp_path, "projector", registry) as other:
            assert other == "projector-1"
    assert lock.read_text() == ""
    for strange in ("worker-0", "worker-2/../x", "serve"):
        monkeypatch.setenv(NAME_VARIABLE, strange)
        async with exposed(tmp_path, "worker", registry) as name:
            assert name == "worker-1"


async def test_a_child_of_up_that_was_killed_comes_again_under_its_name(tmp_path: Path) -> None:
    lock, env = tmp_path / DIRECTORY / "worker-2.lock", {**os.environ, NAME_VARIABLE: "worker-2"}
    for _ in range(2):
        child = await asyncio.create_subprocess_exec(
            sys.executable, "-c", EXPOSED, tmp_path, env=env, stdout=asyncio.subprocess.PIPE
        )
        assert child.stdout is not None
        try:
            assert (await child.stdout.readline()).strip() == b"worker-2"
            assert lock.read_text().split()[0] == str(child.pid)
            [up] = (await gather(tmp_path))[0].points
            assert (up.labels["process"], up.value) == ("worker-2", 1.0)
        finally:
            child.kill()
            await child.wait()
    assert (await gather(tmp_path))[0].points == []


async def test_where_the_directory_cannot_be_looked_into_the_page_has_no_process_and_a_replay_runs(
    tmp_path: Path,
) -> None:
    nowhere = tmp_path / TOO_LONG

    async def job(_hear: object) -> Any:  # of which nothing is asked here
        return "done"

    assert (await gather(nowhere))[0].points == []
    assert await replay_with_metrics(nowhere, job, lambda _: None) == "done"


async def test_a_role_runs_where_the_directory_cannot_be_used(tmp_path: Path) -> None:
    (tmp_path / DIRECTORY).write_text("a file is in the way")
    async with exposed(tmp_path, "worker", CollectorRegistry()) as name:
        assert name == "worker"


def test_the_quick_histogram_says_what_prometheus_client_says() -> None:
    bounds = (0.001, 0.01, 0.1, 1.0)
    ours, theirs = CollectorRegistry(), CollectorRegistry()
    quick = Histogram("t", "a test", bounds, ("who",))
    ours.register(quick)
    reference = Reference("t", "a test", ("who",), buckets=bounds, registry=theirs)
    chance = Random(7)
    values = [*bounds, 0.0, 5.0, *(chance.uniform(0, 2) for _ in range(500))]
    for value in values:
        quick.labels("x").observe(value)
    quick.labels("x").observe_all(values)
    for value in 2 * values:
        reference.labels("x").observe(value)
    said = samples(generate_latest(Shown(snapshot(ours))).decode())
    assert said == pytest.approx(samples(generate_latest(Shown(snapshot(theirs))).decode()))


async def test_a_role_that_runs_alone_shows_its_own_page_on_its_own_port(
    tmp_path: Path, redis_url: str
) -> None:
    settings = Settings(
        redis_url=redis_url, data_dir=tmp_path, metrics_port=free_port(), metrics_token=Secret(SECRET)
    )
    async with (
        measured(settings, "worker") as counting,
        httpx.AsyncClient(trust_env=False, timeout=DEADLINE_S) as client,
    ):
        counting.decisions.labels("APPROVED", "POLICY_OK").inc()
        url = f"http://127.0.0.1:{settings.metrics_port}"

        async def page() -> httpx.Response | None:
            try:
                return await client.get(f"{url}/metrics", headers={"authorization": f"Bearer {SECRET}"})
            except httpx.TransportError:
                return None

        answer = await until(page, what="the port answers")
        assert answer is not None
        assert 'streamproc_decisions_total{decision="APPROVED",process="worker-1"' in answer.text
        assert 'streamproc_up{process="worker-1"} 1.0' in answer.text
        assert (await client.get(f"{url}/metrics")).status_code == 401
        assert (await client.get(f"{url}/elsewhere")).status_code == 404
        alive = await client.get(f"{url}/healthz")
        assert (alive.status_code, alive.json()) == (200, {"status": "alive"}), "it needs no token"
