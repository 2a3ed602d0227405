"""What lets first looks be offered to `grant.lua` without asking Redis before: what it answered earlier. Where it said
nothing of a beneficiary, only a rejection by screening is offered, which depends on none.

It is not relied on. The script finds for itself whether a payout is known, whether its beneficiary is still noted,
whether the policies are those of the offer, and whether the time of the offer is near its own. What is not so it
leaves, and Redis is asked about that as ever. So what is remembered here may be wrong: that costs a call, and changes
no decision. A beneficiary alone is believed to be noted for as long as an answer that was had ahead of its batch is.
"""

from collections.abc import Iterable, Sequence
from itertools import takewhile
from math import inf
from time import monotonic

from streamproc.domain.beneficiaries import NOTED
from streamproc.domain.events import BeneficiarySeen
from streamproc.log.names import Note
from streamproc.log.payees import PAIRS_MAX, First
from streamproc.log.work import written_ms

CLOCK_S = 10.0
"""Redis's clock is carried by this host's monotonic one for so long: at the 50 ppm of a usual clock that is 0.5 ms, at
the 500 ppm at which one is slewed 5 ms. A time after Redis's own the script refuses, and then Redis is asked."""


BELIEVED_S = 0.25
"""A pair that was found noted is not looked at again for so long, as what was asked ahead of a batch is not
(opened.AHEAD_S). In a full load that is nearly all of them, and two looks at each cost 10 % of the script."""

DOUBTED_S = 5.0
"""Names that were noted so long ago were there when anything was asked that is used now: no answer takes so long
(connection.py), and it is used for a quarter of a second."""


class Unasked:
    """What one consumer remembers of Redis. It ends with its connections: another server may answer otherwise."""

    def __init__(self) -> None:
        self._noted: dict[tuple[str, str], float] = {}
        """Pairs, by their two hashes, that were noted when Redis was last asked, and when that was."""
        self._now_us, self._at_s, self._doubted_s = 0, -inf, -inf
        self._doubted: dict[str, float] = {}
        """Where names were noted lately, and when that was done."""

    def learn(
        self, now_us: int, at_s: float, seen: Sequence[First], beneficiaries: Sequence[BeneficiarySeen]
    ) -> None:
        """Redis's clock (µs) as it came when our monotonic one was `at_s`, and what it knew of beneficiaries."""
        self._now_us, self._at_s = now_us, at_s
        if len(self._noted) + len(seen) > PAIRS_MAX:
            self._noted.clear()  # rare; those that are in use are learnt again at once
        for one, known in zip(seen, beneficiaries, strict=True):
            if known is NOTED:
                self._noted[one.by_account, one.by_vendor] = at_s if at_s > self._doubted_s else -inf
            else:
                self._noted.pop((one.by_account, one.by_vendor), None)

    def found(self, one: First, at_s: float) -> None:
        """The script was asked at `at_s`, and found it noted."""
        self._noted[one.by_account, one.by_vendor] = at_s

    def doubt(self, notes: Iterable[Sequence[Note]]) -> None:
        """Names were noted, as in a `Handover`: where a hash is full another one went for each, so it is looked at."""
        keys = {key for some in notes for key, *_ in some}
        if keys:
            now_s = self._doubted_s = monotonic()
            late = {key: at_s for key, at_s in self._doubted.items() if now_s - at_s < DOUBTED_S}
            self._doubted = late | dict.fromkeys(keys, now_s)
            self._noted |= dict.fromkeys((pair for pair in self._noted if not keys.isdisjoint(pair)), -inf)

    def is_doubted(self, seen: Iterable[First], asked_s: float) -> bool:
        """Whether names were noted where these were looked at, after that perhaps: it was asked for at `asked_s`."""
        when = self._doubted
        both = ((one.by_account, one.by_vendor) for one in seen) if when else ()
        return any(when.get(key, -inf) > asked_s for keys in both for key in keys)

    def is_believed(self, one: First) -> bool:
        """Whether it was found noted just now."""
        return monotonic() - self._noted.get((one.by_account, one.by_vendor), -inf) < BELIEVED_S

    def forget(self) -> None:
        """Redis has to be asked."""
        self._noted.clear()
        self._at_s = -inf

    def of(self, first: Sequence[First], works: int) -> Sequence[First]:
        """Which of a pass's first looks are to be offered. The others wait for it and are asked about after it, so
        none are where fewer than half of the pass's `works` have a beneficiary who is known to be noted."""
        if not first or not self.is_fresh():
            return ()
        return first if 2 * sum(map(self.is_noted, first)) >= works else ()

    def is_noted(self, one: First) -> bool:
        """Whether it was found noted when Redis was last asked. Where not, nothing is known."""
        return (one.by_account, one.by_vendor) in self._noted

    def is_fresh(self) -> bool:
        """Whether Redis's clock was told lately."""
        return monotonic() - self._at_s < CLOCK_S

    def now_us(self, first: Sequence[First]) -> int:
        """Redis's clock, not after it: by as much behind as its last answer was on its way, and never before one of
        these, which are in the log's order, was asked for."""
        carried = self._now_us + int((monotonic() - self._at_s) * 1_000_000)
        ms = written_ms(first[-1].work.entry)
        latest = takewhile(lambda one: written_ms(one.work.entry) == ms, reversed(first))
        return max(carried, *(_since(one, ms) for one in latest))


def _since(one: First, ms: int) -> int:
    """A moment (µs) that had come when an entry was written: in its id is the millisecond, by Redis's clock, and when
    its producer saw it was in that or before."""
    return max(ms * 1000, min(one.work.events[0].at, ms * 1000 + 999))
