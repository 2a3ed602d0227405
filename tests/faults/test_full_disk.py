"""The disk under Postgres is full: the archive and the money wait, nothing is trimmed, and it goes on by itself.

A trim before the archive would be found by `the_archive_is_the_log`, a payment by `money_moves_after_the_archive`.
"""

from pathlib import Path

import pytest

from tests.faults.driver import run
from tests.faults.full_disk import CannotMount, small_disk
from tests.faults.plan import full_disk_of

SEED = 20261126
STOOD = 8
"""Ends of the log that were seen while the archive did not move: it has a second of room in its last pages."""

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
    last = report.full_heads[-1][0]
    stood = [logged for archived, logged in report.full_heads if archived == last]
    assert len(set(stood)) >= STOOD, f"the archive was to stand still while the log grew: {report.full_heads}"
