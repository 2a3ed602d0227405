"""`/openapi.json`: the route table as OpenAPI 3.1. `x-action` is what a token must be allowed (domain/tokens.py)."""

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
from msgspec import Struct

from streamproc import __version__
from streamproc.api.answers import JSON
from streamproc.api.operations import Operation, Says, responses_of
from streamproc.api.route_names import template_of
from streamproc.domain.tokens import ALLOWED
from streamproc.ingress.problems import PROBLEM_JSON

_REF = "#/components/schemas/{name}"


class WrongField(Struct, frozen=True):
    """One field or parameter, and what is wrong with it."""

    field: str
    problem: str


class Problem(Struct, frozen=True, kw_only=True):
    """RFC 9457. More members may be there."""

    type: str
    title: str
    status: int
    detail: str
    errors: list[WrongField] = []


def document(operations: Sequence[Operation]) -> dict[str, Any]:
    """The whole document."""
    shapes = [Problem, *(kind for one in operations for kind in _structs(one))]
    unique = list(dict.fromkeys(shapes))
    _, components = msgspec.json.schema_components(unique, ref_template=_REF)
    paths: dict[str, dict[str, Any]] = {}
    for one in operations:
        paths.setdefault(template_of(one.path), {})[one.method.lower()] = _operation(one)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "streamproc",
            "version": __version__,
            "description": "Amounts in paise, times in ISO 8601 UTC with µs. Every refusal is a problem (RFC 9457).",
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "paths": paths,
        "components": {
            "schemas": components,
            "securitySchemes": {
                "token": {
                    "type": "http",
                    "scheme": "bearer",
                    "description": "From `streamproc token create`; "
                    + "; ".join(f"{scope}: {', '.join(sorted(may))}" for scope, may in ALLOWED.items()),
                }
            },
        },
    }


def _structs(operation: Operation) -> list[Any]:
    return [
        kind
        for kind in (operation.body, *(one.shape for one in responses_of(operation).values()))
        if _is_struct(kind)
    ]


def _is_struct(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, Struct)


def _schema(shape: Any) -> Any:
    return {"$ref": _REF.format(name=shape.__name__)} if _is_struct(shape) else dict(shape or {})


def _operation(operation: Operation) -> dict[str, Any]:
    described: dict[str, Any] = {
        "operationId": operation.name,
        "summary": operation.summary,
        "security": [] if operation.action is None else [{"token": []}],
        "responses": {
            str(status): _response(status, says) for status, says in responses_of(operation).items()
        },
    }
    if operation.action is not None:
        described["x-action"] = operation.action
    if operation.reads:
        described["parameters"] = [
            {
                "name": one.name,
                "in": one.where,
                "required": one.required or one.where == "path",
                "description": one.means,
                "schema": one.schema(),
            }
            for one in operation.reads
        ]
    if operation.body is not None:
        described["requestBody"] = {
            "required": operation.body_required,
            "content": {JSON: {"schema": _schema(operation.body)}},
        }
    return described


def _response(status: int, says: Says) -> dict[str, Any]:
    is_problem = status >= 400 and says.shape is None
    kinds = says.media or (PROBLEM_JSON.decode("ascii") if is_problem else JSON,)
    schema = _schema(Problem if is_problem else says.shape)
    described: dict[str, Any] = {
        "description": says.means,
        "content": {kind: {"schema": schema} for kind in kinds},
    }
    if status == 204:
        del described["content"]
    if says.headers:
        described["headers"] = _headers(says.headers)
    return described


def _headers(headers: Mapping[str, str]) -> dict[str, Any]:
    return {name: {"description": means, "schema": {"type": "string"}} for name, means in headers.items()}
