"""W3C trace context, version 00, read strictly: it comes from callers and goes into the log."""

import re

from streamproc.telemetry.spans import SpanContext

_TRACEPARENT = re.compile(r"00-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})")


def span_context_of(traceparent: str) -> SpanContext | None:
    """The span that a `traceparent` names; None if it is malformed or not sampled."""
    found = _TRACEPARENT.fullmatch(traceparent)
    if found is None:
        return None
    context = SpanContext(int(found[1], 16), int(found[2], 16))
    return context if context.trace and context.span and int(found[3], 16) & 1 else None


def is_unsampled(traceparent: str) -> bool:
    """Whether a well-formed `traceparent` says that its trace is not sampled."""
    found = _TRACEPARENT.fullmatch(traceparent)
    return found is not None and not int(found[3], 16) & 1


def traceparent_of(context: SpanContext) -> str:
    """The header of a sampled span."""
    return f"00-{context.trace:032x}-{context.span:016x}-01"
