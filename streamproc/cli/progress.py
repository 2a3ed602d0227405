"""How long work shows where it is: a bar on a terminal, a line now and then elsewhere, both on stderr."""

import sys
import time
from typing import Any, Self

import click

SAY_EVERY_S = 5.0
"""Between two lines of progress where there is no terminal."""


class Telling:
    """Progress of one command. Use as a context manager; `hear` as often as you like."""

    def __init__(self, command: str) -> None:
        self._command = command
        self._bar: Any = None
        self._task: Any = None
        self._next = time.monotonic() + SAY_EVERY_S

    def __enter__(self) -> Self:
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

    def hear(self, stage: str, done: int, total: int, rate: str) -> None:
        """Show it. `total` 0: nobody knows yet."""
        if self._bar is not None:
            self._bar.update(self._task, description=stage, total=total or None, completed=done, rate=rate)
        elif time.monotonic() >= self._next:
            self._next = time.monotonic() + SAY_EVERY_S
            share = 100 * done // total if total else 0
            click.echo(f"{self._command}: {stage}, {share} %, {rate}", err=True)
