"""A request's method and route for metrics and spans: few values, and nothing that a caller made up."""

from streamproc.ingress.problems import Scope

METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
"""Others are counted as one: a label must not hold what a caller makes up."""


NO_ROUTE = "other"
"""The route of a request that no route took."""
ROUTE = "streamproc.route"
"""The scope's key for the template of the route that took the request. Whoever routes sets it."""


def template_of(path: str) -> str:
    """A path of the route table as it is shown: `/v1/freezes/{scope}` of `/v1/freezes/{scope:path}`."""
    return path.replace(":path}", "}")


def route_of(scope: Scope) -> str:
    """The template of the route that took the request."""
    return str(scope.get(ROUTE, NO_ROUTE))
