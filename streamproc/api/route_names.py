"""A request's method and route for metrics and spans: few values, and nothing that a caller made up."""

from streamproc.ingress.problems import Scope

METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
"""Others are counted as one: a label must not hold what a caller makes up."""


NO_ROUTE = "other"
"""The route of a request that no route took."""


def route_of(scope: Scope) -> str:
    """The template of the route that took the request: its path with what the caller chose left out."""
    if "endpoint" not in scope:
        return NO_ROUTE
    chosen = scope.get("path_params")
    if not chosen:
        return str(scope["path"])
    names = {str(value): name for name, value in chosen.items()}
    return "/".join(f"{{{names[part]}}}" if part in names else part for part in scope["path"].split("/"))
