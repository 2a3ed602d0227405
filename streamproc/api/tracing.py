"""A request's place in its caller's trace: told as a server span, and written to what it appends.

A payout's trace is its own and is known by its id, so the caller's is linked and not continued.
"""

from collections.abc import Awaitable
from time import time_ns

from streamproc.api.routes_seen import METHODS, route_of
from streamproc.ingress.problems import Asgi, Message, Receive, Scope, Send
from streamproc.telemetry import watch
from streamproc.telemetry.spans import Place, Tracer, new_place
from streamproc.telemetry.trace_context import place_of, traceparent_of


class Traced:
    """Passes requests on to `app`; tells of them where somebody takes traces."""

    def __init__(self, app: Asgi) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        tracer = watch.tracer()
        if tracer is None or scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        parent = _parent(scope)
        own = new_place(parent.trace if parent else 0)
        if parent is None and not tracer.samples(own.trace):
            await self._app(scope, receive, send)
            return
        watch.called_by(traceparent_of(own))
        begun_ns, status = time_ns(), 0

        def noted(message: Message) -> Awaitable[None]:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            return send(message)

        try:
            await self._app(scope, receive, noted)
        finally:
            _tell(tracer, scope, own, parent, begun_ns, status)


def _parent(scope: Scope) -> Place | None:
    given = [value for name, value in scope["headers"] if name == b"traceparent"]
    return place_of(given[0].decode("latin-1")) if len(given) == 1 else None


def _tell(tracer: Tracer, scope: Scope, own: Place, parent: Place | None, begun_ns: int, status: int) -> None:
    method = scope["method"] if scope["method"] in METHODS else "other"
    route = route_of(scope)
    tracer.tell(
        f"{method} {route}",
        own,
        parent.span if parent else None,
        begun_ns,
        time_ns(),
        kind="server",
        attributes={
            "http.request.method": method,
            "http.route": route,
            "http.response.status_code": status,
        },
        error=str(status) if status >= 500 else None,
    )
