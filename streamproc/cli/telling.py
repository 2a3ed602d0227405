"""Progress of a long job on stderr: a bar on a terminal, a line now and then elsewhere."""

import sys
import time
from typing import Any, Protocol

import click

SAY_EVERY_S = 5.0
"""Between two lines of progress where there is no terminal."""


class Progress(Protocol):
    """How far a job is: `done` of `total`, and `events` handled in `seconds`."""

    stage: str
    done: int
    total: int
    events: int
    seconds: float


class Telling:
    """Progress on stderr: a bar on a terminal, a line now and then elsewhere."""

    def __init__(self, job: str) -> None:
        self._job = job
        self._bar: Any = None
        self._task: Any = None
        self._next = time.monotonic() + SAY_EVERY_S

    def __enter__(self) -> "Telling":
        if sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

            self._bar = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                TextColumn("{task.percentage:>3.0f}% {task.fields[rate]}"),
                TimeRemainingColumn(),
                console=Console(stderr=True),
                transient=True,
            )
            self._task = self._bar.add_task("planning", total=None, rate="")
            self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.end()

    def end(self) -> None:
        """Take the bar away."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def hear(self, progress: Progress) -> None:
        """Show how far a job is."""
        rate = f"{progress.events / progress.seconds:,.0f} events/s" if progress.seconds > 0 else ""
        self.say(progress.stage, progress.done, progress.total, rate)

    def say(self, stage: str, done: int = 0, total: int = 0, rate: str = "") -> None:
        """Show what is being done, and how much of it where that is known."""
        if self._bar is not None:
            self._bar.update(self._task, description=stage, total=total or None, completed=done, rate=rate)
        elif time.monotonic() >= self._next:
            self._next = time.monotonic() + SAY_EVERY_S
            share = f", {100 * done // total} %" if total else ""
            click.echo(f"{self._job}: {stage}{share}{', ' if rate else ''}{rate}", err=True)
