"""The disk under Postgres is full: the archive and the money wait, nothing is trimmed, and it goes on by itself.

A trim before the archive would be found by `the_archive_is_the_log`, a payment by `money_moves_after_the_archive`.
"""

from pathlib import Path

import pytest

from tests.faults.driver import run
from tests.faults.full_disk import CannotMount, small_disk
from tests.faults.plan import full_disk_of
from tests.faults.stand import STOOD

SEED = 20261126

pytestmark = [pytest.mark.faults, pytest.mark.timeout(420)]


async def test_a_full_disk_is_waited_for_and_then_everything_goes_on(public_dir: Path) -> None:
    try:
        async with small_disk(public_dir / "probe"):
            pass
    except CannotMount as problem:
        pytest.skip(f"no disk of its own can be mounted here: {problem}")

    report = await run(full_disk_of(SEED))

    print(report)
    assert report.violations == [], str(report)
    assert report.stood >= STOOD, "the archive was to stand still while the log grew"
