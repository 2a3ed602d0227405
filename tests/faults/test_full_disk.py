"""The disk under a store is full.

Postgres: the archive and the money wait, nothing is trimmed, and it goes on by itself. A trim before the archive would
be found by `the_archive_is_the_log`, a payment by `money_moves_after_the_archive`.

Valkey: it ends at its next write, whose sender is told that the log is away. What it answered before is there again
once there is room.
"""

import asyncio
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from streamproc import embedded, processes
from streamproc.errors import LogUnavailable
from streamproc.log.connection import connected
from streamproc.log.stream import Appended, LogView, Producer, open_log
from tests.deadline import DEADLINE_S
from tests.faults.driver import run
from tests.faults.full_disk import CannotMount, fill, free, small_disk
from tests.faults.plan import full_disk_of
from tests.faults.stand import STOOD
from tests.words import delivery, observed

SEED = 20261126
VALKEY_MB = 4
LOG_MAX = 100

pytestmark = [pytest.mark.faults, pytest.mark.timeout(420)]


@pytest.fixture(autouse=True)
async def mounts(public_dir: Path) -> None:
    """Skip where no disk of its own can be mounted."""
    try:
        with tempfile.TemporaryDirectory(prefix="probe-", dir=public_dir) as home:
            async with small_disk(Path(home) / "disk"):
                pass
    except CannotMount as problem:
        pytest.skip(f"no disk of its own can be mounted here: {problem}")


async def test_a_full_disk_is_waited_for_and_then_everything_goes_on() -> None:
    report = await run(full_disk_of(SEED))

    print(report)
    assert report.violations == [], str(report)
    assert report.stood >= STOOD, "the archive was to stand still while the log grew"


@pytest.fixture
async def valkey_disk(public_dir: Path) -> AsyncIterator[Path]:
    """A small disk where Valkey of the directory above it keeps its data."""
    home = public_dir / "home"
    home.mkdir(mode=0o711)
    async with small_disk(home / "valkey", VALKEY_MB) as disk:
        yield disk


async def test_valkey_on_a_full_disk_ends_and_names_it_and_keeps_exactly_what_it_answered(
    valkey_disk: Path,
) -> None:
    home = valkey_disk.parent
    async with embedded.valkey(home) as store:
        async with connected(store.url) as client:
            await open_log(client, partitions=1, groups=("governance",))
        async with Producer(store.url, partitions=1, name="webhook") as producer:
            answered = [await producer.append(delivery(observed("pout_0")))]
            fill(valkey_disk)
            with pytest.raises(LogUnavailable):
                await _append_until_refused(producer, answered)
            assert await asyncio.wait_for(store.process.wait(), DEADLINE_S) == 1
        assert processes.why_it_ended(store.log).endswith(f"(the disk of {valkey_disk} is full)")

    free(valkey_disk)
    async with embedded.valkey(home) as store:
        async with LogView(store.url, 0) as view:
            kept = [entry.id for entry in await view.read("0-0", LOG_MAX, 0)]
        assert kept == [each.entry for each in answered]
        async with Producer(store.url, partitions=1, name="webhook") as producer:
            assert not (await producer.append(delivery(observed("pout_0")))).new
            assert (await producer.append(delivery(observed(f"pout_{len(answered)}")))).new


async def _append_until_refused(producer: Producer, answered: list[Appended]) -> None:
    """Append payouts, which first use up the rest of the file's last block, and note each that was answered."""
    for n in range(1, LOG_MAX):
        answered.append(await producer.append(delivery(observed(f"pout_{n}"))))
