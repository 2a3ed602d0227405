"""Holds each answer against what `/openapi.json` says of its operation: nothing undeclared is answered."""

import re
from collections.abc import Mapping
from typing import Any

import httpx
from jsonschema_rs import Draft202012Validator

PROBLEM = "application/problem+json"
HEADERS = frozenset({"etag", "location", "retry-after", "www-authenticate"})
"""Headers that a caller acts upon; none is answered that is not declared, and only an ETag may be left out."""


async def held_against_its_document(http: httpx.AsyncClient) -> None:
    """From now on each answer that this client gets is checked."""
    declared = Declared((await http.get("/openapi.json")).json())
    http.event_hooks = {"response": [declared.check]}


class Declared:
    """What the document says."""

    def __init__(self, said: Mapping[str, Any]) -> None:
        self._components = _closed(said["components"])
        by_path = sorted(said["paths"].items(), key=lambda one: _generality(one[0]))
        self._paths = [(re.compile(re.sub(r"\{[^}]+\}", ".+", path)), there) for path, there in by_path]

    async def check(self, answer: httpx.Response) -> None:
        """AssertionError for what is not declared."""
        await answer.aread()
        method, path = answer.request.method, answer.request.url.path
        there = next((found for shape, found in self._paths if shape.fullmatch(path)), {})
        operation = there.get("get" if method == "HEAD" else method.lower())
        if operation is None:
            assert answer.status_code in (404, 405), (method, path, answer.status_code)
            return
        if answer.status_code == 500:  # a defect; the tests that make one look at its answer
            return
        name = f"{operation['operationId']} {answer.status_code}"
        says = operation["responses"].get(str(answer.status_code))
        assert says is not None, f"{name} is not declared: {answer.text}"
        declared = {header.lower() for header in says.get("headers", ())}
        assert declared - {"etag"} <= HEADERS.intersection(answer.headers) <= declared, (
            f"{name}: {answer.headers}"
        )
        if method != "HEAD":
            self._check_body(name, says["content"], answer)

    def _check_body(self, name: str, content: Mapping[str, Any], answer: httpx.Response) -> None:
        kind = answer.headers["content-type"]
        assert kind in content, f"{name}: {kind}"
        if not kind.endswith("json"):
            return
        schema = _closed(content[kind]["schema"])
        Draft202012Validator({**schema, "components": self._components}).validate(answer.json())
        assert kind != PROBLEM or answer.json()["status"] == answer.status_code


def _closed(schema: Any) -> Any:
    """The schema, with no members but those that it names. A problem may have more, as it says itself."""
    if isinstance(schema, list):
        return [_closed(one) for one in schema]
    if not isinstance(schema, dict):
        return schema
    closed = {key: _closed(value) for key, value in schema.items()}
    is_open = "properties" not in closed or schema.get("title") == "Problem"
    return closed if is_open else {"additionalProperties": False, **closed}


def _generality(path: str) -> tuple[int, list[bool]]:
    parts = path.split("/")
    return -len(parts), [part.startswith("{") for part in parts]
