"""A request's place in its caller's trace: reported as a server span, and written to what the request appends.

A payout has its own trace, which follows from its id, so the caller's trace is linked and not continued.
"""

from collections.abc import Awaitable
from time import time_ns

from streamproc.api.route_names import METHODS, NO_ROUTE, route_of
from streamproc.ingress.problems import Asgi, Message, Receive, Scope, Send
from streamproc.telemetry import watch
from streamproc.telemetry.spans import Span, SpanContext, Tracer, Value, new_span_context
from streamproc.telemetry.trace_context import is_unsampled, span_context_of, traceparent_of

UNTOLD = frozenset({"/healthz", "/readyz", "/metrics"})
"""What machines ask every few seconds, each time in a trace of its own: they would hide all else. Metrics count it."""
METHOD_CHARS_MAX = 32
PATH_CHARS_MAX = 512
"""Characters kept of a path, since a caller can make one up; our own are shorter."""


class Traced:
    """Passes requests on to `app`; makes spans of them if traces are on."""

    def __init__(self, app: Asgi) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        tracer = watch.tracer()
        if tracer is None or scope["type"] != "http" or scope["path"] in UNTOLD:
            await self._app(scope, receive, send)
            return
        caller = _caller(scope)
        parent = span_context_of(caller)
        own = new_span_context(parent.trace if parent else 0)
        # The caller's sampling is followed, so that no request is a part of a trace that nobody keeps.
        if is_unsampled(caller) or (parent is None and not tracer.samples(own.trace)):
            await self._app(scope, receive, send)
            return
        watch.called_by(traceparent_of(own))
        begun_ns, status, failed = time_ns(), 0, ""

        def noted(message: Message) -> Awaitable[None]:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            return send(message)

        try:
            await self._app(scope, receive, noted)
        except Exception as problem:
            failed = type(problem).__name__
            raise
        finally:
            _export(tracer, scope, own, parent, begun_ns, status, failed)


def _caller(scope: Scope) -> str:
    """The request's `traceparent`, unless it has none or several."""
    given = [value for name, value in scope["headers"] if name == b"traceparent"]
    return given[0].decode("latin-1") if len(given) == 1 else ""


def _export(
    tracer: Tracer,
    scope: Scope,
    own: SpanContext,
    parent: SpanContext | None,
    begun_ns: int,
    status: int,
    failed: str,
) -> None:
    error = failed or (str(status) if status >= 500 else None)
    attributes = _about(scope)
    if status:  # else the client had gone before there was an answer
        attributes["http.response.status_code"] = status
    if error:
        attributes["error.type"] = error
    method = scope["method"] if scope["method"] in METHODS else "HTTP"
    route = attributes.get("http.route")
    tracer.export(
        Span(
            f"{method} {route}" if route else method,
            own,
            parent.span if parent else None,
            begun_ns,
            time_ns(),
            kind="server",
            attributes=attributes,
            error=error,
        )
    )


def _about(scope: Scope) -> dict[str, Value]:
    """The request's attributes, without the path unless it is a route of ours: it may be anything, even a secret."""
    method, route = scope["method"], route_of(scope)
    about: dict[str, Value] = {"http.request.method": method, "url.scheme": scope.get("scheme", "http")}
    if method not in METHODS:
        about |= {"http.request.method": "_OTHER", "http.request.method_original": method[:METHOD_CHARS_MAX]}
    if route != NO_ROUTE:
        about |= {"http.route": route, "url.path": scope["path"][:PATH_CHARS_MAX]}
    return about
