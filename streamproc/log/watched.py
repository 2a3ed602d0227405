"""What a batch tells of itself: its stages' times, what was decided and how long that took, what failed.

It is told after the commit, of what this worker committed: an entry that somebody else had acknowledged first is
counted there. What went straight is told while Redis has the next batch, or when nothing else is to do, so that no
payout waits for it, and small batches together: to tell of one costs nearly as much as of many. A worker that dies
before leaves its last batch, or those of the last UNTOLD_S, uncounted; exact figures are the views'. Where traces are
wanted each batch is told of at once: that takes long, and the times of others would have it in them.
"""

import asyncio
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from time import monotonic, time_ns
from typing import TYPE_CHECKING, Any, NamedTuple

from streamproc.domain import events as e
from streamproc.domain.traces import is_notable, trace_id, trace_of
from streamproc.log.forms import Fate, Offer
from streamproc.log.scripts import Committed
from streamproc.log.traced import STRAIGHT, Passed, Times, Traced
from streamproc.log.work import Desk, Group, Work, written_ms
from streamproc.telemetry import lines, watch
from streamproc.telemetry.spans import Tracer
from streamproc.telemetry.watch import Call

if TYPE_CHECKING:
    from streamproc.telemetry.metrics import Meters

US = 1_000_000
UNTOLD_MAX = 128
"""Payouts that went straight and are not told of yet, which is half of a full batch,"""
TOGETHER_S = 0.05
"""or since when the first of them waits, where Redis has a batch meanwhile,"""
UNTOLD_S = 0.1
"""or else: the chain of a neighbour may wait for others. Shorter than anybody sees on a dashboard."""
Granted = tuple[Work, Offer, Fate]


class _Untold(NamedTuple):
    """A batch that went straight, when, and by Redis's clock (µs)."""

    granted: Sequence[Granted]
    times: Times
    now_us: int


class Watched:
    """The batches of one group on one partition, one at a time."""

    def __init__(self, group: Group, partition: int) -> None:
        self._group, self._partition = group.name, partition
        self._traced = Traced(group, partition)
        self._desk: Desk | None = None
        self._loaded_ns = 0
        self._told_ns = 0
        self._calls: list[Call] = []
        self._untold: list[_Untold] = []
        self._untold_since_s = 0.0
        self._due: asyncio.TimerHandle | None = None

    @property
    def has_untold(self) -> bool:
        """Whether `tell` has anything to do."""
        return bool(self._untold)

    def tell_if_due(self) -> None:
        """Tell what went straight where that is much, or waits for long."""
        payouts = sum(len(batch.granted) for batch in self._untold)
        if payouts >= UNTOLD_MAX or (payouts and monotonic() >= self._untold_since_s + TOGETHER_S):
            self.tell()

    def tell(self) -> None:
        """Tell what went straight and was not told yet."""
        untold, self._untold = self._untold, []
        if self._due is not None:
            self._due.cancel()
            self._due = None
        meters, tracer = watch.meters(), watch.tracer()
        if not untold or meters is None:
            return
        with watch.unharmed():
            if tracer is None:
                self._tell_granted(meters, untold)
            for granted, times, now_us in untold:
                passed, done = (
                    [(STRAIGHT, times.loaded_ns, times.handled_ns)],
                    [Committed.DONE] * len(granted),
                )
                self._tell_times(meters, done, passed, times)
                if tracer is not None:
                    works = [work for work, *_ in granted]
                    for work, offer, fate in granted:
                        # What was recorded but for the counters' numbers, which are 0 here: nothing is told of those.
                        work.record, out = offer.told(fate)
                        work.out = list(out)
                    self._tell_done(meters, works, passed, (), times, now_us)

    def loaded(self, desk: Desk, at_ns: int) -> None:
        """A batch begins: Redis's clock is known, told when ours was `at_ns`."""
        self._desk, self._loaded_ns, self._told_ns, self._calls = desk, time_ns(), at_ns, []
        watch.keep(self._calls)

    def granted(self, granted: Sequence[Granted], sent_ns: int) -> None:
        """Offers were sent at `sent_ns`, and these were done: the way is one stage, its script the commit."""
        if watch.meters() is None or self._desk is None or not granted:
            return
        if not self._untold:
            self._untold_since_s = monotonic()
            self._due = asyncio.get_running_loop().call_later(UNTOLD_S, self.tell)
        now_ns = time_ns()
        times = Times(self._loaded_ns, sent_ns, now_ns)
        self._untold.append(_Untold(granted, times, self._now_us(self._desk, now_ns)))
        if watch.tracer() is not None:
            self.tell()

    def committed(self, works: Sequence[Work], statuses: Sequence[Committed]) -> None:
        """A batch was committed: the fate of each of its works."""
        now_ns = time_ns()
        self.tell()  # of what went straight before
        with watch.unharmed():
            passed = self._desk.passed if self._desk is not None else []
            self._tell_committed(works, statuses, passed, now_ns)
            # A batch whose payouts moved on is committed again: its stages were timed.
            passed.clear()

    def _tell_committed(
        self, works: Sequence[Work], statuses: Sequence[Committed], passed: Passed, at_ns: int
    ) -> None:
        meters, desk = watch.meters(), self._desk
        if meters is None or desk is None or not works:
            return
        times = Times(self._loaded_ns, passed[-1][2] if passed else self._loaded_ns, at_ns)
        self._tell_times(meters, statuses, passed, times)
        done = [w for w, s in zip(works, statuses, strict=True) if s is Committed.DONE]
        self._tell_done(meters, done, passed, self._calls, times, self._now_us(desk, at_ns))

    def _tell_done(
        self,
        meters: "Meters",
        works: Sequence[Work],
        passed: Passed,
        calls: Sequence[Call],
        times: Times,
        now_us: int,
    ) -> None:
        """Works that were committed; Redis's clock was `now_us` then."""
        _count(meters, works, now_us)
        if lines.are_said():
            lines.say([line for work in works for line in self._lines(work)])
        if (tracer := watch.tracer()) is not None:
            _exemplify(meters, tracer, works, now_us)
            self._traced.committed(tracer, works, times, passed, calls)

    def _now_us(self, desk: Desk, now_ns: int) -> int:
        """Redis's clock."""
        return desk.now_us + (now_ns - self._told_ns) // 1000

    def _tell_times(
        self, meters: "Meters", statuses: Sequence[Committed], passed: Passed, times: Times
    ) -> None:
        """How long each stage took, and the commit."""
        meters.batch_entries.labels(self._group).observe(len(statuses))
        for stage, stage_ns, ended_ns in passed:
            meters.stage_seconds.labels(self._group, stage).observe((ended_ns - stage_ns) / 1e9)
        meters.commit_seconds.labels(self._group).observe((times.committed_ns - times.handled_ns) / 1e9)
        for status, n in Counter(statuses).items():
            meters.entries.labels(self._group, status.name.lower()).inc(n)

    def _tell_granted(self, meters: "Meters", untold: Sequence[_Untold]) -> None:
        """As `_tell_done`, of the decisions alone: nothing else that an offer records is told of. What is recorded
        of a payout costs as much to make as to decide it, and payouts of one form are decided alike."""
        alike: dict[tuple[int, Fate], tuple[e.PayoutDecided | None, list[tuple[Offer, int]]]] = {}
        said, are_said = list[lines.DecisionLine](), lines.are_said()
        for granted, _, now_us in untold:
            for work, offer, fate in granted:
                which = (id(offer.form), fate)
                known = alike.get(which)
                if known is None:
                    known = alike[which] = (_decision_in(offer.told(fate)[1]), [])
                decision, offers = known
                if decision is None:
                    continue
                offers.append((offer, now_us))
                if are_said:
                    said.append(self._line(decision, work, offer))
        for decision, offers in alike.values():
            if decision is not None:
                _count_decided(meters, decision, offers)
        lines.say(said)

    def _line(self, decision: e.PayoutDecided, work: Work, offer: Offer) -> lines.DecisionLine:
        """Of a payout that was decided as another one with the same form."""
        return lines.DecisionLine(
            self._partition,
            work.entry.decode(),
            work.payout,
            trace_id(work.payout),
            decision.decision,
            decision.reason,
            offer.agent,
            offer.ask.amount,
            decision.by,
        )

    def _lines(self, work: Work) -> list[lines.DecisionLine]:
        return [
            lines.DecisionLine(
                self._partition,
                work.entry.decode(),
                work.payout,
                trace_id(work.payout),
                event.decision,
                event.reason,
                event.agent,
                event.amount,
                event.by,
            )
            for event in work.out
            if type(event) is e.PayoutDecided
        ]

    def put_off(self, works: Sequence[Work]) -> None:
        """Entries that wait for another attempt."""
        self.tell()
        with watch.unharmed():
            if (tracer := watch.tracer()) is not None:
                self._traced.put_off(tracer, works, self._loaded_ns)
            self._fell_out("put_off", works)

    def set_aside(self, works: Sequence[Work]) -> None:
        """Entries that are dead letters now."""
        self.tell()
        with watch.unharmed():
            if (tracer := watch.tracer()) is not None:
                self._traced.set_aside(tracer, works, self._loaded_ns or time_ns())
            self._fell_out("set_aside", works)

    def _fell_out(self, outcome: str, works: Sequence[Work]) -> None:
        meters = watch.meters()
        if meters is not None and works:
            meters.entries.labels(self._group, outcome).inc(len(works))


def _count(meters: "Meters", works: Sequence[Work], now_us: int) -> None:
    """What was recorded, with how long it took."""
    decided: Counter[tuple[str, str]] = Counter()
    paise: Counter[str] = Counter()
    for work in works:
        for event in work.out:
            if type(event) is e.PayoutDecided:
                # Summed up first: a counter has a lock, and a batch few different reasons.
                decided[event.decision, event.reason] += 1
                paise[event.decision] += event.amount
                _time_of_decision(meters, work, event, now_us)
            elif (tell := _TOLD.get(type(event))) is not None:
                tell(meters, work, event, now_us)
    for (decision, reason), n in decided.items():
        meters.decisions.labels(decision, reason).inc(n)
    for decision, amount in paise.items():
        meters.decided_paise.labels(decision).inc(amount)


def _decision_in(out: Sequence[e.Fact]) -> e.PayoutDecided | None:
    return next((event for event in out if type(event) is e.PayoutDecided), None)


def _count_decided(meters: "Meters", decision: e.PayoutDecided, offers: Sequence[tuple[Offer, int]]) -> None:
    """First decisions that are alike, and when they were recorded by Redis's clock (µs)."""
    meters.decisions.labels(decision.decision, decision.reason).inc(len(offers))
    meters.decided_paise.labels(decision.decision).inc(sum(offer.ask.amount for offer, _ in offers))
    took = meters.decision_seconds.labels(decision.decision)
    for offer, now_us in offers:
        took.observe(_s(now_us - offer.ask.received_at))


def _time_of_decision(meters: "Meters", work: Work, event: e.PayoutDecided, now_us: int) -> None:
    before, record = work.loaded, work.record
    if before is None or before.decision is None:
        if record is not None:
            meters.decision_seconds.labels(event.decision).observe(_s(now_us - record.received_at))
    elif before.decision == "HELD":
        held = meters.hold_seconds.labels(event.decision, event.reason)
        held.observe(_s(now_us - before.decided_at))


def _exemplify(meters: "Meters", tracer: Tracer, works: Sequence[Work], now_us: int) -> None:
    """Name the trace of the slowest first decision of a batch, where it has one."""
    decided = [
        (now_us - work.record.received_at, work.record)
        for work in works
        if work.record is not None
        and work.record.decision
        and (work.loaded is None or not work.loaded.decision)
    ]
    took_us, record = max(decided, key=lambda found: found[0], default=(0, None))
    if record is not None and (is_notable(record) or tracer.samples(trace_of(record.payout).trace)):
        series = meters.decision_seconds.labels(str(record.decision))
        series.exemplify(_s(took_us), trace_id(record.payout))


def _answered(meters: "Meters", work: Work, event: e.BankCommandAnswered, now_us: int) -> None:
    if work.record is not None and work.record.decided_at:
        told = meters.bank_told_seconds.labels(event.command, event.outcome)
        told.observe(_s(now_us - work.record.decided_at))


def _settled(meters: "Meters", work: Work, event: e.PayoutSettled, now_us: int) -> None:
    appended_us = written_ms(work.entry) * 1000
    meters.settled_seconds.labels(event.settlement).observe(_s(now_us - appended_us))


def _sent(meters: "Meters", _work: Work, event: e.NotificationSent, _now_us: int) -> None:
    meters.notifications.labels(event.kind, event.channel).inc()


def _unsent(meters: "Meters", _work: Work, event: e.NotificationFailed, _now_us: int) -> None:
    if event.given_up:
        meters.notifications.labels(event.kind, "given_up").inc()


def _alarm(kind: str) -> Callable[["Meters", Work, Any, int], None]:
    def tell(meters: "Meters", _work: Work, _event: e.Event, _now_us: int) -> None:
        meters.alarms.labels(kind).inc()

    return tell


def _s(us: int) -> float:
    """Seconds; two hosts' clocks may make a little less than nothing of it."""
    return max(0, us) / US


_TOLD: Mapping[type[e.Fact], Callable[["Meters", Work, Any, int], None]] = {
    e.BankCommandAnswered: _answered,
    e.PayoutSettled: _settled,
    e.NotificationSent: _sent,
    e.NotificationFailed: _unsent,
    e.GovernanceBypassed: _alarm("bypassed"),
    e.PayoutStopped: _alarm("stopped"),
    e.CancelRequested: _alarm("cancel_requested"),
}
