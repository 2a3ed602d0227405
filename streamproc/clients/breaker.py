"""The circuit breaker: after several failures in a row an outside system is not called for a while.

    closed --(FAILURES_MAX consecutive failures)--> open --(OPEN_S)--> half_open
    half_open --(its one call succeeds)--> closed,  --(it fails)--> open again

Every call gets a ticket. The ticket of a call that began before the breaker last changed its state changes nothing, so
a late answer from before the trouble neither closes the breaker nor opens it again.
"""

import time
from collections.abc import Callable
from typing import Literal, TypeAlias

State: TypeAlias = Literal["closed", "open", "half_open"]

FAILURES_MAX = 5
"""Consecutive failures that open it: fewer would open on one bad connection pool."""
OPEN_S = 15.0
"""Seconds without calls: long enough for the system to restart, short compared with a payout's life."""
PROBE_WAIT_S = 1.0
"""Seconds to wait while another call's probe is under way."""


class Breaker:
    """Counts consecutive failures of one outside system. Not for threads; `clock` is monotonic seconds."""

    def __init__(
        self,
        *,
        failures_max: int = FAILURES_MAX,
        open_s: float = OPEN_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._failures_max = failures_max
        self._open_s = open_s
        self._clock = clock
        self._failures = 0
        self._ticket = 0
        self._probing = False
        self._first_opened: float | None = None
        self._opened = 0.0

    @property
    def state(self) -> State:
        """The state that the next call would find."""
        if self._first_opened is None:
            return "closed"
        return "open" if self._clock() < self._opened + self._open_s else "half_open"

    @property
    def opened_for_s(self) -> float:
        """Seconds since it left `closed`, failed probes included; 0 while closed."""
        return 0.0 if self._first_opened is None else self._clock() - self._first_opened

    @property
    def wait_s(self) -> float:
        """Seconds until a call may be let through; 0 if the next one would be."""
        match self.state:
            case "closed":
                return 0.0
            case "open":
                return self._opened + self._open_s - self._clock()
            case "half_open":
                return PROBE_WAIT_S if self._probing else 0.0

    def begin(self) -> int | None:
        """A ticket for one call; None: do not call now. End every ticket by one of the three methods below."""
        if self.wait_s > 0:
            return None
        if self._first_opened is not None:
            self._probing = True
            self._ticket += 1
        return self._ticket

    def succeeded(self, ticket: int) -> None:
        """The call got a usable answer; a 4xx is one."""
        if ticket != self._ticket:
            return
        self._failures = 0
        self._probing = False
        self._first_opened = None

    def failed(self, ticket: int) -> None:
        """The call got a 5xx, a 429, a timeout or no connection."""
        if ticket != self._ticket:
            return
        self._failures += 1
        if self._first_opened is None and self._failures < self._failures_max:
            return
        self._probing = False
        self._ticket += 1
        self._opened = self._clock()
        if self._first_opened is None:
            self._first_opened = self._opened

    def abandoned(self, ticket: int) -> None:
        """The caller was cancelled: the outcome is not known, and another call may be the probe."""
        if ticket == self._ticket:
            self._probing = False
