"""A real receiver of OTLP over HTTP: it reads what the exporter sends with OpenTelemetry's own protocol."""

import gzip
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

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


@dataclass
class Receiver:
    """What came so far."""

    url: str
    spans: list[Span] = field(default_factory=list)
    bodies: list[bytes] = field(default_factory=list)

    async def take(self, request: Request) -> Response:
        """One export."""
        body = await request.body()
        if request.headers.get("content-encoding") == "gzip":
            body = gzip.decompress(body)
        self.bodies.append(body)
        for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
            role = attributes(resource.resource.attributes)["streamproc.role"]
            for scope in resource.scope_spans:
                self.spans += [_span(role, span) for span in scope.spans]
        return Response(b"", media_type="application/x-protobuf")

    def trace(self, trace: str) -> dict[str, Span]:
        """The spans of a trace by their id; one that was told twice is one."""
        return {span.id: span for span in self.spans if span.trace == trace}


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
    async with listening(port, Route("/v1/traces", receiver.take, methods=["POST"])):
        yield receiver
