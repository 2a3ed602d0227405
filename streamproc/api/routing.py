"""The route table as Starlette's routes: one for each path, so that a 405 names every method of the path."""

import logging
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from time import monotonic

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Match, Route

from streamproc.api.answers import Refusal, answered
from streamproc.api.auth import AccessControl
from streamproc.api.operations import Call, Operation
from streamproc.api.reading import read_json, read_parameters
from streamproc.api.route_names import ROUTE, template_of
from streamproc.ingress.problems import Scope
from streamproc.ingress.refusals import ThrottledWarning

log = logging.getLogger(__name__)

BUSY_RETRY_AFTER_S = 1
"""Retry-After, in seconds, of a 503 for too many requests at once."""
IN_HAND_MAX = 64
"""Requests with a token that are handled at once; more are refused at once. If they waited, their clients would have
given up and asked again by the time they are answered, and so on, and nobody would be served. A request takes 5 to 60
ms of this process, so the last of them is answered within 4 s. Webhooks, health and metrics are not counted."""


TOKEN_GOOD_S = 1.0
"""How long a look at a token is good for: a body that took longer was perhaps held back until the token was revoked. An
honest one is there within milliseconds, and needs no second look."""


class InFlight:
    """Counts the requests in progress, and refuses more than `most`."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._count = 0

    @contextmanager
    def counted(self) -> Iterator[None]:
        """Count one request while it is handled. Raises Refusal if there are too many."""
        if self._count >= self._most:
            raise Refusal(
                503, f"{self._count} requests are in hand, the limit is {self._most}; ask again",
                {"retry-after": str(BUSY_RETRY_AFTER_S)},
            )  # fmt: skip
        self._count += 1
        try:
            yield
        finally:
            self._count -= 1


def routes_of(
    operations: Sequence[Operation], access: AccessControl | None, *, body_bytes_max: int
) -> list[Route]:
    """A route for each path; more specific ones come first, as `/a/fixed` before `/a/{any}`."""
    in_flight = InFlight(IN_HAND_MAX)
    unanswered = ThrottledWarning(log, "requests not answered")
    by_path: dict[str, list[Operation]] = defaultdict(list)
    for operation in operations:
        by_path[operation.path].append(operation)
    return [
        _route(path, by_path[path], access, in_flight, body_bytes_max, unanswered)
        for path in sorted(by_path, key=_generality)
    ]


def _generality(path: str) -> tuple[int, list[bool]]:
    segments = path.split("/")
    return -len(segments), [segment.startswith("{") for segment in segments]


class _Templated(Route):
    """A route that says its template, for metrics and spans, which must not hold what a caller made up."""

    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        match, found = super().matches(scope)
        if match is not Match.NONE:
            found[ROUTE] = template_of(self.path)
        return match, found


def _route(
    path: str,
    there: list[Operation],
    access: AccessControl | None,
    in_flight: InFlight,
    body_bytes_max: int,
    unanswered: ThrottledWarning,
) -> Route:
    if there[0].raw is not None:
        assert len(there) == 1, f"{path}: a raw application answers every method"
        return _Templated(path, there[0].raw)
    by_method: dict[str, Operation] = {operation.method: operation for operation in there}
    allowed = sorted([*by_method, *(["HEAD"] if "GET" in by_method else [])])

    async def endpoint(request: Request) -> Response:
        method = "GET" if request.method == "HEAD" else request.method
        operation = by_method.get(method)
        if operation is None:
            raise HTTPException(405, headers={"allow": ", ".join(allowed)})
        if operation.action is None:
            return await answered(_open_to_all(request, operation), unanswered)
        handling = _handled(request, operation, access, in_flight, body_bytes_max)
        return await answered(handling, unanswered)

    route = _Templated(path, endpoint)
    route.methods = None  # every method comes here, unknown ones too
    return route


async def _open_to_all(request: Request, operation: Operation) -> Response:
    assert operation.handle is not None
    return await operation.handle(Call(request, None, {}))


async def _handled(
    request: Request,
    operation: Operation,
    access: AccessControl | None,
    in_flight: InFlight,
    body_bytes_max: int,
) -> Response:
    assert operation.handle is not None
    assert access is not None, f"{operation.name} needs somebody who knows tokens"
    with in_flight.counted():
        token = await access.admitted(request, operation)
    try:
        given = read_parameters(request, operation)
        body = None
        began_s = monotonic()
        if operation.body is not None:  # read before counting, so that slow senders take no place
            body = await read_json(request, operation, body_bytes_max)
        with in_flight.counted():
            if monotonic() - began_s >= TOKEN_GOOD_S:
                token = await access.good(request, operation)
            return await operation.handle(Call(request, token, given, body))
    except Refusal as refusal:
        if refusal.status == 403:
            access.note(token, operation, request, refusal.detail)
        raise
