"""The sandbox's own time: the host's, plus what the control API has added."""

import time


class Clock:
    """Unix seconds. It only goes forward by hand, never back, so nothing becomes due twice."""

    def __init__(self) -> None:
        self._added_s = 0.0

    def now(self) -> float:
        """Unix seconds as the bank sees them."""
        return time.time() + self._added_s

    def advance(self, seconds: float) -> None:
        """Let `seconds` pass at once."""
        self._added_s += seconds
