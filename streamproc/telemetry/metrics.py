"""Every metric of a process, with name, unit and labels. The number of label values does not grow with traffic.

A name ends with its unit: `_seconds`, `_paise`, `_bytes`. What is read from the stores at a scrape is in
`streamproc/operate/gauges.py`. docs/telemetry.md lists both, and a test compares it with the code.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Protocol

from prometheus_client import CollectorRegistry, Counter, Gauge, PlatformCollector, ProcessCollector
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from streamproc.telemetry.histogram import Histogram

DECISION_S = (
    *(0.0005, 0.001, 0.002, 0.004, 0.008, 0.016, 0.032, 0.064, 0.128),
    *(0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 60.0),
)
"""For what has an aim: a decision within 4 ms of its append, at the 99th percentile."""
STEP_S = (0.001, 0.004, 0.016, 0.064, 0.25, 0.5, 1.0, 2.5, 10.0, 60.0)
"""For what takes milliseconds if all is well, and of which a person asks what is slow. Each bound is a series for each
process and label, so there are fewer than of an aim."""
CALL_S = (0.01, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 60.0)
"""For calls over a network, with the wait for their turn."""
REQUEST_S = (0.01, 0.05, 0.25, 1.0, 5.0)
"""For requests to us, of which there are many by route and status. The bank wants its answer within 5 s."""
SLOW_S = (0.01, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 900.0, 3600.0)
"""For what waits for others: the archive, the bank, the pace of its calls."""
HOLD_S = (60.0, 300.0, 900.0, 3600.0, 4 * 3600.0, 8 * 3600.0, 12 * 3600.0, 24 * 3600.0, 72 * 3600.0)
"""For what waits for people."""
BATCH = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0)

ALARMS = ("bypassed", "stopped", "cancel_requested")
DECISIONS = ("APPROVED", "REJECTED", "HELD")
TAKEN_UP = ("claim", "retry")
NOT_DONE = ("deferred", "set_aside")
"""Labels of what happens seldom. Its counters start at 0, since Prometheus sees no increase in a series that begins
with 1."""
BREAKER_STATES = ("closed", "half_open", "open")


class Archived(Protocol):
    """The part of a projector's progress that is counted."""

    @property
    def partition(self) -> int: ...
    @property
    def entries(self) -> int: ...


class Meters:
    """The instruments of one process. Only for the loop's thread and the one that collects."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.registry = registry
        ProcessCollector(registry=registry)
        PlatformCollector(registry=registry)
        self._make_decided()
        self._make_engine()
        self._make_edges()

    def _make_decided(self) -> None:
        self.decisions = self._counter(
            "decisions", "Decisions recorded; a held payout has a second one", "decision", "reason"
        )
        self.decided_paise = self._counter("decided_paise", "Amounts of the decisions in paise", "decision")
        self.decision_seconds = self._histogram(
            "decision_seconds", "From the append of a payout to its first decision", DECISION_S, "decision"
        )
        self.bank_told_seconds = self._histogram(
            "bank_told_seconds", "From a decision to the bank's recorded answer", SLOW_S, "command", "outcome"
        )
        self.settled_seconds = self._histogram(
            "settled_seconds",
            "From the bank's status in the log to the settled reservation",
            STEP_S,
            "settlement",
        )
        self.hold_seconds = self._histogram(
            "hold_seconds", "How long ended holds were held", HOLD_S, "decision", "reason"
        )
        self.notifications = self._counter(
            "notifications", "Messages to people, by channel, and those given up", "kind", "outcome"
        )
        self.alarms = self._counter("alarms", "Recorded facts that a person must look at", "kind")
        for kind in ALARMS:
            self.alarms.labels(kind)
        for decision in DECISIONS:
            self.decided_paise.labels(decision)

    def _make_engine(self) -> None:
        self.stage_seconds = self._histogram(
            "stage_seconds", "A stage over one batch", STEP_S, "group", "stage"
        )
        self.commit_seconds = self._histogram("commit_seconds", "One batch's commit", STEP_S, "group")
        self.batch_entries = self._histogram("batch_entries", "Entries in one commit", BATCH, "group")
        self.entries = self._counter("entries", "Entries handled, by what became of them", "group", "outcome")
        self.taken_up = self._counter(
            "taken_up_entries",
            "Pending entries taken up: claimed from another consumer, or retried",
            "group",
            "how",
        )
        self.loop_lag_seconds = self._histogram(
            "loop_lag_seconds", "How much later than asked the event loop woke up", STEP_S
        )

    def _make_edges(self) -> None:
        self.barrier_seconds = self._histogram(
            "barrier_seconds", "Waits for a decision to be archived before money moves", STEP_S, "outcome"
        )
        self.outbound_seconds = self._histogram(
            "outbound_seconds",
            "Calls to outside systems, waiting for their turn included",
            CALL_S,
            "system",
            "outcome",
        )
        self.appends = self._counter(
            "appends", "Deliveries appended, or known already", "producer", "outcome"
        )
        self.append_seconds = self._histogram(
            "append_seconds", "One append of all that waited, synced", STEP_S, "producer"
        )
        self.http_seconds = self._histogram(
            "http_seconds", "HTTP requests answered", REQUEST_S, "method", "route", "status"
        )
        self.polls = self._counter("polls", "Passes over the bank's list", "outcome")
        self.archived_entries = self._counter("archived_entries", "Entries archived", "partition")
        self.replay_done = self._gauge(
            "replay_entries_done", "Entries that a running replay has folded", "task"
        )
        self.replay_wanted = self._gauge(
            "replay_entries_wanted", "Entries that a running replay has to fold", "task"
        )

    # ---- counted in several places ----

    def begin_group(self, group: str) -> None:
        """This process consumes for a group."""
        for how in TAKEN_UP:
            self.taken_up.labels(group, how)
        for outcome in NOT_DONE:
            self.entries.labels(group, outcome)

    def waited(self, what: str, outcome: str, seconds: float) -> None:
        """Count a wait: at the barrier, or for a call to an outside system, by its name."""
        if what == "barrier":
            self.barrier_seconds.labels(outcome).observe(seconds)
        else:
            self.outbound_seconds.labels(what, outcome).observe(seconds)

    def appended(self, producer: str, new: int, known: int, seconds: float) -> None:
        """Count an append of several deliveries."""
        self.append_seconds.labels(producer).observe(seconds)
        self.appends.labels(producer, "new").inc(new)
        self.appends.labels(producer, "known").inc(known)

    def archived(self, progress: Archived) -> None:
        """Count an archived batch."""
        self.archived_entries.labels(str(progress.partition)).inc(progress.entries)

    def watch_breakers(self, states: Callable[[], Mapping[str, str]]) -> None:
        """Show the states of these breakers, by system, at each scrape."""
        self.registry.register(_Breakers(states))

    # ---- making ----

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(f"streamproc_{name}", text, labels, registry=self.registry)

    def _gauge(self, name: str, text: str, *labels: str) -> Gauge:
        return Gauge(f"streamproc_{name}", text, labels, registry=self.registry)

    def _histogram(self, name: str, text: str, buckets: tuple[float, ...], *labels: str) -> Histogram:
        histogram = Histogram(f"streamproc_{name}", text, buckets, labels)
        self.registry.register(histogram)
        return histogram


class _Breakers(Collector):
    def __init__(self, states: Callable[[], Mapping[str, str]]) -> None:
        self._states = states

    def collect(self) -> Iterable[GaugeMetricFamily]:
        family = GaugeMetricFamily(
            "streamproc_breaker_state", "1 for the state that a breaker is in", labels=("system", "state")
        )
        for system, now in self._states().items():
            for state in BREAKER_STATES:
                family.add_metric((system, state), float(state == now))
        yield family
