"""Telemetry of batches: how long stages took, what was decided and after how long, what failed.

It is recorded after the commit, for what this worker committed; an entry that another worker acknowledged first is
counted there. For the fast path it is recorded while Redis has the next batch, or when nothing else is to do, so that
no payout waits for it, and for small batches together, since one payout costs nearly as much as many. A worker that is
killed leaves its last batch, or the last UNRECORDED_S, uncounted; exact figures are in the views. With traces each
batch is recorded at once: that takes long, and would otherwise be part of other batches' times.
"""

import asyncio
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from time import monotonic, time_ns
from typing import TYPE_CHECKING, Any, NamedTuple

from streamproc.domain import events as e
from streamproc.domain.budget import US
from streamproc.domain.traces import is_notable, trace_id, trace_of
from streamproc.log.batch_traces import FAST_PATH, BatchTraces, Times
from streamproc.log.scripts import Committed
from streamproc.log.templates import Offer, OfferFate
from streamproc.log.work import BatchContext, Group, Passed, Work, written_ms
from streamproc.telemetry import lines, watch
from streamproc.telemetry.spans import Tracer
from streamproc.telemetry.watch import Call

if TYPE_CHECKING:
    from streamproc.telemetry.metrics import Meters

UNRECORDED_MAX = 128
"""Fast-path payouts that may wait to be recorded: half of a full batch."""
TOGETHER_S = 0.05
"""How long they may wait, if Redis has a batch meanwhile."""
UNRECORDED_S = 0.1
"""How long otherwise, as when another chain waits for the outside. Too short to be seen on a dashboard."""
OVER = "OVER"
"""In place of a decision: the bank moved or ended a payout that was held. Its status is the reason then."""
Granted = tuple[Work, Offer, OfferFate]


class _Unrecorded(NamedTuple):
    """A fast-path batch that is not recorded yet, with its times and Redis's clock (µs)."""

    granted: Sequence[Granted]
    times: Times
    now_us: int


class _Alike(NamedTuple):
    """First decisions of payouts that share a template, of which only the first one's event is made."""

    decision: e.PayoutDecided
    amounts: list[int]
    waited_us: list[int]
    """From when each was received until it was recorded, by Redis's clock."""


class BatchTelemetry:
    """Telemetry of one group on one partition, a batch at a time."""

    def __init__(self, group: Group, partition: int) -> None:
        self._group, self._partition = group.name, partition
        self._keeps_outputs = group.outputs_are_facts
        if (meters := watch.meters()) is not None:
            meters.begin_group(group.name)
        self._traces = BatchTraces(group, partition)
        self._ctx: BatchContext | None = None
        self._loaded_ns = 0
        self._clock_ns = 0
        self._calls: list[Call] = []
        self._unrecorded: list[_Unrecorded] = []
        self._unrecorded_since_s = 0.0
        self._due: asyncio.TimerHandle | None = None

    @property
    def has_unrecorded(self) -> bool:
        """Whether `record` has anything to record."""
        return bool(self._unrecorded)

    def record_if_due(self) -> None:
        """Record fast-path batches, if they are many or have waited for long."""
        payouts = sum(len(batch.granted) for batch in self._unrecorded)
        if payouts >= UNRECORDED_MAX or (payouts and monotonic() >= self._unrecorded_since_s + TOGETHER_S):
            self.record()

    def record(self) -> None:
        """Record the fast-path batches that wait."""
        unrecorded, self._unrecorded = self._unrecorded, []
        if self._due is not None:
            self._due.cancel()
            self._due = None
        meters, tracer = watch.meters(), watch.tracer()
        if not unrecorded or meters is None:
            return
        with watch.unharmed():
            self._record_granted(meters, unrecorded)
            for batch in unrecorded:
                passed = [(FAST_PATH, batch.times.loaded_ns, batch.times.handled_ns)]
                self._record_times(meters, [Committed.DONE] * len(batch.granted), passed, batch.times)
                if tracer is not None:
                    works = _works_of(batch)
                    _exemplify(meters, tracer, works, batch.now_us)
                    self._traces.committed(tracer, works, batch.times, passed, ())

    def loaded(self, ctx: BatchContext, at_ns: int) -> None:
        """A batch begins; `ctx.now_us` was Redis's clock when this host's was `at_ns`."""
        self._ctx, self._loaded_ns, self._clock_ns, self._calls = ctx, time_ns(), at_ns, []
        watch.collect_calls(self._calls)

    def granted(self, granted: Sequence[Granted], sent_ns: int) -> None:
        """These offers, sent at `sent_ns`, were recorded. The fast path counts as one stage, and its script as the
        commit."""
        if watch.meters() is None or self._ctx is None or not granted:
            return
        if not self._unrecorded:
            self._unrecorded_since_s = monotonic()
            self._due = asyncio.get_running_loop().call_later(UNRECORDED_S, self.record)
        now_ns = time_ns()
        times = Times(self._loaded_ns, sent_ns, now_ns)
        self._unrecorded.append(_Unrecorded(granted, times, self._now_us(self._ctx, now_ns)))
        if watch.tracer() is not None:
            self.record()

    def committed(self, works: Sequence[Work], statuses: Sequence[Committed]) -> None:
        """A batch was committed: the fate of each of its works."""
        now_ns = time_ns()
        self.record()  # fast-path batches came before this one
        with watch.unharmed():
            passed = self._ctx.passed if self._ctx is not None else []
            self._record_committed(works, statuses, passed, now_ns)
            if self._keeps_outputs and watch.tracer() is not None:
                self._keep_stale(works, statuses, passed)
            # What is stale in this batch is committed again, but its stages are timed already.
            passed.clear()

    def _keep_stale(self, works: Sequence[Work], statuses: Sequence[Committed], passed: Passed) -> None:
        """Keep for the next commit what led to outputs that stay: the bank was called in this pass, and not in the
        next."""
        for work, status in zip(works, statuses, strict=True):
            if status is Committed.STALE:
                work.passed = (*work.passed, *passed)
                work.calls += self._calls if len(works) == 1 else ()

    def _record_committed(
        self, works: Sequence[Work], statuses: Sequence[Committed], passed: Passed, at_ns: int
    ) -> None:
        meters, ctx = watch.meters(), self._ctx
        if meters is None or ctx is None or not works:
            return
        times = Times(self._loaded_ns, passed[-1][2] if passed else self._loaded_ns, at_ns)
        self._record_times(meters, statuses, passed, times)
        done = [w for w, s in zip(works, statuses, strict=True) if s is Committed.DONE]
        now_us = self._now_us(ctx, at_ns)
        _count(meters, done, now_us)
        if lines.is_enabled():
            decided = ((work, event) for work in done for event in work.out if type(event) is e.PayoutDecided)
            lines.log_decisions(
                [self._line(work, event, event.agent, event.amount) for work, event in decided]
            )
        if (tracer := watch.tracer()) is not None:
            _exemplify(meters, tracer, done, now_us)
            self._traces.committed(tracer, done, times, passed, self._calls)

    def _now_us(self, ctx: BatchContext, now_ns: int) -> int:
        """Redis's clock at `now_ns` of this host's."""
        return ctx.now_us + (now_ns - self._clock_ns) // 1000

    def _record_times(
        self, meters: "Meters", statuses: Sequence[Committed], passed: Passed, times: Times
    ) -> None:
        """Record how long each stage and the commit took."""
        meters.batch_entries.labels(self._group).observe(len(statuses))
        for stage, stage_ns, ended_ns in passed:
            meters.stage_seconds.labels(self._group, stage).observe((ended_ns - stage_ns) / 1e9)
        meters.commit_seconds.labels(self._group).observe((times.committed_ns - times.handled_ns) / 1e9)
        for status, n in Counter(statuses).items():
            meters.entries.labels(self._group, status.name.lower()).inc(n)

    def _record_granted(self, meters: "Meters", unrecorded: Sequence[_Unrecorded]) -> None:
        """Count and say the decisions of fast-path batches, which are all that telemetry takes from their events.
        Payouts of one template are decided alike, so their events are made only once: that costs as much as deciding a
        payout."""
        alike: dict[tuple[int, OfferFate], _Alike] = {}
        log_lines, is_logged = list[lines.DecisionLine](), lines.is_enabled()
        for granted, _, now_us in unrecorded:
            for work, offer, fate in granted:
                template_key = (id(offer.template), fate)
                known = alike.get(template_key)
                if known is None:
                    _, out = offer.outputs(fate)
                    decision = next(event for event in out if type(event) is e.PayoutDecided)
                    known = alike[template_key] = _Alike(decision, [], [])
                ask = offer.ask
                known.amounts.append(ask.amount)
                known.waited_us.append(now_us - ask.received_at)
                if is_logged:
                    log_lines.append(self._line(work, known.decision, offer.agent, ask.amount))
        for known in alike.values():
            _count_decided(meters, known)
        lines.log_decisions(log_lines)

    def _line(self, work: Work, decision: e.PayoutDecided, agent: str, amount: int) -> lines.DecisionLine:
        """A decision's log line. Agent and amount are the payout's own; the rest of the event may be that of another
        payout that was decided alike."""
        return lines.DecisionLine(
            f"{work.payout} {decision.decision} {decision.reason}",
            self._partition,
            work.entry.decode(),
            work.payout,
            trace_id(work.payout),
            decision.decision,
            decision.reason,
            agent,
            amount,
            decision.by,
        )

    def deferred(self, works: Sequence[Work]) -> None:
        """Record entries that were deferred."""
        self.record()
        with watch.unharmed():
            if (tracer := watch.tracer()) is not None:
                self._traces.deferred(tracer, works, self._loaded_ns)
            self._fell_out("deferred", works)

    def dead_lettered(self, works: Sequence[Work]) -> None:
        """Record entries that became dead letters."""
        self.record()
        with watch.unharmed():
            if (tracer := watch.tracer()) is not None:
                self._traces.dead_lettered(tracer, works, self._loaded_ns or time_ns())
            self._fell_out("set_aside", works)

    def _fell_out(self, outcome: str, works: Sequence[Work]) -> None:
        meters = watch.meters()
        if meters is not None and works:
            meters.entries.labels(self._group, outcome).inc(len(works))


def _count(meters: "Meters", works: Sequence[Work], now_us: int) -> None:
    """Count the events of committed works, with how long they took."""
    decided: Counter[tuple[str, str]] = Counter()
    paise: Counter[str] = Counter()
    for work in works:
        if work.ends_hold():
            _time_of_hold(meters, work, now_us)
        for event in work.out:
            if type(event) is e.PayoutDecided:
                # Summed up first: each counter has a lock, and a batch has few different reasons.
                decided[event.decision, event.reason] += 1
                paise[event.decision] += event.amount
                _time_of_decision(meters, work, event, now_us)
            elif (tell := _RECORDED.get(type(event))) is not None:
                tell(meters, work, event, now_us)
    for (decision, reason), n in decided.items():
        meters.decisions.labels(decision, reason).inc(n)
    for decision, amount in paise.items():
        meters.decided_paise.labels(decision).inc(amount)


def _works_of(batch: _Unrecorded) -> list[Work]:
    """The works of a fast-path batch, as the chain would have left them. The counters' numbers are 0, which telemetry
    does not use."""
    for work, offer, fate in batch.granted:
        work.record, out = offer.outputs(fate)
        work.out = list(out)
    return [work for work, *_ in batch.granted]


def _count_decided(meters: "Meters", alike: _Alike) -> None:
    """Count first decisions that are alike."""
    decision = alike.decision
    meters.decisions.labels(decision.decision, decision.reason).inc(len(alike.amounts))
    meters.decided_paise.labels(decision.decision).inc(sum(alike.amounts))
    meters.decision_seconds.labels(decision.decision).observe_all(map(_s, alike.waited_us))


def _time_of_decision(meters: "Meters", work: Work, event: e.PayoutDecided, now_us: int) -> None:
    before, record = work.loaded, work.record
    if record is not None and (before is None or before.decision is None):
        meters.decision_seconds.labels(event.decision).observe(_s(now_us - record.received_at))


def _time_of_hold(meters: "Meters", work: Work, now_us: int) -> None:
    before, after = work.loaded, work.record
    if before is None or after is None:
        return
    ended = (str(after.decision), after.reason) if after.decision != "HELD" else (OVER, after.bank_status)
    meters.hold_seconds.labels(*ended).observe(_s(now_us - before.decided_at))


def _exemplify(meters: "Meters", tracer: Tracer, works: Sequence[Work], now_us: int) -> None:
    """Attach the trace of a batch's slowest first decision to its metric, if it has a trace."""
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
    """Seconds, at least 0: two hosts' clocks may differ a little."""
    return us / US if us > 0 else 0.0


_RECORDED: Mapping[type[e.Fact], Callable[["Meters", Work, Any, int], None]] = {
    e.BankCommandAnswered: _answered,
    e.PayoutSettled: _settled,
    e.NotificationSent: _sent,
    e.NotificationFailed: _unsent,
    e.GovernanceBypassed: _alarm("bypassed"),
    e.PayoutStopped: _alarm("stopped"),
    e.CancelRequested: _alarm("cancel_requested"),
}
