"""A role's telemetry: its meters, /metrics, what it sends by OTLP, and how late its event loop runs."""

import asyncio
import logging
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import uvicorn
from prometheus_client import CollectorRegistry

import consumers
from streamproc.api.health import ALIVE
from streamproc.api.listening import server_of
from streamproc.api.metrics import PATH, Metrics, Timed
from streamproc.api.tracing import Traced
from streamproc.archive.pool import opened_pool
from streamproc.host_clock import host_clock_us
from streamproc.ingress.problems import Asgi, Receive, Scope, Send, send_body, send_problem
from streamproc.operate.builders import JobProgress, OnProgress
from streamproc.operate.gateway import SiteGateway
from streamproc.operate.gauges import site_page
from streamproc.operate.replay import Result
from streamproc.settings import Settings
from streamproc.telemetry import watch
from streamproc.telemetry.exposure import DIRECTORY, Page, answering, exposed, gather, named, snapshot
from streamproc.telemetry.looplag import watch_loop
from streamproc.telemetry.metrics import Meters
from streamproc.telemetry.push import interval_s, is_pushed, pushing
from streamproc.telemetry.spans import Tracer, is_wanted

if TYPE_CHECKING:
    from streamproc.telemetry.otlp_metrics import Exporter

log = logging.getLogger(__name__)


@asynccontextmanager
async def measured(settings: Settings, role: str) -> AsyncIterator[Meters]:
    """Count in this process while the context lasts, and let it be seen. Nothing here can end the role."""
    meters = Meters(CollectorRegistry())
    stopping = asyncio.Event()
    async with AsyncExitStack() as stack:
        name = await stack.enter_async_context(exposed(settings.data_dir, role, meters.registry))
        if settings.metrics_port and role != "serve":
            await stack.enter_async_context(_served_alone(settings, name, meters))
        tracer = await stack.enter_async_context(_sent_away(settings, role, name, meters))
        looking = asyncio.create_task(watch_loop(meters, stopping), name="loop lag")
        watch.turn_on(meters, tracer)
        try:
            yield meters
        finally:
            watch.turn_off()
            stopping.set()
            await looking


@asynccontextmanager
async def _sent_away(
    settings: Settings, role: str, name: str, meters: Meters
) -> AsyncIterator[Tracer | None]:
    """Spans and metrics by OTLP, where the environment says so. At the end both are flushed together, so that a
    collector that hangs delays the end once and not twice."""
    tracer: Tracer | None = None
    spans, numbers = AsyncExitStack(), AsyncExitStack()
    try:
        if is_wanted():
            with _unless_refused("traces"):
                from streamproc.telemetry.otlp_traces import tracing  # heavy, and seldom wanted

                tracer = await spans.enter_async_context(tracing(role, name))
        if is_pushed():
            exporter: Exporter | None = None
            with _unless_refused("metrics"):
                from streamproc.telemetry import otlp_metrics  # heavy, and seldom wanted

                exporter = otlp_metrics.Exporter(role, name)
            if exporter is not None:
                await numbers.enter_async_context(_pushed(settings, role, name, meters, exporter))
        yield tracer
    finally:
        await asyncio.gather(spans.aclose(), numbers.aclose())


@contextmanager
def _unless_refused(what: str) -> Iterator[None]:
    """Go on without traces or metrics where the SDK refuses a variable, such as a queue that is smaller than its
    batches. Some it reads while it is imported."""
    try:
        yield
    except ValueError as problem:
        log.error("no %s are sent, since an OTEL_* variable is wrong: %s", what, problem)


@asynccontextmanager
async def _pushed(
    settings: Settings, role: str, name: str, meters: Meters, exporter: "Exporter"
) -> AsyncIterator[None]:
    """Send by OTLP what this process counts, and as `serve` what the stores say."""
    async with AsyncExitStack() as stack:
        dsn = settings.postgres_dsn.reveal() if role == "serve" else ""
        pool = await stack.enter_async_context(opened_pool(dsn)) if dsn else None

        async def page() -> Page:
            site = await site_page(settings, pool, consumers.GROUPS) if role == "serve" else []
            return [*site, *named(snapshot(meters.registry), name)]

        await stack.enter_async_context(pushing(page, exporter.send, exporter.close, interval_s()))
        yield


async def replay_with_metrics(
    data_dir: Path, job: Callable[[OnProgress], Awaitable[Result]], on_progress: OnProgress
) -> Result:
    """Run a replay so that /metrics of the machine shows how far it is, where roles are watched here, and by us."""
    if not os.access(data_dir / DIRECTORY, os.W_OK):
        return await job(on_progress)
    meters = Meters(CollectorRegistry())

    def hear(progress: JobProgress) -> None:
        meters.replay_done.labels("replay").set(progress.done)
        meters.replay_wanted.labels("replay").set(progress.total)
        on_progress(progress)

    async with exposed(data_dir, "replay", meters.registry):
        return await job(hear)


def machine_page(settings: Settings, gateway: SiteGateway, pool: object) -> Metrics:
    """/metrics of `serve`: all processes of this machine, and what the stores say."""

    async def page() -> Page:
        processes, site = await asyncio.gather(
            gather(settings.data_dir), site_page(settings, pool, consumers.GROUPS)
        )
        return [*site, *processes]

    return Metrics(page, secret=settings.metrics_token.reveal(), token=gateway.token, now_us=host_clock_us)


def instrumented(app: Asgi, meters: Meters | None) -> Asgi:
    """The API, with a span for each request where traces are on, and timed where there are `meters`."""
    traced = Traced(app)
    return traced if meters is None else Timed(traced, meters)


@asynccontextmanager
async def _served_alone(settings: Settings, name: str, meters: Meters) -> AsyncIterator[None]:
    """/metrics of this process alone, on a port of its own: for a role that has no `serve` beside it. And /healthz, by
    which an orchestrator sees that the process still does something."""

    async def page() -> Page:
        return [answering({name: True}), *named(snapshot(meters.registry), name)]

    gateway = SiteGateway(settings.redis_url, settings.partitions, None)
    metrics = Metrics(page, secret=settings.metrics_token.reveal(), token=gateway.token, now_us=host_clock_us)

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"] == PATH:
            await metrics(scope, receive, send)
        elif scope["type"] == "http" and scope["path"] == "/healthz" and scope["method"] in ("GET", "HEAD"):
            await send_body(send, 200, ALIVE, b"application/json")
        elif scope["type"] == "http":
            await send_problem(send, 404, "there is nothing at this path")

    server = server_of(app, host=settings.host, port=settings.metrics_port, drain_s=1)
    serving = asyncio.create_task(_serve(server, settings), name="metrics")
    try:
        yield
    finally:
        server.should_exit = True
        await serving
        await gateway.aclose()


async def _serve(server: uvicorn.Server, settings: Settings) -> None:
    try:
        await server._serve()
    except (OSError, SystemExit):  # uvicorn leaves the process where the port is taken
        log.error(
            "port %d is taken, so this process has no /metrics: set STREAMPROC_METRICS_PORT to another",
            settings.metrics_port,
        )
