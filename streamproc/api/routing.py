"""The route table as Starlette's routes: one for each path, so that 405 names every method that is there."""

from collections import defaultdict
from collections.abc import Sequence

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from streamproc.api.answers import Refusal, answered
from streamproc.api.auth import Doorkeeper
from streamproc.api.operations import Call, Operation
from streamproc.api.reading import read_json, read_parameters


def routes_of(
    operations: Sequence[Operation], doorkeeper: Doorkeeper | None, *, body_bytes_max: int
) -> list[Route]:
    """A route for each path; those that say more come first, as `/a/fixed` before `/a/{any}`."""
    by_path: dict[str, list[Operation]] = defaultdict(list)
    for operation in operations:
        by_path[operation.path].append(operation)
    return [
        _route(path, by_path[path], doorkeeper, body_bytes_max) for path in sorted(by_path, key=_generality)
    ]


def _generality(path: str) -> tuple[int, list[bool]]:
    segments = path.split("/")
    return -len(segments), [segment.startswith("{") for segment in segments]


def _route(path: str, there: list[Operation], doorkeeper: Doorkeeper | None, body_bytes_max: int) -> Route:
    if there[0].raw is not None:
        assert len(there) == 1, f"{path}: a raw application answers every method"
        return Route(path, there[0].raw)
    by_method: dict[str, Operation] = {operation.method: operation for operation in there}
    allowed = sorted([*by_method, *(["HEAD"] if "GET" in by_method else [])])

    async def endpoint(request: Request) -> Response:
        method = "GET" if request.method == "HEAD" else request.method
        operation = by_method.get(method)
        if operation is None:
            raise HTTPException(405, headers={"allow": ", ".join(allowed)})
        return await answered(_handled(request, operation, doorkeeper, body_bytes_max))

    route = Route(path, endpoint)
    route.methods = None  # every method comes here, also one that nobody has heard of
    return route


async def _handled(
    request: Request, operation: Operation, doorkeeper: Doorkeeper | None, body_bytes_max: int
) -> Response:
    assert operation.handle is not None
    if operation.action is None:
        return await operation.handle(Call(request, None, {}))
    assert doorkeeper is not None, f"{operation.name} needs somebody who knows tokens"
    token = await doorkeeper.admitted(request, operation)
    try:
        given = read_parameters(request, operation)
        body = None
        if operation.body is not None:
            body = await read_json(request, operation, body_bytes_max)
        return await operation.handle(Call(request, token, given, body))
    except Refusal as refusal:
        if refusal.status == 403:
            doorkeeper.note(token, operation, request, refusal.detail)
        raise
