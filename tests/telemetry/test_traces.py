"""What a batch tells of a payout's trace: dead letters and their redrive, batches, ids that can be computed."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import pytest
from prometheus_client import CollectorRegistry

from consumers.channels import Channels
from projections.fold import decode, steps_of
from projections.traced import folded
from streamproc.domain.events import PayoutObserved, PayoutRequested
from streamproc.domain.traces import aside_span, process_span, trace_id, trace_of
from streamproc.errors import Unprocessable
from streamproc.log.batch import Handler
from streamproc.log.digests import Digests
from streamproc.log.stream import LogView
from streamproc.log.work import BatchContext, Group, Item, Stage
from streamproc.operate import dead
from streamproc.operate.people import notification_over
from streamproc.operate.site import Site
from streamproc.telemetry import watch
from streamproc.telemetry.exposure import snapshot
from streamproc.telemetry.metrics import Meters
from streamproc.telemetry.spans import Span, SpanContext
from streamproc.telemetry.trace_context import span_context_of, traceparent_of
from tests.bank import until
from tests.engine import Engine
from tests.words import attributed, contact, observed, request, requested

POLICIES = "policies: {bot: {daily_limit: 10_000_000, rate_limit: {count: 0, window: 60s}}}"


@dataclass
class Keeping:
    """Takes spans and keeps them."""

    share: float = 1.0
    told: list[Span] = field(default_factory=list)

    def samples(self, trace: int) -> bool:
        return trace / (1 << 128) < self.share

    def export(self, span: Span) -> None:
        assert span.begun_ns > 0
        self.told.append(span)

    def of(self, payout: str) -> dict[int, Span]:
        return {one.context.span: one for one in self.told if one.context.trace == trace_of(payout).trace}


@pytest.fixture
def tracer() -> Iterator[Keeping]:
    keeping = Keeping()
    watch.turn_on(Meters(CollectorRegistry()), keeping)
    yield keeping
    watch.turn_off()


def assert_connected(trace: dict[int, Span]) -> None:
    assert [one.name for one in trace.values() if one.parent is None] == ["payout"]
    assert [one for one in trace.values() if one.parent is not None and one.parent not in trace] == []


async def archived(engine: Engine) -> None:
    """Tell of the whole log as the projector does when it is shown in the views."""
    async with LogView(engine.url, 0) as view:
        rows = [Row(seq, *entry) for seq, entry in enumerate(await view.read("0-0", 10_000, 0), 1)]
    folded(rows, steps_of(0, [decode(0, row) for row in rows], {}), 1)


@dataclass
class Row:
    seq: int
    id: str
    e: bytes
    m: bytes


async def test_a_dead_letter_and_its_redrive_are_in_the_payouts_tree_and_linked(
    redis_url: str, tracer: Keeping
) -> None:
    mended = False

    async def handle(items: Sequence[Item], ctx: BatchContext) -> None:
        for work, event in items:
            if not mended:
                work.fail(Unprocessable("nobody can read this"))
            elif type(event) is PayoutObserved:
                work.emit(event)

    stage = Stage(name="screening", consumes=frozenset({PayoutObserved}), handle=handle)
    async with Engine(redis_url, groups=[Group(name="governance", stages=(stage,))]) as engine:
        await engine.deliver(observed())
        site = Site(engine.url, engine.client, 1)
        [letter] = await dead.list_letters(site)
        entry = letter["entry"].removeprefix("0:")
        mended = True
        await dead.redrive(site, letter["id"], attributed("lena"))

        async def handled() -> bool:
            return process_span("governance", 0, entry) in tracer.of("pout_1")

        await until(handled, what="the redriven entry is handled")
        await engine.settled()
        await archived(engine)

    trace = tracer.of("pout_1")
    assert_connected(trace)
    aside = trace[aside_span("governance", 0, entry)]
    assert aside.error == "nobody can read this"
    [redrive] = [one for one in trace.values() if one.name == "dead letter redrive"]
    assert {trace[link.span].name for link in redrive.links} == {aside.name, "process sp:{partition}:log"}
    assert trace[process_span("governance", 0, entry)].attributes["streamproc.taken_up"] is True


async def test_what_the_bank_repeats_of_an_account_is_not_told(redis_url: str, tracer: Keeping) -> None:
    async def handle(items: Sequence[Item], ctx: BatchContext) -> None:
        for work, _ in items:
            work.fail(Unprocessable("403, not from 7878780080316316 to somebody@okbank of Asha Rao"))

    stage = Stage(name="screening", consumes=frozenset({PayoutRequested}), handle=handle)
    async with Engine(redis_url, groups=[Group(name="governance", stages=(stage,))]) as engine:
        await engine.producer.append(request(asked := requested(payee=contact("Asha Rao"))))
        await engine.settled()
    [aside] = [one for one in tracer.of(asked.payout).values() if one.name.startswith("set aside")]
    assert aside.error == "403, not from ************6316 to ***********bank of **** Rao"


async def test_that_people_are_told_of_a_dead_letter_is_below_it_in_the_tree(
    redis_url: str, tracer: Keeping
) -> None:
    async def handle(items: Sequence[Item], ctx: BatchContext) -> None:
        for work, _ in items:
            work.fail(Unprocessable("nobody can read this"))

    stage = Stage(name="screening", consumes=frozenset({PayoutObserved}), handle=handle)
    people = notification_over(redis_url, Channels(), Digests(redis_url))
    async with Engine(redis_url, groups=[Group(name="governance", stages=(stage,)), people]) as engine:
        await engine.deliver(observed())
        [entry] = [row[0].decode() for row in await engine.client.xrange(engine.names.log, count=1)]
        await engine.settled()
        await archived(engine)
    trace = tracer.of("pout_1")
    assert_connected(trace)
    [told] = [one for one in trace.values() if "notify" in one.name]
    assert told.parent is not None
    assert trace[told.parent].parent == aside_span("governance", 0, entry)


async def test_what_a_batch_shared_is_linked_with_each_of_its_payouts(
    redis_url: str, tracer: Keeping
) -> None:
    async with Engine(redis_url) as engine:
        await engine.apply(POLICIES)
        await engine.stop()
        payouts = [f"pout_{n}" for n in range(3)]
        for payout in payouts:
            await engine.append("acc_1", observed(payout, url="https://shop.example.com"))
        engine.start()
        await engine.settled()
        await archived(engine)
    for payout in payouts:
        assert_connected(tracer.of(payout))
    [batch] = [one for one in tracer.told if one.name.startswith("batch")]
    assert {link.trace for link in batch.links} == {trace_of(payout).trace for payout in payouts}
    assert all(list(one.links) == [batch.context] for one in tracer.told if one.name.startswith("process"))


async def test_a_payout_that_is_not_sampled_is_told_of_from_its_rejection_on(
    redis_url: str, tracer: Keeping
) -> None:
    tracer.share = 0.0
    async with Engine(redis_url) as engine:
        await engine.apply("policies: {bot: {per_txn_limit: 100}}")
        await engine.deliver(observed("good", 100), observed("bad", 101))
        await archived(engine)
    assert tracer.of("good") == {}
    assert_connected(tracer.of("bad"))
    assert {"fast_path", "archive", "view"} <= {one.name for one in tracer.of("bad").values()}


async def test_the_slowest_decision_of_a_batch_names_its_trace_as_an_exemplar(
    redis_url: str, tracer: Keeping
) -> None:
    async with Engine(redis_url) as engine:
        await engine.apply(POLICIES)
        await engine.deliver(observed())
    meters = watch.meters()
    assert meters is not None
    exemplars = [p.exemplar for f in snapshot(meters.registry) for p in f.points if p.exemplar]
    assert [labels for labels, *_ in exemplars] == [{"trace_id": trace_id("pout_1")}]


class Broken(Keeping):
    """Fails at whatever it is told."""

    def export(self, span: Span) -> None:  # type: ignore[override]
        raise RuntimeError("nobody named this")


async def test_a_defect_of_the_telling_stops_no_payout(
    redis_url: str, tracer: Keeping, caplog: pytest.LogCaptureFixture
) -> None:
    watch.turn_on(Meters(CollectorRegistry()), Broken())
    async with Engine(redis_url) as engine:
        await engine.apply(POLICIES)
        await engine.deliver(observed("pout_1", 100))
        await engine.deliver(observed("pout_2", 100))
        await archived(engine)
        assert (await engine.record("pout_2")).decision == "APPROVED"
    assert caplog.text.count("metrics or traces are incomplete from now on") == 1


async def test_nothing_is_told_or_counted_by_a_worker_whose_commit_came_second(
    redis_url: str, tracer: Keeping
) -> None:
    async with Engine(redis_url) as engine:
        await engine.apply(POLICIES)
        await engine.deliver(*(observed(f"pout_{n}", 100) for n in range(5)))
        spans, meters = len(tracer.told), watch.meters()
        raw = await engine.client.execute_command("XRANGE", engine.names.log, "-", "+")
        late = Handler(0, engine.groups[0], engine.limits)
        await late.handle(engine.client, raw, taken=False)
    assert meters is not None
    counted = {
        (point.name, *point.labels.values()): point.value
        for family in snapshot(meters.registry)
        for point in family.points
    }
    assert counted["streamproc_entries_total", "governance", "already"] == 5
    assert counted["streamproc_decisions_total", "APPROVED", "POLICY_OK"] == 5
    assert len(tracer.told) == spans


@pytest.mark.parametrize(
    "text",
    [
        "", "00", "01-" + "1" * 32 + "-" + "1" * 16 + "-01", "00-" + "0" * 32 + "-" + "1" * 16 + "-01",
        "00-" + "1" * 32 + "-" + "0" * 16 + "-01", "00-" + "1" * 32 + "-" + "1" * 16 + "-00",
        "00-" + "A" * 32 + "-" + "1" * 16 + "-01", "00-" + "1" * 32 + "-" + "1" * 16 + '-01","by":"x',
    ],
)  # fmt: skip
def test_what_is_no_trace_context_is_not_taken_for_one(text: str) -> None:
    assert span_context_of(text) is None


def test_a_trace_context_survives_its_text() -> None:
    assert span_context_of(traceparent_of(SpanContext(5, 7))) == SpanContext(5, 7)


def test_the_rule_of_the_trace_id_is_the_documented_one() -> None:
    from hashlib import sha256

    assert trace_id("pout_1") == sha256(b"streamproc/trace/v1:pout_1").hexdigest()[:32]
