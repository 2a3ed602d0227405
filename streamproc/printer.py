"""What `up` prints. Neither a full disk nor a pipe or terminal that nobody reads any more may keep it from its work."""

import os
import select
import sys
from contextlib import suppress
from typing import Final

TERMINAL_VARIABLE: Final = "UP_TERMINAL"
"""Variable by which `up` says to a child that a person reads its lines, which reach the terminal through a pipe. Not a
setting."""
WAIT_S: Final = 1.0
"""So long a reader that stands still is waited for; then lines are dropped until it reads again."""
PIECE_BYTES: Final = 4096
"""PIPE_BUF: a pipe that is ready takes this much without blocking."""


class Printer:
    """Prints whole lines. What cannot be written is dropped and counted, and the count is printed when it can."""

    def __init__(self) -> None:
        self._dropped = 0

    def say(self, text: str) -> None:
        """Print a line on stdout."""
        if sys.stdout is None:  # closed before we began: descriptor 1 may be anything by now
            return
        with suppress(OSError):
            if self._dropped:
                self._write(f"\n[up] {self._dropped} lines could not be written here\n")
                self._dropped = 0
            self._write(f"{text}\n")
            return
        self._dropped += 1

    def _write(self, text: str) -> None:
        """Raises OSError if not all of it can be written now."""
        descriptor, left = sys.stdout.fileno(), memoryview(text.encode(errors="backslashreplace"))
        ready = select.poll()
        ready.register(descriptor, select.POLLOUT)
        while left:
            if not ready.poll(0 if self._dropped else WAIT_S * 1_000):
                raise BlockingIOError("nobody reads")
            left = left[os.write(descriptor, left[:PIECE_BYTES]) :]


def on_terminal() -> str:
    """The value of TERMINAL_VARIABLE for a child: '1' if what it prints goes to a terminal."""
    return "1" if sys.stdout is not None and sys.stdout.isatty() else ""


say: Final = Printer().say
