"""The sandbox's own time: the host's, plus what the control API added."""

import time


class Clock:
    """Unix seconds. It can be moved only forward, so nothing becomes due twice."""

    def __init__(self) -> None:
        self._added_s = 0.0

    def now(self) -> float:
        """Unix seconds as the bank sees them."""
        return time.time() + self._added_s

    def advance(self, seconds: float) -> None:
        """Let `seconds` pass at once."""
        self._added_s += seconds
