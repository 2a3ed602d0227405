"""Metrics as OTLP: imported only if metrics are pushed.

Names and labels are those of /metrics, so that dashboards and alerts read both. Sums and histograms are cumulative
from the start of the process. Exemplars are left out: in OTLP they name a span, and ours name a trace only.
"""

import re
import time
from collections import defaultdict
from collections.abc import Iterable, Sequence

from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
from opentelemetry.sdk.metrics.export import (
    AggregationTemporality,
    Gauge,
    Histogram,
    HistogramDataPoint,
    Metric,
    MetricsData,
    NumberDataPoint,
    ResourceMetrics,
    ScopeMetrics,
    Sum,
)
from opentelemetry.sdk.util.instrumentation import InstrumentationScope

from streamproc import __version__
from streamproc.telemetry.exposure import Family, Page, Point
from streamproc.telemetry.otlp_traces import SCHEMA, instance_of, resource_of
from streamproc.telemetry.unreceived import say_seldom, warn_of_protocol

UNITS = {"seconds": "s", "bytes": "By"}
_SCOPE = InstrumentationScope("streamproc", __version__, SCHEMA)
_CUMULATIVE = AggregationTemporality.CUMULATIVE


class Exporter:
    """Sends the metrics of one process. `name` is its name on /metrics, like worker-1."""

    def __init__(self, role: str, name: str) -> None:
        say_seldom()
        warn_of_protocol("METRICS")
        self._resource = resource_of(role, instance_of(role, name))
        self._began_ns = time.time_ns()
        self._exporter = OTLPMetricExporter()

    def send(self, page: Page) -> None:
        """Send a page. If it is not taken, the exporter logs that, and the next page has the same sums."""
        now_ns = time.time_ns()
        metrics = [metric for family in page for metric in metrics_of(family, self._began_ns, now_ns)]
        scope = ScopeMetrics(_SCOPE, metrics, SCHEMA)
        self._exporter.export(MetricsData([ResourceMetrics(self._resource, [scope], SCHEMA)]))

    def close(self) -> None:
        """Close; nothing may be sent after this."""
        self._exporter.shutdown()


def metrics_of(family: Family, began_ns: int, now_ns: int) -> Iterable[Metric]:
    """A family as OTLP metrics, by its kind."""
    if not family.points:
        return  # nothing was counted yet, and OTLP has no metric without data
    if family.kind == "histogram":
        yield _metric(family.name, family, Histogram(_histograms(family, began_ns, now_ns), _CUMULATIVE))
        return
    by_name: dict[str, list[Point]] = defaultdict(list)
    for point in family.points:
        by_name[point.name].append(point)
    for name, points in by_name.items():
        numbers = [NumberDataPoint(point.labels, began_ns, now_ns, point.value) for point in points]
        is_sum = family.kind == "counter"
        yield _metric(
            name, family, Sum(numbers, _CUMULATIVE, is_monotonic=True) if is_sum else Gauge(numbers)
        )


def _metric(name: str, family: Family, data: Sum | Gauge | Histogram) -> Metric:
    unit = UNITS.get(re.sub(r"_total$", "", name).rpartition("_")[2], "")
    return Metric(name, family.text, unit, data)


def _histograms(family: Family, began_ns: int, now_ns: int) -> list[HistogramDataPoint]:
    """The series of a histogram, each made of its samples. Minimum and maximum are not known."""
    series: dict[tuple[tuple[str, str], ...], dict[str, list[Point]]] = defaultdict(lambda: defaultdict(list))
    for point in family.points:
        labels = tuple((name, value) for name, value in point.labels.items() if name != "le")
        series[labels][point.name.rpartition("_")[2]].append(point)
    return [
        HistogramDataPoint(
            dict(labels), began_ns, now_ns,
            count=int(parts["count"][0].value), sum=parts["sum"][0].value,
            bucket_counts=_apart([int(one.value) for one in parts["bucket"]]),
            explicit_bounds=[float(one.labels["le"]) for one in parts["bucket"][:-1]],
            min=None, max=None,  # type: ignore[arg-type]  # optional in OTLP, and left out by the encoder
        )
        for labels, parts in series.items()
    ]  # fmt: skip


def _apart(cumulative: Sequence[int]) -> list[int]:
    """The count of each bucket, from cumulative counts."""
    return [upper - lower for lower, upper in zip([0, *cumulative], cumulative, strict=False)]
