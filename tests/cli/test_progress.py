"""Progress of long work on stderr, where that is no terminal."""

import pytest

from streamproc.cli import progress
from streamproc.cli.progress import ProgressDisplay


def test_a_job_that_waits_says_once_for_what_and_shows_no_share_or_rate_of_nothing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(progress, "SAY_EVERY_S", 0.0)
    with ProgressDisplay("audit export", "entries") as display:
        display.show("waiting for a checkpoint", 0)
        display.show("waiting for a checkpoint", 0)
        display.show("proving", 5, 10, count=5, seconds=1)
        display.show("writing", 1_200, count=1_200, seconds=2)
        display.show("proving", 0, 10, count=0, seconds=1)
        display.show("proving", 0, 10, count=0, seconds=2)
        display.show("waiting for a checkpoint", 0)
    assert capsys.readouterr().err.splitlines() == [
        "audit export: waiting for a checkpoint",
        "audit export: proving, 50 %, 5 entries/s",
        "audit export: writing, 1,200 entries, 600 entries/s",
        "audit export: proving, 0 %, 0 entries/s",
        "audit export: proving, 0 %, 0 entries/s",
        "audit export: waiting for a checkpoint",
    ]
