"""What a consumer remembers of Redis's answers, so that first decisions go to `grant.lua` without asking Redis before.

It is optimistic: the script checks for itself that the payout is not known, that its beneficiary is still noted, that
the policies are those of the offer, and that the offer's time is near its own. What fails a check is left, and Redis is
asked about it as usual. So a wrong memory costs a call and changes no decision. One thing is believed without a check:
that a pair is noted, for as long as an answer that was had ahead of its batch is believed too (BELIEVED_S). Of a payout
to a beneficiary that is not remembered, only a rejection by screening is offered, which does not depend on it.
"""

from collections.abc import Iterable, Sequence
from itertools import takewhile
from math import inf
from time import monotonic

from streamproc.domain.beneficiaries import NOTED
from streamproc.domain.events import BeneficiarySeen
from streamproc.log.names import Note
from streamproc.log.payees import PAIRS_MAX, First
from streamproc.log.work import Work

CLOCK_S = 10.0
"""How long Redis's clock is extrapolated by this host's monotonic one: at the 50 ppm of a usual clock that errs by
0.5 ms, at the 500 ppm of one that is slewed by 5 ms. A time after Redis's own is refused by the script, and then
Redis is asked."""

BELIEVED_S = 0.25
"""How long a pair that was found noted is not checked again, the same as for what was asked ahead of a batch
(opened.AHEAD_S). In a full load that is nearly all pairs, and two HGETs for each cost 10 % of the script."""

DOUBTED_S = 5.0
"""How long it is kept that names were noted. Any answer in use was asked for later: none takes so long (connection.py),
and it is used for a quarter of a second."""


class Remembered:
    """What one consumer remembers of Redis. Forgotten with its connections: another server may answer otherwise."""

    def __init__(self) -> None:
        self._now_us, self._at_s = 0, -inf
        """Redis's clock, and our monotonic one (s) when it was told."""
        self._found: dict[tuple[str, str], float] = {}
        """Pairs, by the keys of their two hashes, that Redis last found noted -> when (monotonic clock, s)."""
        self._noted: dict[str, float] = {}
        """Hashes in which this consumer noted a name lately -> when: it may have pushed another one out of a full
        hash."""
        self._noted_s = -inf
        """When it last noted any."""

    def learn(
        self, now_us: int, at_s: float, seen: Sequence[First], beneficiaries: Sequence[BeneficiarySeen]
    ) -> None:
        """Take in an answer: Redis's clock (µs) when our monotonic one was `at_s`, and what it knew of
        beneficiaries."""
        self._now_us, self._at_s = now_us, at_s
        if len(self._found) + len(seen) > PAIRS_MAX:
            self._found.clear()  # rare; pairs in use are learnt again at once
        for first, known in zip(seen, beneficiaries, strict=True):
            if known is NOTED:
                self.found(first, at_s)
            else:
                self._found.pop(first.whom.keys, None)

    def found(self, first: First, at_s: float) -> None:
        """The pair was found noted by what was asked at `at_s` (monotonic clock) or later."""
        self._found[first.whom.keys] = at_s

    def doubt(self, notes: Iterable[Sequence[Note]]) -> None:
        """This consumer noted names: what was found before of their hashes may be so no more."""
        keys = {key for of_one in notes for key, *_ in of_one}
        if keys:
            now_s = self._noted_s = monotonic()
            recent = {key: at_s for key, at_s in self._noted.items() if now_s - at_s < DOUBTED_S}
            self._noted = recent | dict.fromkeys(keys, now_s)

    def is_doubted(self, first: First, asked_s: float) -> bool:
        """Whether what was asked about a pair at `asked_s` may be outdated: this consumer noted a name since, in one
        of its hashes."""
        if self._noted_s <= asked_s:
            return False  # nearly always
        by_account, by_vendor = first.whom.keys
        noted = self._noted
        return noted.get(by_account, -inf) > asked_s or noted.get(by_vendor, -inf) > asked_s

    def unsure(self, firsts: Iterable[First]) -> dict[Work, First]:
        """Those whose pair the script must check, by work: it was not found noted so lately that it is believed."""
        found, since_s = self._found, monotonic() - BELIEVED_S
        unsure = dict[Work, First]()
        for first in firsts:
            at_s = found.get(first.whom.keys, -inf)
            if at_s <= since_s or self.is_doubted(first, at_s):
                unsure[first.work] = first
        return unsure

    def forget(self) -> None:
        """Forget all: Redis has to be asked."""
        self._found.clear()
        self._at_s = -inf

    def of(self, first: Sequence[First], works: int) -> Sequence[First]:
        """Which first looks of a pass to offer without asking: all or none.

        The other works of the pass wait for them and are asked about only then. So none, unless at least half of the
        pass's `works` go to a beneficiary that is remembered as noted.
        """
        if not first or not self.is_fresh():
            return ()
        found = self._found
        noted = sum(1 for look in first if look.whom.keys in found)
        return first if 2 * noted >= works else ()

    def is_noted(self, first: First) -> bool:
        """Whether Redis last found the pair noted. If not, nothing is known of it."""
        return first.whom.keys in self._found

    def is_fresh(self) -> bool:
        """Whether Redis's clock was heard within CLOCK_S."""
        return monotonic() - self._at_s < CLOCK_S

    def now_us(self, first: Sequence[First]) -> int:
        """Redis's clock (µs), never ahead of it: behind by as long as its last answer took to arrive. It is not
        before any of these payouts, which are in the log's order, was seen."""
        carried = self._now_us + int((monotonic() - self._at_s) * 1_000_000)
        return max(carried, _seen_by(first))


def _seen_by(first: Sequence[First]) -> int:
    """The latest moment (µs) that surely lay before the last entries were written and their payouts were seen. An
    entry's id has the millisecond by Redis's clock; its producer saw the payout in that one or before."""
    last_ms, _, _ = first[-1].work.entry.partition(b"-")
    begins, same_ms = int(last_ms) * 1000, last_ms + b"-"
    latest = takewhile(lambda look: look.work.entry.startswith(same_ms), reversed(first))
    seen = max(look.work.events[0].at for look in latest)
    return max(begins, min(seen, begins + 999))
