"""What spans say of calls and requests, by the names of OpenTelemetry's semantic conventions."""

import ast
import importlib
import pkgutil
import re
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from opentelemetry.semconv import _incubating, attributes
from prometheus_client import CollectorRegistry

from streamproc.api.route_names import ROUTE
from streamproc.api.tracing import Traced
from streamproc.clients.breaker import Breaker
from streamproc.clients.http import OutboundClient
from streamproc.clients.limiter import Limiter
from streamproc.errors import TryAgain
from streamproc.ingress.problems import Receive, Scope, Send
from streamproc.log.batch_traces import _export_call
from streamproc.telemetry import watch
from streamproc.telemetry.metrics import Meters
from streamproc.telemetry.spans import Span, new_span_context
from tests.clients.loopback import always, loopback, response
from tests.telemetry.test_traces import Keeping

ROOT = Path(__file__).parents[2]
TELL = ("streamproc/log/batch_traces.py", "streamproc/api/tracing.py", "projections/traced.py")
NAMED = re.compile(r'"((?:messaging|http|url|server|service|peer|error|client|network)\.[a-z_.]+)"')


@pytest.fixture
def tracer() -> Iterator[Keeping]:
    keeping = Keeping()
    watch.turn_on(Meters(CollectorRegistry()), keeping)
    yield keeping
    watch.turn_off()


def conventions() -> dict[str, str]:
    """Every attribute that the package knows, and what it says of it."""
    known: dict[str, str] = {}
    for package in (_incubating.__name__ + ".attributes", attributes.__name__):
        for module in pkgutil.iter_modules(importlib.import_module(package).__path__):
            path = importlib.import_module(f"{package}.{module.name}").__file__
            assert path is not None
            body = ast.parse(Path(path).read_text()).body
            for made, said in zip(body, [*body[1:], None], strict=True):
                if isinstance(made, ast.AnnAssign) and isinstance(made.value, ast.Constant):
                    known[made.value.value] = ast.unparse(said) if isinstance(said, ast.Expr) else ""
    return known


def test_attributes_have_names_that_the_conventions_know_and_have_not_given_up() -> None:
    known = conventions()
    assert "Deprecated" in known["peer.service"]
    used = {name for path in TELL for name in NAMED.findall((ROOT / path).read_text())}
    used.remove("http.response.start")  # ASGI's
    assert {"service.peer.name", "http.request.method", "messaging.message.id", "error.type"} <= used
    assert {name for name in used if "Deprecated" in known.get(name, "Deprecated: it is not there")} == set()


# ---- requests ----


async def told_of(tracer: Keeping, scope: Scope, status: int = 200, problem: Exception | None = None) -> Span:
    async def app(_scope: Scope, _receive: Receive, send: Send) -> None:
        if status:
            await send({"type": "http.response.start", "status": status, "headers": []})
        if problem is not None:
            raise problem

    async def nothing(*_: object) -> None:
        return None

    try:
        await Traced(app)({"type": "http", "headers": [], "scheme": "http", **scope}, nothing, nothing)  # type: ignore[arg-type]
    except RuntimeError:
        assert problem is not None
    return tracer.told.pop()


async def test_a_request_is_told_by_its_method_path_and_status(tracer: Keeping) -> None:
    scope = {"method": "GET", "path": "/v1/payouts/pout_1", "query_string": b"token=a-secret"}
    taken = {**scope, ROUTE: "/v1/payouts/{payout}"}
    told = await told_of(tracer, taken)
    assert (told.name, told.error) == ("GET /v1/payouts/{payout}", None)
    assert told.attributes == {
        "http.request.method": "GET",
        "http.route": "/v1/payouts/{payout}",
        "http.response.status_code": 200,
        "url.path": "/v1/payouts/pout_1",
        "url.scheme": "http",
    }
    assert (await told_of(tracer, taken, 503)).attributes["error.type"] == "503"
    assert "error.type" not in (await told_of(tracer, taken, 422)).attributes
    broken = await told_of(tracer, taken, 500, RuntimeError("a defect"))
    assert broken.attributes["error.type"] == broken.error == "RuntimeError"


async def told_of_path(path: str, *headers: tuple[bytes, bytes]) -> None:
    async def app(_scope: Scope, _receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})

    async def nothing(*_: object) -> None:
        return None

    scope = {"type": "http", "method": "GET", "path": path, ROUTE: path, "headers": headers}
    await Traced(app)(scope, nothing, nothing)  # type: ignore[arg-type]


@pytest.mark.parametrize(("flags", "told"), [("01", True), ("00", False), ("02", False)])
async def test_a_request_is_told_where_its_caller_samples(tracer: Keeping, flags: str, told: bool) -> None:
    await told_of_path("/v1/holds", (b"traceparent", f"00-{5:032x}-{7:016x}-{flags}".encode()))
    assert [(one.context.trace, one.parent) for one in tracer.told] == ([(5, 7)] if told else [])


async def test_what_machines_ask_every_few_seconds_has_no_trace(tracer: Keeping) -> None:
    for path in ("/healthz", "/readyz", "/metrics", "/v1/holds"):
        await told_of_path(path)
    assert [one.attributes["url.path"] for one in tracer.told] == ["/v1/holds"]


async def test_a_request_without_an_answer_has_no_status_and_what_no_route_took_no_path(
    tracer: Keeping,
) -> None:
    told = await told_of(tracer, {"method": "GET", "path": "/a-secret"}, 0)
    assert told.attributes == {"http.request.method": "GET", "url.scheme": "http"}
    assert (told.name, told.error) == ("GET", None)


async def test_a_method_that_nobody_knows_is_told_as_the_conventions_say(tracer: Keeping) -> None:
    told = await told_of(tracer, {"method": "BREW" + "E" * 999, "path": "/tea"}, 405)
    assert told.name == "HTTP"
    assert told.attributes["http.request.method"] == "_OTHER"
    assert told.attributes["http.request.method_original"] == "BREW" + "E" * 28


# ---- calls ----


async def call_told(tracer: Keeping, url: str, path: str) -> Span:
    client = OutboundClient("bank", url, timeout_s=5, limiter=Limiter(100, 9), breaker=Breaker())
    calls: list[watch.Call] = []
    async with client:
        with watch.collecting_calls(calls), suppress(TryAgain):
            await client.call("POST", path, params={"key": "a-secret"})
    _export_call(tracer, calls[0], new_span_context())
    return tracer.told.pop()


async def test_a_call_is_told_by_whom_it_went_to_without_its_login_and_query(tracer: Keeping) -> None:
    async with loopback(always(200, {})) as server:
        port = int(server.url.rpartition(":")[2])
        told = await call_told(tracer, server.url.replace("//", "//user:a-secret@") + "/api/", "/v1/find")
    assert told.attributes == {
        "service.peer.name": "bank",
        "http.request.method": "POST",
        "server.address": "127.0.0.1",
        "server.port": port,
        "url.full": f"http://127.0.0.1:{port}/api/v1/find",
        "streamproc.outcome": "2xx",
    }


async def test_a_call_that_failed_says_of_which_kind_that_is(tracer: Keeping) -> None:
    async def broken(_asked: object) -> bytes:
        return response(500, b"")

    async with loopback(broken) as server:
        told = await call_told(tracer, server.url, "")
    assert told.attributes["error.type"] == told.error == "unknown"
    assert told.attributes["url.full"] == f"{server.url}/"
