"""A real receiver of OTLP over HTTP: it reads what the exporter sends with OpenTelemetry's own protocol."""

import gzip
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from tests.bank import free_port, listening


@dataclass(frozen=True)
class Span:
    """A span as it came. Ids in hex; times in ns."""

    name: str
    trace: str
    id: str
    parent: str
    begun: int
    ended: int
    failed: bool
    role: str
    about: dict[str, Any]
    links: list[tuple[str, str]]


@dataclass(frozen=True)
class Number:
    """A sum, a gauge, or the count of a histogram, as it came. `began` is ns, 0 of a gauge."""

    kind: str
    value: float
    began: int
    buckets: tuple[int, ...] = ()
    bounds: tuple[float, ...] = ()


Series = tuple[str, str, tuple[tuple[str, str], ...]]
"""Who sent it (service.instance.id), the metric's name, its attributes."""


@dataclass
class Receiver:
    """What came so far."""

    url: str
    spans: list[Span] = field(default_factory=list)
    bodies: list[bytes] = field(default_factory=list)
    numbers: dict[Series, Number] = field(default_factory=dict)
    """The newest of each series."""

    async def take_metrics(self, request: Request) -> Response:
        """One export of metrics."""
        for resource in ExportMetricsServiceRequest.FromString(await self._body(request)).resource_metrics:
            sender = attributes(resource.resource.attributes)["service.instance.id"]
            for metric in (metric for scope in resource.scope_metrics for metric in scope.metrics):
                kind = metric.WhichOneof("data")
                for point in getattr(metric, kind).data_points:
                    series = (sender, metric.name, tuple(sorted(attributes(point.attributes).items())))
                    self.numbers[series] = _number(kind, point)
        return Response(b"", media_type="application/x-protobuf")

    async def take(self, request: Request) -> Response:
        """One export of spans."""
        body = await self._body(request)
        for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
            role = attributes(resource.resource.attributes)["streamproc.role"]
            for scope in resource.scope_spans:
                self.spans += [_span(role, span) for span in scope.spans]
        return Response(b"", media_type="application/x-protobuf")

    async def _body(self, request: Request) -> bytes:
        body = await request.body()
        if request.headers.get("content-encoding") == "gzip":
            body = gzip.decompress(body)
        self.bodies.append(body)
        return body

    def trace(self, trace: str) -> dict[str, Span]:
        """The spans of a trace by their id; one that was told twice is one."""
        return {span.id: span for span in self.spans if span.trace == trace}


def _number(kind: str, point: Any) -> Number:
    if kind == "histogram":
        buckets, bounds = tuple(point.bucket_counts), tuple(point.explicit_bounds)
        return Number(kind, float(point.count), point.start_time_unix_nano, buckets, bounds)
    return Number(kind, point.as_double, point.start_time_unix_nano)


def _span(role: str, span: Any) -> Span:
    return Span(
        name=span.name,
        trace=span.trace_id.hex(),
        id=span.span_id.hex(),
        parent=span.parent_span_id.hex(),
        begun=span.start_time_unix_nano,
        ended=span.end_time_unix_nano,
        failed=span.status.code == 2,
        role=role,
        about=attributes(span.attributes),
        links=[(link.trace_id.hex(), link.span_id.hex()) for link in span.links],
    )


def attributes(given: Any) -> dict[str, Any]:
    """Attributes by name."""
    return {one.key: getattr(one.value, one.value.WhichOneof("value")) for one in given}


@asynccontextmanager
async def receiving_traces() -> AsyncIterator[Receiver]:
    """Listen on a free port, in this process."""
    port = free_port()
    receiver = Receiver(f"http://127.0.0.1:{port}")
    routes = (
        Route("/v1/traces", receiver.take, methods=["POST"]),
        Route("/v1/metrics", receiver.take_metrics, methods=["POST"]),
    )
    async with listening(port, *routes):
        yield receiver
