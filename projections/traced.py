"""The projector's part of a payout's trace: how long an entry waited to be folded, and when the views showed it.

As elsewhere, it reports sampled payouts, and notable ones from the entry on that made them so.
"""

from collections.abc import Sequence
from time import time_ns

from projections.fold import Step
from streamproc.archive.rows import Row
from streamproc.domain import events as e
from streamproc.domain.entry_ids import id_key
from streamproc.domain.traces import (
    GOVERNED,
    append_span,
    aside_span,
    is_notable,
    parent_span,
    process_span,
    step_span,
    trace_of,
)
from streamproc.domain.wire import decode_meta, type_of
from streamproc.telemetry import watch
from streamproc.telemetry.spans import Span, SpanContext, Tracer, Value


def folded(rows: Sequence[Row], steps: Sequence[Step], begun_ns: int) -> None:
    """Report that these rows were folded into the views, from `begun_ns` until now."""
    tracer = watch.tracer()
    if tracer is None:
        return
    now_ns, of_seq = time_ns(), {row.seq: row for row in rows}
    last: dict[int, Step] = {step.seq: step for step in steps if step.payout}
    with watch.unharmed():
        for seq, step in last.items():
            if is_notable(step.after) or tracer.samples(trace_of(step.payout).trace):
                _export(tracer, of_seq[seq], step, begun_ns, now_ns)


def _export(tracer: Tracer, row: Row, step: Step, begun_ns: int, now_ns: int) -> None:
    trace, root = trace_of(step.payout)
    aside = type(step.event) is e.EntrySetAside
    parent = parent_span(step.partition, row.id, decode_meta(row.m), aside=aside)
    appended_ns = id_key(row.id)[0] * 1_000_000
    about: dict[str, Value] = {
        "streamproc.payout": step.payout,
        "streamproc.partition": step.partition,
        "streamproc.seq": row.seq,
        "messaging.message.id": row.id,
    }
    own = step_span(append_span(step.partition, row.id), "archive")
    if parent == append_span(step.partition, row.id) and type(step.event) not in GOVERNED:
        parent = _export_unhandled(tracer, step, SpanContext(trace, root), appended_ns)
    # No row that is folded says when it was archived. Where the views keep up, that was a moment before.
    tracer.export(Span("archive", SpanContext(trace, own), parent, appended_ns, begun_ns, attributes=about))
    tracer.export(
        Span("view", SpanContext(trace, step_span(own, "view")), own, begun_ns, now_ns, attributes=about)
    )


def _export_unhandled(tracer: Tracer, step: Step, root: SpanContext, at_ns: int) -> int:
    """Report an entry that no group handles. The end of a dead letter is linked to its beginning and to its
    handling."""
    own, event = step_span(append_span(step.partition, step.entry), "told"), step.event
    links, attributes = [], dict[str, Value]({"streamproc.payout": step.payout})
    name = type_of(event)
    if type(event) is e.DeadLetterClosed:
        name = f"dead letter {event.action}"
        attributes |= {"messaging.consumer.group.name": event.group, "messaging.message.id": event.entry}
        links = [
            SpanContext(root.trace, span(event.group, step.partition, event.entry))
            for span in (aside_span, process_span)
        ]
    tracer.export(
        Span(name, SpanContext(root.trace, own), root.span, at_ns, at_ns, attributes=attributes, links=links)
    )
    return own
