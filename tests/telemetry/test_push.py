"""What is sent away never holds up the end of a process for long."""

import asyncio
import os
import subprocess
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from streamproc.operate.measured import measured
from streamproc.settings import Settings
from streamproc.telemetry import push, watch
from streamproc.telemetry.exposure import Page
from streamproc.telemetry.spans import Span, new_span_context
from tests.bank import free_port, listening
from tests.deadline import DEADLINE_S


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(push, "LAST_S", 1.0)


async def test_a_store_that_does_not_say_its_numbers_does_not_hold_up_the_end() -> None:
    async def never() -> Page:
        await asyncio.Event().wait()
        return []

    async with push.pushing(never, lambda page: None, lambda: None, 60.0):
        pass


async def test_what_was_counted_last_is_sent_and_then_it_is_closed() -> None:
    did: list[object] = []

    async def page() -> Page:
        return []

    async with push.pushing(page, did.append, lambda: did.append("closed"), 60.0):
        pass
    assert did == [[], "closed"]


Answer = Callable[[Request], Awaitable[Response]]


def collector(answer: Answer) -> list[Route]:
    return [Route(path, answer, methods=["POST"]) for path in ("/v1/traces", "/v1/metrics")]


@pytest.fixture
def told_to(monkeypatch: pytest.MonkeyPatch) -> int:
    """The port of a collector that gets what is left at the end, and nothing before."""
    port = free_port()
    for variable, value in (
        ("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{port}"),
        ("OTEL_EXPORTER_OTLP_TIMEOUT", "3600"),
        ("OTEL_METRICS_EXPORTER", "otlp"),
        ("OTEL_METRIC_EXPORT_INTERVAL", "3600000"),
        ("OTEL_BSP_SCHEDULE_DELAY", "3600000"),
    ):
        monkeypatch.setenv(variable, value)
    return port


async def role_that_ends(data_dir: Path) -> None:
    async with measured(Settings(data_dir=data_dir), "worker"):
        tracer = watch.tracer()
        assert tracer is not None
        tracer.export(Span("payout", new_span_context(), None, 1, 2, attributes={}))


async def test_a_collector_that_hangs_holds_up_no_end_and_nobody_says_that_it_has_everything(
    told_to: int, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    over = asyncio.Event()

    async def hang(request: Request) -> Response:
        await over.wait()
        return Response()

    async with listening(told_to, *collector(hang)):
        await role_that_ends(tmp_path)
        over.set()
    for what in ("spans", "metrics"):
        assert f"the last {what} were not taken within 1 s, and may be lost" in caplog.text


async def test_last_spans_and_last_metrics_are_sent_at_the_same_time(
    told_to: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One after the other, a collector that hung held the end up twice."""
    monkeypatch.setattr(push, "LAST_S", 3600.0)
    both = asyncio.Barrier(2)

    async def wait_for_the_other(request: Request) -> Response:
        await both.wait()
        return Response(b"", media_type="application/x-protobuf")

    async with listening(told_to, *collector(wait_for_the_other)):
        await role_that_ends(tmp_path)


async def test_a_wrong_variable_of_the_sdk_takes_the_traces_away_and_not_the_role(
    told_to: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("OTEL_BSP_MAX_QUEUE_SIZE", "256")  # batches have 512
    monkeypatch.delenv("OTEL_METRICS_EXPORTER")
    async with measured(Settings(data_dir=tmp_path), "worker") as meters:
        assert watch.meters() is meters
        assert watch.tracer() is None
    assert "no traces are sent, since an OTEL_* variable is wrong: max_export_batch_size" in caplog.text


ROLE = """
import asyncio, pathlib, sys
from streamproc.operate.measured import measured
from streamproc.settings import Settings

async def role():
    async with measured(Settings(data_dir=pathlib.Path(sys.argv[1])), "worker"):
        print("it runs", flush=True)

asyncio.run(role())
"""


def test_a_wrong_variable_that_the_sdk_reads_while_it_is_imported_takes_no_role_away_either(
    told_to: int, tmp_path: Path
) -> None:
    wrong = {"OTEL_SPAN_ATTRIBUTE_COUNT_LIMIT": "-5"}
    role = subprocess.run(  # a process of its own: here the SDK is imported already
        [sys.executable, "-c", ROLE, tmp_path],
        env={**os.environ, **wrong}, capture_output=True, text=True, timeout=DEADLINE_S, check=False,
    )  # fmt: skip
    assert (role.returncode, role.stdout) == (0, "it runs\n"), role.stderr
    for what in ("traces", "metrics"):
        assert f"no {what} are sent, since an OTEL_* variable is wrong" in role.stderr
