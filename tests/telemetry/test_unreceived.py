"""While nobody takes what is exported, a role's log says so now and then, and stays readable."""

import asyncio
import logging

import pytest

from streamproc.telemetry import otlp_traces, unreceived
from streamproc.telemetry.spans import Span, new_span_context
from streamproc.telemetry.unreceived import SAY_S, Seldom, warn_of_protocol
from tests.bank import free_port, until


@pytest.fixture(autouse=True)
def unset(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OTEL_EXPORTER_OTLP_PROTOCOL", "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL"):
        monkeypatch.delenv(name, raising=False)


def line(text: str) -> logging.LogRecord:
    return logging.LogRecord("opentelemetry", logging.WARNING, "", 0, "%s", (text,), None)


def test_one_line_a_minute_has_the_number_of_those_that_were_left_out() -> None:
    now_s = 100.0
    seldom = Seldom(lambda: now_s)
    first = line("connection refused")
    assert seldom.filter(first)
    assert first.getMessage().startswith("connection refused (payouts do not wait for that")
    assert "left out" not in first.getMessage()
    assert [seldom.filter(line("connection refused")) for _ in range(3)] == [False] * 3
    now_s += SAY_S
    again = line("100 % refused")
    assert seldom.filter(again)
    assert "3 such lines were left out" in again.getMessage()
    assert not seldom.filter(line("connection refused"))


async def test_an_exporter_whose_collector_is_gone_logs_the_first_of_its_tries_alone(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{free_port()}")
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "10")
    monkeypatch.setattr(otlp_traces.push, "LAST_S", 0.1)
    exporters = [logging.getLogger(name) for name in unreceived._LOGGERS]
    for logger in exporters:  # what another test let it say is not counted here
        monkeypatch.setattr(logger, "filters", [])
    tries = list[str]()

    class Counting(logging.Filter):
        def filter(self, record: logging.LogRecord) -> bool:
            tries.append(record.getMessage())
            return True

    exporters[0].addFilter(Counting())
    async with otlp_traces.tracing("worker", "worker-1") as tracer:
        tracer.export(Span("x", new_span_context(), None, 1, 2, {}))

        async def tried_twice() -> bool:
            return len(tries) >= 2

        await until(tried_twice, what="the exporter has tried again")
        await asyncio.sleep(0)
    said = [row.getMessage() for row in caplog.records if row.name == unreceived._LOGGERS[0]]
    assert len(said) == 1
    assert "refused" in said[0]


@pytest.mark.parametrize(
    ("general", "own", "warned"),
    [("", "", ""), ("http/protobuf", "", ""), ("grpc", "", "OTEL_EXPORTER_OTLP_PROTOCOL=grpc"),
     ("grpc", "http/protobuf", ""), ("", "http/json", "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL=http/json")],
)  # fmt: skip
def test_a_protocol_that_is_not_spoken_is_named(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, general: str, own: str, warned: str
) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_PROTOCOL", general)
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", own)
    warn_of_protocol("TRACES")
    assert warned in caplog.text
    assert bool(caplog.text) == bool(warned)
