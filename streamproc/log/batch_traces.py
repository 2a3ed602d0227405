"""A payout's trace, as far as groups make it. Made after each commit, of what is over then (ADR 24).

    payout                                   root: from its first append to the first commit about it
    |- append   (by a producer, at the bank's or a person's word; links to the request that brought it)
    |  `- process governance                 one attempt each; that of the commit has an id that can be computed
    |     |- screening, velocity, ...            stages; or `fast_path`, which is all of them at once
    |     |- commit
    |     `- process execution               of the decision that this commit appended
    |        |- enact
    |        |  |- barrier
    |        |  `- razorpay POST
    |        `- commit
    `- hold                                  the wait for people, told when it has ended

A trace that is not sampled is told from the moment at which its payout becomes notable, below its root.
"""

import secrets
from collections.abc import Sequence
from typing import NamedTuple

from streamproc.domain import events as e
from streamproc.domain.intent import without_personal
from streamproc.domain.notice import numbers_masked
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
from streamproc.domain.wire import Meta, decode_meta
from streamproc.errors import StreamprocError, Unprocessable
from streamproc.log.names import Names
from streamproc.log.work import Group, Passed, Work, written_ms
from streamproc.telemetry.spans import Span, SpanContext, Tracer, Value, new_span_context
from streamproc.telemetry.trace_context import span_context_of
from streamproc.telemetry.watch import Call

GOOD = frozenset({"ok", "2xx"})
DESTINATION = Names(0).log.replace("0", "partition")
"""The template of a log's name: span names must be few."""

FAST_PATH = "fast_path"
"""Name of the fast path in traces, which is every stage at once (ADR 25)."""


class Times(NamedTuple):
    """Times of a batch (ns since 1970): loaded, last stage ended, committed."""

    loaded_ns: int
    handled_ns: int
    committed_ns: int


class BatchTraces:
    """Makes the spans of one group's batches on one partition."""

    def __init__(self, group: Group, partition: int) -> None:
        self._group, self._partition = group.name, partition
        self._decides = not group.outputs_are_facts
        self._consumed = {stage.name: stage.consumes for stage in group.stages} | {FAST_PATH: group.consumes}
        self._common: dict[str, Value] = {
            "messaging.system": "redis",
            "messaging.destination.name": Names(partition).log,
            "messaging.destination.template": DESTINATION,
            "messaging.destination.partition.id": str(partition),
        }

    # ---- what became of entries ----

    def committed(
        self, tracer: Tracer, works: Sequence[Work], times: Times, passed: Passed, calls: Sequence[Call]
    ) -> None:
        """Works that this worker committed, with the batch's stages and the calls made for all of them."""
        kept = [work for work in works if work.payout and self._is_kept(tracer, work)]
        if not kept:
            return
        batch = new_span_context() if len(works) > 1 else None
        for work in kept:
            self._open(tracer, work, times.committed_ns)
            self._process(tracer, work, times, passed, batch, () if batch else calls)
            self._hold(tracer, work, times.committed_ns)
        if batch is not None:
            self._batch(tracer, batch, kept, len(works), times, calls)

    def deferred(self, tracer: Tracer, works: Sequence[Work], begun_ns: int) -> None:
        """Failed attempts, of sampled payouts only: whether the others are notable is not known yet."""
        for work in works:
            if work.payout and tracer.samples(trace_of(work.payout).trace):
                self._failed(tracer, work, begun_ns, secrets.randbits(64) or 1, "process")

    def dead_lettered(self, tracer: Tracer, works: Sequence[Work], begun_ns: int) -> None:
        """Entries that became dead letters, which is always reported."""
        for work in works:
            if work.payout:
                if work.loaded is None or not self._was_kept(tracer, work):
                    self._open(tracer, work, begun_ns, force=True)
                aside = aside_span(self._group, self._partition, work.entry.decode())
                self._failed(tracer, work, begun_ns, aside, "set aside")

    def _is_kept(self, tracer: Tracer, work: Work) -> bool:
        return (
            is_notable(work.record) or is_notable(work.loaded) or tracer.samples(trace_of(work.payout).trace)
        )

    def _was_kept(self, tracer: Tracer, work: Work) -> bool:
        """Whether what came before this work was reported."""
        return is_notable(work.loaded) or tracer.samples(trace_of(work.payout).trace)

    # ---- spans ----

    def _open(self, tracer: Tracer, work: Work, ended_ns: int, *, force: bool = False) -> None:
        """The root, at the first commit that is reported of a payout, and the append of what a producer brought."""
        trace, root = trace_of(work.payout)
        record, entry = work.record or work.loaded, work.entry.decode()
        appended_ns = written_ms(work.entry) * 1_000_000
        if force or work.loaded is None or not self._was_kept(tracer, work):
            begun_ns = record.received_at * 1000 if record is not None else appended_ns
            tracer.export(
                Span(
                    "payout", SpanContext(trace, root), None, begun_ns, ended_ns, attributes=self._about(work)
                )
            )
        meta = _meta_of(work)
        # A timer is handled by two groups; of these the one that decides reports it.
        if not meta.cause and (self._decides or not any(type(event) in GOVERNED for event in work.events)):
            caller = span_context_of(meta.trace)
            at_ns = min((event.at * 1000 for event in work.events), default=appended_ns)
            tracer.export(
                Span(
                    f"append {DESTINATION}",
                    SpanContext(trace, append_span(self._partition, entry)),
                    root,
                    min(at_ns, appended_ns),
                    # An entry's id has milliseconds, so it may lie a little before the event's time.
                    max(at_ns, appended_ns),
                    kind="producer",
                    attributes={
                        **self._common,
                        **_of_entry(work),
                        "messaging.operation.name": "append",
                        "messaging.operation.type": "send",
                    },
                    links=[caller] if caller else [],
                )
            )

    def _parent(self, tracer: Tracer, work: Work) -> int:
        aside = any(type(event) is e.EntrySetAside for event in work.events)
        meta = _meta_of(work)
        if meta.cause and not self._was_kept(tracer, work):
            return trace_of(work.payout).root
        return parent_span(self._partition, work.entry.decode(), meta, aside=aside)

    def _process(
        self,
        tracer: Tracer,
        work: Work,
        times: Times,
        passed: Passed,
        batch: SpanContext | None,
        calls: Sequence[Call],
    ) -> None:
        trace, _ = trace_of(work.payout)
        own = process_span(self._group, self._partition, work.entry.decode())
        passed = (*work.passed, *passed)
        tracer.export(
            Span(
                f"process {DESTINATION}",
                SpanContext(trace, own),
                self._parent(tracer, work),
                _begun_ns(work, times.loaded_ns),
                times.committed_ns,
                kind="consumer",
                attributes=self._processing(work) | self._about(work),
                links=[batch] if batch else [],
            )
        )
        self._stages(tracer, work, SpanContext(trace, own), passed, calls)
        tracer.export(
            Span(
                f"commit {DESTINATION}",
                SpanContext(trace, step_span(own, "commit")),
                own,
                times.handled_ns,
                times.committed_ns,
                kind="client",
                attributes={
                    **self._common,
                    "messaging.operation.name": "commit",
                    "messaging.operation.type": "settle",
                },
            )
        )

    def _stages(
        self, tracer: Tracer, work: Work, process: SpanContext, passed: Passed, calls: Sequence[Call]
    ) -> None:
        """The stages that handled the work, each with the calls made meanwhile."""
        kinds = {type(event) for event in (*work.events, *work.out)}
        steps = dict[SpanContext, tuple[int, int]]()
        for stage, begun_ns, ended_ns in passed:
            if kinds.isdisjoint(self._consumed.get(stage, ())):
                continue
            step = SpanContext(process.trace, step_span(process.span, stage))
            if step in steps:  # of a later pass
                step = SpanContext(process.trace, step_span(process.span, f"{stage} {begun_ns}"))
            steps[step] = begun_ns, ended_ns
            attributes = {"streamproc.stage": stage}
            tracer.export(Span(stage, step, process.span, begun_ns, ended_ns, attributes=attributes))
        for call in (*calls, *work.calls):
            within = [step for step, (begun, ended) in steps.items() if begun <= call.begun_ns <= ended]
            _export_call(tracer, call, within[0] if within else process)

    def _hold(self, tracer: Tracer, work: Work, now_ns: int) -> None:
        """The wait for a person, once it is over."""
        before, after = work.loaded, work.record
        if before is None or after is None or not work.ends_hold():
            return
        trace, root = trace_of(work.payout)
        attributes: dict[str, Value] = {
            "streamproc.payout": work.payout,
            "streamproc.held_for": before.reason,
            "streamproc.state": after.state,
        }
        if after.decision is not None and after.decision != "HELD":
            attributes |= {"streamproc.decision": after.decision, "streamproc.reason": after.reason}
        tracer.export(
            Span(
                "hold",
                SpanContext(trace, step_span(root, f"hold {before.decided_at}")),
                root,
                before.decided_at * 1000,
                now_ns,
                attributes=attributes,
                links=[SpanContext(trace, process_span(self._group, self._partition, work.entry.decode()))],
            )
        )

    def _failed(self, tracer: Tracer, work: Work, begun_ns: int, own: int, what: str) -> None:
        problem, last_ns = work.problem, max((call.ended_ns for call in work.calls), default=begun_ns)
        begun_ns, (trace, _) = _begun_ns(work, begun_ns), trace_of(work.payout)
        why = _why(work, problem) if isinstance(problem, StreamprocError) else type(problem).__name__
        tracer.export(
            Span(
                f"{what} {DESTINATION}",
                SpanContext(trace, own),
                self._parent(tracer, work),
                begun_ns,
                last_ns,
                kind="consumer",
                attributes=self._processing(work)
                | self._about(work)
                | {"error.type": type(problem).__name__},
                error=why,
            )
        )
        for call in work.calls:
            _export_call(tracer, call, SpanContext(trace, own))

    def _batch(
        self,
        tracer: Tracer,
        batch: SpanContext,
        kept: Sequence[Work],
        size: int,
        times: Times,
        calls: Sequence[Call],
    ) -> None:
        """What several payouts shared, as a trace of its own to which theirs are linked, since a span has one trace."""
        tracer.export(
            Span(
                f"batch {DESTINATION}",
                batch,
                None,
                times.loaded_ns,
                times.committed_ns,
                attributes={
                    **self._common,
                    "messaging.consumer.group.name": self._group,
                    "messaging.batch.message_count": size,
                },
                links=[
                    SpanContext(
                        trace_of(work.payout).trace,
                        process_span(self._group, self._partition, work.entry.decode()),
                    )
                    for work in kept
                ],
            )
        )
        for call in calls:
            _export_call(tracer, call, batch)

    # ---- attributes ----

    def _processing(self, work: Work) -> dict[str, Value]:
        return {
            **self._common,
            **_of_entry(work),
            "messaging.operation.name": "process",
            "messaging.operation.type": "process",
            "messaging.consumer.group.name": self._group,
            "streamproc.taken_up": work.taken,
        }

    def _about(self, work: Work) -> dict[str, Value]:
        record = work.record or work.loaded
        about: dict[str, Value] = {"streamproc.payout": work.payout}
        if record is not None:
            about |= {
                "streamproc.agent": record.agent,
                "streamproc.account": record.account,
                "streamproc.amount_paise": record.amount,
                "streamproc.state": record.state,
            }
            if record.decision is not None:
                about |= {"streamproc.decision": record.decision, "streamproc.reason": record.reason}
        return about


def _begun_ns(work: Work, loaded_ns: int) -> int:
    """When the handling of a work began: with its first pass, if it keeps the outputs of that."""
    return min([loaded_ns, *(begun_ns for _, begun_ns, _ in work.passed)])


def _why(work: Work, problem: StreamprocError) -> str:
    """A problem without bank details, which the bank may repeat in what it says of an error."""
    record = work.record or work.loaded
    intent = record.intent if record is not None else None
    return numbers_masked(without_personal(str(problem), intent.beneficiary if intent is not None else None))


def _meta_of(work: Work) -> Meta:
    """An entry's metadata; where they cannot be read, it counts as a producer's."""
    try:
        return decode_meta(work.m)
    except Unprocessable:
        return Meta()


def _of_entry(work: Work) -> dict[str, Value]:
    return {
        "messaging.message.id": work.entry.decode(),
        "messaging.message.conversation_id": work.payout,
    }


def _export_call(tracer: Tracer, call: Call, parent: SpanContext) -> None:
    """A wait within a step. Calls to others are clients; no trace context is sent to them."""
    is_call = call.what != "barrier"
    attributes: dict[str, Value] = {"streamproc.outcome": call.outcome}
    if is_call:
        method, _, path = call.detail.partition(" ")
        attributes |= {"service.peer.name": call.what, "http.request.method": method}
        if call.server is not None:
            attributes |= {
                "server.address": call.server.address,
                "server.port": call.server.port,
                # Never the query: Safe Browsing's key travels in it, and the number of our account in the bank's.
                "url.full": f"{call.server.base}/{path.lstrip('/')}",
            }
    failed = call.outcome not in GOOD
    if failed:
        attributes["error.type"] = call.outcome
    tracer.export(
        Span(
            f"{call.what} {call.detail.partition(' ')[0]}".strip(),
            new_span_context(parent.trace),
            parent.span,
            call.begun_ns,
            call.ended_ns,
            kind="client" if is_call else "internal",
            attributes=attributes,
            error=call.outcome if failed else None,
        )
    )
