"""Exports spans by OTLP over HTTP: imported only if traces are on.

Sampling, resource, queue and export are the SDK's, set by the standard OTEL_* variables. Its tracer is not used: it
takes times and ids of the moment, and ours come from entries and payouts (ADR 24).
"""

import asyncio
import logging
import os
import socket
import threading
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager, suppress

from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.sdk.trace.sampling import Decision, Sampler, TraceIdRatioBased
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import Link, SpanKind, Status, StatusCode, TraceFlags
from opentelemetry.trace import SpanContext as OtelSpanContext

from streamproc import __version__
from streamproc.telemetry import push
from streamproc.telemetry.spans import LINKS_MAX, Kind, Span, SpanContext
from streamproc.telemetry.unreceived import say_seldom, warn_of_protocol
from streamproc.waiting import set_within

SCHEMA = "https://opentelemetry.io/schemas/1.44.0"
"""The semantic conventions whose names are used; those for messaging are not stable yet."""

log = logging.getLogger(__name__)

_KINDS: Mapping[Kind, SpanKind] = {
    "internal": SpanKind.INTERNAL,
    "server": SpanKind.SERVER,
    "client": SpanKind.CLIENT,
    "producer": SpanKind.PRODUCER,
    "consumer": SpanKind.CONSUMER,
}
_SAMPLED = TraceFlags(TraceFlags.SAMPLED)
_SCOPE = InstrumentationScope("streamproc", __version__, SCHEMA)


class Exporting:
    """Gives spans to an exporter in the background, which drops what its queue cannot hold."""

    def __init__(self, sampler: Sampler, resource: Resource, processor: SpanProcessor) -> None:
        self._resource, self._processor = resource, processor
        self.samples = _quick(sampler)

    def export(self, span: Span) -> None:
        """As `Tracer`."""
        context, parent, error = span.context, span.parent, span.error
        self._processor.on_end(
            ReadableSpan(
                span.name,
                context=OtelSpanContext(context.trace, context.span, is_remote=False, trace_flags=_SAMPLED),
                parent=None if parent is None else _remote(SpanContext(context.trace, parent)),
                resource=self._resource,
                attributes=span.attributes,
                links=[Link(_remote(one)) for one in span.links[:LINKS_MAX]],
                kind=_KINDS[span.kind],
                status=Status() if error is None else Status(StatusCode.ERROR, error),
                start_time=span.begun_ns,
                end_time=max(span.begun_ns, span.ended_ns),
                instrumentation_scope=_SCOPE,
            )
        )

    def close(self) -> None:
        """Export what is left; takes at most the exporter's time limit."""
        self._processor.shutdown()


def _quick(sampler: Sampler) -> Callable[[int], bool]:
    """Whether a trace is sampled, by its id alone. The usual samplers are computed here, since asking the SDK's takes
    10 µs, and every payout asks."""
    name = os.environ.get("OTEL_TRACES_SAMPLER", "").strip().lower().removeprefix("parentbased_")
    if name in ("", "always_on"):
        return lambda _trace: True
    if name == "traceidratio":
        limit, bound = TraceIdRatioBased.TRACE_ID_LIMIT, TraceIdRatioBased(_share()).bound
        return lambda trace: trace & limit < bound
    return lambda trace: sampler.should_sample(None, trace, "payout").decision is not Decision.DROP


def _share() -> float:
    """The sampled share, as the SDK reads it: 1 if it cannot be read."""
    try:
        share = float(os.environ.get("OTEL_TRACES_SAMPLER_ARG", "1"))
    except ValueError:
        return 1.0
    return share if 0.0 <= share <= 1.0 else 1.0


def _remote(context: SpanContext) -> OtelSpanContext:
    return OtelSpanContext(context.trace, context.span, is_remote=True, trace_flags=_SAMPLED)


def resource_of(role: str, more: Mapping[str, str] | None = None) -> Resource:
    """The process that exports: the environment's attributes, and ours if it does not name them."""
    ours = {"service.name": "streamproc", "service.version": __version__, **(more or {})}
    given = _given()
    return Resource.create({k: v for k, v in ours.items() if k not in given} | {"streamproc.role": role})


def _given() -> set[str]:
    """The names of the environment's attributes: the SDK would let ours override them."""
    pairs = (pair.partition("=") for pair in os.environ.get("OTEL_RESOURCE_ATTRIBUTES", "").split(","))
    given = {name.strip() for name, _, value in pairs if value.strip()}
    return given | {"service.name"} if os.environ.get("OTEL_SERVICE_NAME") else given


def instance_of(role: str, name: str) -> dict[str, str]:
    """A process's instance, the same for spans and metrics. `name` is its name on /metrics, like worker-1."""
    # If a receiver took two processes for one, they would reset each other's sums. A process without a number has
    # no usable directory of sockets.
    own = f"{role}-{os.getpid()}" if name == role else name
    return {"service.instance.id": f"{socket.gethostname()}:{own}"}


def open_tracer(role: str, name: str) -> Exporting:
    """A tracer as set by the environment."""
    say_seldom()
    warn_of_protocol("TRACES")
    resource = resource_of(role, instance_of(role, name))
    provider = TracerProvider(resource=resource, shutdown_on_exit=False)
    return Exporting(provider.sampler, resource, BatchSpanProcessor(OTLPSpanExporter()))


@asynccontextmanager
async def tracing(role: str, name: str) -> AsyncIterator[Exporting]:
    """The tracer of a role; at the end it has LAST_S to export its last spans."""
    tracer = open_tracer(role, name)
    try:
        yield tracer
    finally:
        await _close(tracer)


async def _close(tracer: Exporting) -> None:
    """Close in a thread that does not keep the process from ending, as an executor's would."""
    loop, closed = asyncio.get_running_loop(), asyncio.Event()

    def close() -> None:
        tracer.close()
        with suppress(RuntimeError):  # the loop has ended
            loop.call_soon_threadsafe(closed.set)

    threading.Thread(target=close, name="last spans", daemon=True).start()
    if not await set_within(closed, push.LAST_S):
        log.warning("the last spans were not taken within %g s, and may be lost", push.LAST_S)
