"""Two versions on one log: nothing is lost or decided twice, and what only the later one knows waits for it.

The earlier version is a commit of this repository; the later one is this code with an event of a version that is still
to come.
"""

import io
import subprocess
import tarfile
from pathlib import Path

import pytest

from streamproc.domain import events as e
from streamproc.domain.wire import decode_events
from tests.bank import until
from tests.faults.role import wire_names
from tests.journeys import system as looking
from tests.journeys.system import System, running_system
from tests.journeys.test_kill import (
    POLICIES,
    SMALL_BATCH,
    all_decided,
    assert_all_is_well,
    decided_some,
    pay_batch,
)

ROOT = Path(__file__).parents[2]
PREVIOUS = "56958e81476e8ec1b11cb0396cd690d80725fd93"
"""The last version that wrote every field of a decision's events (ADR 28). It leaves entries of later versions."""
REPLAY_MAX_S = 120.0
"""Of a view of some hundred payouts, beside roles that take payouts."""
LATER = ("tests.faults.role", "--later", "1")

pytestmark = [pytest.mark.soak, pytest.mark.timeout(600)]


@pytest.fixture
def previous(tmp_path: Path) -> Path:
    """A check-out of the previous version."""
    made = subprocess.run(["git", "archive", PREVIOUS], cwd=ROOT, capture_output=True, check=False)
    if made.returncode != 0:
        pytest.skip(f"this clone does not have the commit {PREVIOUS}: {made.stderr.decode()[:200]}")
    with tarfile.open(fileobj=io.BytesIO(made.stdout)) as archive:
        archive.extractall(tmp_path, filter="data")
    return tmp_path


async def exchange(system: System, name: str, home: Path | None) -> None:
    """Drain one role, and start one of the other version in its place."""
    assert await system.drain(name) == 0
    await system.start(name, home=home)


async def test_a_rolling_restart_to_the_next_version_back_and_there_again_loses_and_doubles_nothing(
    redis_url: str, postgres: str, previous: Path
) -> None:
    async with running_system(
        redis_url, postgres, workers=2, home=previous, claim_idle="2s", razorpay_calls_per_s="50"
    ) as system:
        await system.apply(POLICIES)
        await system.bank.control("safebrowsing", slow_ms=100)  # so that a batch takes a while
        batch: dict[str, set[str]] = {agent: set() for agent in SMALL_BATCH}
        for home in (None, previous, None):  # under the previous one, entries of this one wait
            for name in ("worker-1", "worker-2", "projector", "serve"):
                more = await pay_batch(system, {"free": 10, "small": 5, "crowded": 5})
                batch = {agent: payouts | more[agent] for agent, payouts in batch.items()}
                await exchange(system, name, home)
            if home is None:  # a newer view `audit`: all views wait for its replay
                code, out, err = await system.cli("replay", "audit", within_s=REPLAY_MAX_S)
                assert code == 0, out + err
            await ready(system)
        await all_decided(system, batch)
        await assert_all_is_well(system, batch)


async def ready(system: System) -> None:
    """Wait until the API reports ready."""
    await until(lambda: looking.answers(system), what="the API is ready", deadline_s=looking.START_MAX_S)


async def test_what_a_later_version_writes_waits_for_it_and_is_then_decided_once(
    redis_url: str, postgres: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(looking, "decode_events", read_both)
    monkeypatch.setattr("tests.journeys.truth.decode_events", read_both)
    async with running_system(redis_url, postgres, workers=1, razorpay_calls_per_s="50") as system:
        await system.apply(POLICIES)
        await system.drain("serve")
        await system.start("serve", module=LATER)
        await ready(system)
        batch = await pay_batch(system)
        payouts = set().union(*batch.values())

        async def all_put_off() -> bool:
            system.check_alive()
            return int(await system.redis.zcard(system.names.retries("governance"))) == len(payouts)

        await until(all_put_off, what="the worker has put off what it does not know", deadline_s=60.0)
        await until(lambda: archived(system), what="the archive has all of the log", deadline_s=60.0)
        assert not [event for event in await system.events() if isinstance(event, e.PayoutDecided)]
        assert await system.pool.fetchval("SELECT count(*) FROM payouts") == 0, (
            "a view went past what it cannot read"
        )
        assert await system.dead() == 0

        await system.start("worker-2", module=LATER)
        await until(
            lambda: decided_some(system, batch), what="the later version takes some of it", deadline_s=90.0
        )
        assert await system.drain("worker-1") == 0
        await system.drain("projector")
        await system.start("projector", module=LATER)
        await all_decided(system, batch)
        await assert_all_is_well(system, batch)


async def archived(system: System) -> bool:
    """Whether the archive is at the log's end."""
    system.check_alive()
    return int(await system.pool.fetchval("SELECT count(*) FROM events")) == len(await system.entries())


def read_both(e: bytes) -> list[e.Event]:
    """What the later version reads."""
    now, then = wire_names(1)
    return decode_events(e.replace(then, now))
