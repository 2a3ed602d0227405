"""Metrics by OTLP, as a receiver gets them: what /metrics shows, each number from one process alone."""

from pathlib import Path

import pytest

from streamproc.operate.measured import measured
from streamproc.settings import Settings
from streamproc.telemetry.push import interval_s, is_pushed
from tests.bank import until
from tests.journeys.conftest import POLICIES
from tests.journeys.system import running_system
from tests.journeys.test_metrics import SECRET, scraped
from tests.telemetry.pages import Samples
from tests.telemetry.receiver import Receiver, receiving_traces

QUICK = {"OTEL_METRICS_EXPORTER": "otlp", "OTEL_METRIC_EXPORT_INTERVAL": "200"}
ENDED = ("streamproc_decisions_total", "streamproc_decided_paise_total", "streamproc_archived_entries_total")
"""Counters that stand still when all is settled."""


def pushed(receiver: Receiver, *names: str) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    return {
        (name, labels): number.value
        for (_, name, labels), number in receiver.numbers.items()
        if name in names
    }


def on_the_page(page: Samples, *names: str) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    return {(name, labels): value for (name, labels), value in page.items() if name in names}


async def test_a_receiver_gets_what_the_page_shows_each_series_from_one_process(
    redis_url: str, postgres: str
) -> None:
    async with receiving_traces() as receiver:
        environment = {"OTEL_EXPORTER_OTLP_METRICS_ENDPOINT": f"{receiver.url}/v1/metrics", **QUICK}
        async with running_system(
            redis_url, postgres, workers=2, otel=environment, metrics_token=SECRET
        ) as system:
            await system.apply(POLICIES)
            for amount, agent in ((250_000, "bot"), (500_001, "small"), (800_000, "careful")):
                made = await system.bank.pay(amount, notes={"agent_id": agent})
                await system.reaches(made["id"], "processed", "rejected", "held")
            await system.settled()

            # Who is late on a busy machine is not on the page.
            async def all_came() -> Samples | None:
                page = await scraped(system)
                shown = on_the_page(page, *ENDED)
                return page if len(shown) >= 6 and pushed(receiver, *ENDED) == shown else None

            page = await until(all_came, what="what the page shows was sent")
            assert page is not None
            wanted = on_the_page(page, *ENDED)

        # All roles have ended: what they sent last is all that they counted.
        assert pushed(receiver, *ENDED) == wanted
        senders: dict[object, set[str]] = {}
        for sender, name, labels in receiver.numbers:
            senders.setdefault((name, labels), set()).add(sender.partition(":")[2])
        twice = {series: its for series, its in senders.items() if len(its) > 1}
        assert twice == {}
        for (_, labels), its in senders.items():
            process = dict(labels).get("process")  # type: ignore[call-overload]
            assert its == {process or "serve-1"}  # what the stores say has no process, and comes from `serve`
        names = {name for _, name, _ in receiver.numbers}
        assert names >= {
            "streamproc_group_lag_entries",
            "streamproc_holds_open",
            "process_resident_memory_bytes",
        }

        for (_, name, labels), number in receiver.numbers.items():
            if number.kind == "histogram":
                assert sum(number.buckets) == number.value
                assert len(number.buckets) == len(number.bounds) + 1
            if name == "streamproc_decision_seconds":
                assert number.value == page[f"{name}_count", labels]
        assert {n.kind for (_, name, _), n in receiver.numbers.items() if name.endswith("_total")} == {"sum"}
        assert all(n.began > 0 for n in receiver.numbers.values() if n.kind in ("sum", "histogram"))
        assert receiver.spans == []  # nobody asked for traces


def test_metrics_are_sent_only_where_that_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:4318")
    assert not is_pushed()
    for value, wanted in (("otlp", True), ("prometheus, OTLP", True), ("none", False), ("", False)):
        monkeypatch.setenv("OTEL_METRICS_EXPORTER", value)
        assert is_pushed() is wanted
    monkeypatch.setenv("OTEL_METRICS_EXPORTER", "otlp")
    monkeypatch.setenv("OTEL_SDK_DISABLED", "true")
    assert not is_pushed()


def test_the_interval_is_opentelemetrys_and_never_so_short_that_it_harms(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("OTEL_METRIC_EXPORT_INTERVAL", raising=False)
    assert interval_s() == 60.0
    for given, seconds in (
        ("15000", 15.0),
        ("1", 0.1),
        ("0", 60.0),
        ("-5", 60.0),
        ("soon", 60.0),
        ("inf", 60.0),
    ):
        monkeypatch.setenv("OTEL_METRIC_EXPORT_INTERVAL", given)
        assert interval_s() == seconds


async def test_a_receiver_that_is_away_ends_no_role(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_METRICS_EXPORTER", "otlp")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:1")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_METRICS_TIMEOUT", "0.2")
    async with measured(Settings(data_dir=tmp_path), "worker") as meters:
        assert meters.registry.collect()
