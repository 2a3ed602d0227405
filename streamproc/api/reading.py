"""From a request to what the route table says it holds: parameters, and a JSON body. What is wrong is said at once."""

import asyncio
import typing
from collections import defaultdict
from collections.abc import Iterable
from functools import lru_cache
from typing import Any
from urllib.parse import unquote_to_bytes

import msgspec
from msgspec import Struct
from starlette.requests import Request

from streamproc.api.answers import JSON, Refusal, wrong_field, wrong_fields
from streamproc.api.operations import Number, Operation, Parameter
from streamproc.clients.json_text import NotJson, decode_json, names_are_unique
from streamproc.ingress.body import BODY_READ_S_MAX, TooLarge, read_body

NAME_CHARS_MAX = 80
"""Most of an unknown field's or parameter's name that a problem repeats."""
UNKNOWN_MAX = 20
"""Most unknown names in one problem."""


def read_parameters(request: Request, operation: Operation) -> dict[str, str | int]:
    """What was given, by name. Raises Refusal: 404 for the path, 422 for the rest, each by name."""
    given: dict[str, str | int] = {}
    errors: list[dict[str, str]] = []
    if b"%" in request.scope["query_string"] and not _is_text(request.scope["query_string"]):
        raise wrong_field("query", "must be UTF-8")
    queries = defaultdict[str, list[str]](list)
    for name, value in request.query_params.multi_items():
        queries[name].append(value)
    for one in operation.reads:
        if one.where == "path":
            given[one.name] = _in_path(one, request.path_params[one.name])
            continue
        values = queries[one.name] if one.where == "query" else request.headers.getlist(one.name)
        try:
            given |= _read(one, values)
        except ValueError as problem:
            errors.append({"field": one.name, "problem": str(problem)})
    known = {one.name for one in operation.reads if one.where == "query"}
    errors += unknown_names(name for name, values in queries.items() if values and name not in known)
    if errors:
        raise wrong_fields(errors)
    return given


def _is_text(query: bytes) -> bool:
    """Whether what is percent-encoded is UTF-8; anything else would be read as U+FFFD, and nothing would match."""
    try:
        unquote_to_bytes(query).decode()
    except UnicodeDecodeError:
        return False
    return True


def _in_path(one: Parameter, raw: str) -> str | int:
    try:
        return one.read(raw)
    except ValueError:
        raise Refusal(404, f"there is no such {one.name}") from None


def _read(one: Parameter, values: list[str]) -> dict[str, str | int]:
    if len(values) > 1:
        raise ValueError("is given more than once")
    if values:
        return {one.name: one.read(values[0])}
    if one.required:
        raise ValueError(f"is missing; it must be {one.means}")
    return {one.name: one.default} if isinstance(one, Number) else {}


def unknown_names(names: Iterable[str]) -> list[dict[str, str]]:
    """A problem for each unknown name: if it were ignored, a misspelt one would be lost."""
    shown = sorted(name[:NAME_CHARS_MAX].encode("utf-8", "replace").decode() for name in names)
    return [{"field": name, "problem": "is not known here"} for name in shown[:UNKNOWN_MAX]]


async def read_json(request: Request, operation: Operation, bytes_max: int) -> Any:
    """The body as the table has it: a Struct, or a dict. Raises Refusal: 400, 408, 413, 415, 422."""
    body = await _bytes(request, bytes_max)
    fields = {} if not body and not operation.body_required else _object(request, body)
    if isinstance(operation.body, type) and issubclass(operation.body, Struct):
        return as_struct(fields, operation.body)
    return fields


async def _bytes(request: Request, bytes_max: int) -> bytes:
    try:
        async with asyncio.timeout(BODY_READ_S_MAX):
            body = await read_body(request.scope, request.receive, bytes_max)
    except TimeoutError:
        detail = f"the body did not arrive within {BODY_READ_S_MAX:g} s"
        raise Refusal(408, detail, {"connection": "close"}) from None
    except TooLarge:
        raise Refusal(413, f"the body is over {bytes_max} bytes", {"connection": "close"}) from None
    if body is None:
        raise Refusal(400, "the sender has gone")
    return body


def _object(request: Request, body: bytes) -> dict[str, Any]:
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != JSON:
        raise Refusal(415, f"content-type must be {JSON}")
    try:
        decoded = decode_json(body)
        unique = names_are_unique(body)
    except NotJson as problem:
        raise Refusal(400, f"the body is no request: {problem}") from problem
    if not isinstance(decoded, dict):
        raise Refusal(400, "the body is no request: it is not a JSON object")
    if not unique:
        raise Refusal(400, "the body is no request: it names a field twice")
    return decoded


@lru_cache
def _types(kind: type[Struct]) -> dict[str, Any]:
    return typing.get_type_hints(kind, include_extras=True)


def as_struct(fields: dict[str, Any], kind: type[Struct]) -> Struct:
    """The fields as a Struct. Raises Refusal 422 with every wrong field."""
    errors: list[dict[str, str]] = []
    known = msgspec.structs.fields(kind)
    for one in known:
        if one.encode_name not in fields:
            if one.required:
                errors.append({"field": one.encode_name, "problem": "is missing"})
            continue
        try:
            msgspec.convert(fields[one.encode_name], _types(kind)[one.name])
        except msgspec.ValidationError as problem:
            errors.append({"field": one.encode_name, "problem": _in_words(str(problem))})
    errors += unknown_names(fields.keys() - {one.encode_name for one in known})
    if errors:
        raise wrong_fields(errors)
    return msgspec.convert(fields, kind)


def _in_words(problem: str) -> str:
    """msgspec's words without its quotes: Expected `str`, got `int` - at `$[0]`."""
    return problem.replace("`", "").replace("Expected", "must be", 1).replace(" - at $", " at ")
