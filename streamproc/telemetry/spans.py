"""Spans: made when what they describe is over, so that no span is open while a payout waits."""

import os
import secrets
from collections.abc import Callable, Mapping, Sequence
from typing import Literal, NamedTuple, Protocol

LINKS_MAX = 128
"""Links of one span: the SDK's own limit."""
ENDPOINTS = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
NEVER = ("always_off", "parentbased_always_off")

Kind = Literal["internal", "server", "client", "producer", "consumer"]
Value = str | int | bool


class SpanContext(NamedTuple):
    """Identifies a span: its trace and its id."""

    trace: int
    span: int


class Span(NamedTuple):
    """A span that is over. `parent`: the span's id in the same trace, None for a root. `error`: why it failed, if it
    did. Times are ns since 1970."""

    name: str
    context: SpanContext
    parent: int | None
    begun_ns: int
    ended_ns: int
    attributes: Mapping[str, Value]
    kind: Kind = "internal"
    links: Sequence[SpanContext] = ()
    error: str | None = None


class Tracer(Protocol):
    """Takes spans. Never waits and never raises."""

    @property
    def samples(self) -> Callable[[int], bool]:
        """Whether a trace is sampled, by its id: the same in every process and at any time."""
        ...

    def export(self, span: Span) -> None:
        """Take a span, or drop it where there is no room for it."""
        ...


def new_span_context(trace: int = 0) -> SpanContext:
    """A random span id, in a new trace unless one is named."""
    return SpanContext(trace or secrets.randbits(128) or 1, secrets.randbits(64) or 1)


def is_wanted() -> bool:
    """Whether the environment names a receiver of traces, and does not switch them off or sample none."""
    is_never = os.environ.get("OTEL_TRACES_SAMPLER", "").strip().lower() in NEVER
    is_sent = is_otlp("OTEL_TRACES_EXPORTER", "otlp") and not is_never
    return is_sent and any(os.environ.get(name, "").strip() for name in ENDPOINTS)


def is_otlp(variable: str, default: str) -> bool:
    """Whether OTLP is one of the exporters that a variable lists (empty: the default), and the SDK is not disabled."""
    off = os.environ.get("OTEL_SDK_DISABLED", "").strip().lower() == "true"
    exporters = os.environ.get(variable, "").strip() or default
    return not off and "otlp" in {one.strip() for one in exporters.lower().split(",")}
