"""Progress of long work on stderr: a bar on a terminal, a line now and then elsewhere."""

import sys
import time
from typing import Any, Protocol

import click

SAY_EVERY_S = 5.0
"""Seconds between two lines of progress without a terminal."""


class Progress(Protocol):
    """How far a job is: `done` of `total`; `events` handled in `seconds`."""

    stage: str
    done: int
    total: int
    events: int
    seconds: float


class ProgressDisplay:
    """Shows how far a job is; `what` is the job and `unit` what it counts."""

    def __init__(self, what: str, unit: str) -> None:
        self._what = what
        self._unit = unit
        self._bar: Any = None
        self._task: Any = None
        self._began = time.monotonic()
        self._next = self._began + SAY_EVERY_S
        self._waits_for = ""

    def __enter__(self) -> "ProgressDisplay":
        if sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

            self._bar = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                TextColumn("{task.fields[share]} {task.fields[rate]}"),
                TimeRemainingColumn(),
                console=Console(stderr=True),
                transient=True,
            )
            self._task = self._bar.add_task(self._what, total=None, share="", rate="")
            self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.end()

    def end(self) -> None:
        """Remove the bar."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def hear(self, progress: Progress) -> None:
        """Show how far a job is that counts events."""
        self.show(progress.stage, progress.done, progress.total, progress.events, progress.seconds)

    def show(
        self, stage: str, done: int, total: int = 0, count: int | None = None, seconds: float | None = None
    ) -> None:
        """Show `done` of `total` (0: unknown; both 0: the job waits, and `stage` says for what).

        The rate is `count` in `seconds`, by default `done` since the start.
        """
        count = done if count is None else count
        seconds = time.monotonic() - self._began if seconds is None else seconds
        waits = not (done or total)
        rate = f"{count / seconds:,.0f} {self._unit}/s" if seconds > 0 and not waits else ""
        share = f"{min(100, 100 * done // total)} %" if total else f"{done:,} {self._unit}" if done else ""
        if self._bar is not None:
            self._bar.update(
                self._task, description=stage, total=total or None, completed=done, share=share, rate=rate
            )
        elif time.monotonic() >= self._next and not (waits and stage == self._waits_for):
            self._waits_for = stage if waits else ""  # said once: nothing of it changes while it lasts
            self._next = time.monotonic() + SAY_EVERY_S
            click.echo(f"{self._what}: {', '.join(filter(None, (stage, share, rate)))}", err=True)
