"""What the chain has to look at, of a batch that others follow at once: it waits, and goes with theirs.

A pass of the chain costs three calls of Redis however few it is for. Most of a full batch is granted in one
(grants.py); what was left of it, 6 % that were rejected, cost half as much as all the rest. Nothing waits where nothing
follows.
"""

from collections.abc import Iterator, Sequence
from time import monotonic

from streamproc.log.work import Work

WAITING_MAX = 128
"""Works: as many as are left of some eight batches,"""
WAITING_S = 0.25
"""and none waits for longer, which is a few full batches: each waits for the server behind those of others."""


class Waiting:
    """Works of one consumer in the order in which they came. They are in its hands, and nobody has looked at them."""

    def __init__(self) -> None:
        self._works: dict[bytes, Work] = {}
        self._since = 0.0

    def __len__(self) -> int:
        return len(self._works)

    def __iter__(self) -> Iterator[bytes]:
        """Their entries."""
        return iter(self._works)

    def __contains__(self, entry: object) -> bool:
        return entry in self._works

    def meets(self, works: Sequence[Work]) -> bool:
        """Whether one of them is about these payouts: it comes first."""
        payouts = {work.payout for work in self._works.values()}
        return bool(payouts) and any(work.payout in payouts for work in works)

    def has_room(self, works: Sequence[Work]) -> bool:
        """Have these wait too, unless it is time for all of them; then False."""
        now = monotonic()
        if not self._works:
            self._since = now
        if len(self._works) + len(works) > WAITING_MAX or now - self._since >= WAITING_S:
            return False
        self._works |= {work.entry: work for work in works}
        return True

    def taken(self) -> list[Work]:
        """All of them, which wait no longer."""
        works = [*self._works.values()]
        self._works.clear()
        return works
