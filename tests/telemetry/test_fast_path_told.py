"""The fast path is told of as completely as the chain: counts, line and trace are the same."""

import logging
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
from msgspec.structs import asdict, replace
from prometheus_client import CollectorRegistry

import consumers
from consumers.vet import Reputations
from streamproc.domain.traces import process_span, trace_of
from streamproc.domain.wire import encode_events
from streamproc.log import grants
from streamproc.log.connection import connected
from streamproc.log.work import Group
from streamproc.telemetry import watch
from streamproc.telemetry.exposure import snapshot
from streamproc.telemetry.metrics import Meters
from streamproc.telemetry.spans import Span
from tests.engine import ZONE, Engine
from tests.telemetry.test_traces import Keeping, archived, assert_connected
from tests.words import ACCOUNT, Vendors, observed

POLICIES = (
    "policies: {bot: {daily_limit: 1200, require_approval_above: 700, rate_limit: {count: 9, window: 60s}}}"
)
AMOUNTS = {"pout_1": 300, "pout_2": 750, "pout_3": 200, "pout_4": 100}
"""pout_2 waits for a person, and pout_3 finds no room, which is the chain's where nobody was paid before."""
BY_FAST_PATH = {"pout_1", "pout_2", "pout_4"}
COUNTED = ("streamproc_decisions_total", "streamproc_decided_paise_total", "streamproc_entries_total")


@dataclass
class Heard:
    """All that was told of a batch."""

    counts: dict[Any, float]
    stages: dict[str, float]
    lines: list[dict[str, Any]]
    traces: dict[str, dict[int, Span]]

    def process(self, payout: str) -> Span:
        [span] = [one for one in self.traces[payout].values() if one.name.startswith("process")]
        return span

    def steps(self, payout: str) -> list[str]:
        own = self.process(payout).context.span
        return [
            one.name for one in self.traces[payout].values() if one.parent == own and one.name != "archive"
        ]


@pytest.fixture
def listening() -> Iterator[None]:
    yield
    watch.turn_off()


async def heard(
    redis_url: str, group: Group, caplog: pytest.LogCaptureFixture, *, traced: bool = True, before: int = 0
) -> Heard:
    """One batch of all payouts, handled by this group, to somebody who was paid so often before: then
    he names a URL, and from the second time on his payouts are alike."""
    url = "https://shop.example/" if before else None
    meters, tracer = Meters(CollectorRegistry()), Keeping()
    watch.turn_on(meters, tracer if traced else None)
    caplog.clear()
    async with connected(redis_url) as client:
        await client.flushdb()
    async with Engine(redis_url, groups=[group]) as engine:
        await engine.apply(POLICIES)
        for n in range(before):
            await engine.append(ACCOUNT, observed(f"pout_0{n}", 10, url=url))
            await engine.settled()
        async with engine.client.pipeline(transaction=True) as pipe:
            for payout, amount in AMOUNTS.items():
                e = encode_events([observed(payout, amount, url=url)])
                pipe.xadd(engine.names.log, {"e": e, "m": b'{"by":"webhook"}'})
            await pipe.execute()
        await engine.settled()
        if traced:
            await archived(engine)
    points = [point for family in snapshot(meters.registry) for point in family.points]
    counts = {
        (point.name, *point.labels.values()): point.value
        for point in points
        if point.name in COUNTED or point.name == "streamproc_decision_seconds_count"
    }
    stages = {
        point.labels["stage"]: point.value
        for point in points
        if point.name == "streamproc_stage_seconds_count"
    }
    lines = [asdict(line) | {"entry": ""} for row in caplog.records for line in getattr(row, "decisions", ())]
    lines.sort(key=lambda line: str(line["payout"]))
    return Heard(counts, stages, lines, {payout: tracer.of(payout) for payout in AMOUNTS})


def governance() -> Group:
    return consumers.governance(Reputations(Vendors()), zone=ZONE)


@pytest.mark.parametrize("before", [0, 1, 2], ids=["new", "noted", "alike"])
async def test_the_fast_path_is_told_of_as_what_the_chain_commits(
    redis_url: str, listening: None, caplog: pytest.LogCaptureFixture, before: int
) -> None:
    caplog.set_level(logging.INFO, "streamproc.decisions")
    ours = await heard(redis_url, governance(), caplog, before=before)
    chain = await heard(redis_url, replace(governance(), fast_path=None), caplog, before=before)

    assert ours.counts == chain.counts
    assert ours.counts["streamproc_decisions_total", "APPROVED", "POLICY_OK"] == 2 + before
    assert ours.counts["streamproc_decided_paise_total", "APPROVED"] == 400 + 10 * before
    assert ours.counts["streamproc_decision_seconds_count", "APPROVED"] == 2 + before
    assert ours.counts["streamproc_decisions_total", "HELD", "APPROVAL_REQUIRED"] == 1
    assert ours.counts["streamproc_decisions_total", "REJECTED", "LIMIT_EXCEEDED"] == 1
    assert ours.lines == chain.lines
    assert [line["payout"] for line in ours.lines[before:]] == list(AMOUNTS)
    for line in ours.lines:
        assert line["message"] == f"{line['payout']} {line['decision']} {line['reason']}"
    for payout in AMOUNTS:
        assert_connected(ours.traces[payout])
        assert about(ours.process(payout)) == about(chain.process(payout))
        assert rest(ours, payout) == rest(chain, payout)


async def test_where_nobody_traces_the_same_is_counted_and_said(
    redis_url: str, listening: None, caplog: pytest.LogCaptureFixture
) -> None:
    """Of payouts that share a form, which are told of together."""
    caplog.set_level(logging.INFO, "streamproc.decisions")
    ours = await heard(redis_url, governance(), caplog, traced=False, before=2)
    chain = await heard(redis_url, replace(governance(), fast_path=None), caplog, traced=False, before=2)

    assert ours.stages["fast_path"] == 2
    assert ours.counts == chain.counts
    assert ours.counts["streamproc_decided_paise_total", "APPROVED"] == 420
    assert ours.counts["streamproc_decision_seconds_count", "APPROVED"] == 4
    assert ours.lines == chain.lines
    assert [(line["payout"], line["amount"]) for line in ours.lines] == [
        ("pout_00", 10),
        ("pout_01", 10),
        *AMOUNTS.items(),
    ]


async def test_the_fast_path_is_one_step_of_a_trace_and_the_chain_is_its_stages(
    redis_url: str, listening: None, caplog: pytest.LogCaptureFixture
) -> None:
    found = await heard(redis_url, governance(), caplog)
    assert found.stages["fast_path"] == found.stages["screening"] == 1
    for payout in AMOUNTS:
        steps = found.steps(payout)
        if payout in BY_FAST_PATH:
            assert steps[:2] == ["fast_path", "commit sp:{partition}:log"]
            assert "screening" not in steps
        else:
            assert {"screening", "velocity", "reputation", "budget"} <= set(steps)
            assert "fast_path" not in steps


async def test_what_was_granted_while_its_answer_was_lost_is_counted_by_nobody(
    redis_url: str, listening: None, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = grants.grant

    async def lost(*args: Any, **named: Any) -> list[int]:
        await real(*args, **named)
        raise ValueError("the answer was lost")

    monkeypatch.setattr(grants, "grant", lost)
    found = await heard(redis_url, governance(), caplog)
    assert found.counts["streamproc_entries_total", "governance", "already"] == len(BY_FAST_PATH)
    assert ("streamproc_decisions_total", "APPROVED", "POLICY_OK") not in found.counts


def about(span: Span) -> dict[str, Any]:
    """Without the entry's id, which is another one each time."""
    return {name: value for name, value in span.attributes.items() if name != "messaging.message.id"}


def rest(found: Heard, payout: str) -> Counter[str]:
    """The names of all spans but the stages."""
    own = process_span("governance", 0, str(found.process(payout).attributes["messaging.message.id"]))
    assert found.process(payout).context.span == own
    assert found.process(payout).context.trace == trace_of(payout).trace
    shared = {"commit sp:{partition}:log", "archive"}
    return Counter(
        one.name for one in found.traces[payout].values() if one.parent != own or one.name in shared
    )
