"""The route table: routes and document are made of it; what a request must be is refused by name before any handler."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated, Any

import httpx
import pytest
from msgspec import Meta, Struct
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from streamproc.api import asgi
from streamproc.api.answers import json_answer
from streamproc.api.auth import AccessControl
from streamproc.api.openapi import document
from streamproc.api.operations import Call, Number, Operation, Says, Text, responses_of
from streamproc.api.routing import routes_of
from streamproc.domain.tokens import PREFIX, Token, digest_of
from streamproc.errors import TryAgain

SECRET = PREFIX + "s" * 43


class Reason(Struct, frozen=True):
    """A body."""

    reason: Annotated[str, Meta(min_length=1, max_length=5)]
    count: int = 0


class OneToken:
    """Knows one approver."""

    async def token(self, digest: str) -> Token | None:
        good = digest == digest_of(SECRET)
        return Token(name="t", scope="approver", digest=digest, created_at=1) if good else None

    async def request_wait_us(self, token: str, *, per_min: int, reads: bool) -> int:
        raise AssertionError("no rate is set")


class Nobody:
    """Writes nothing."""

    def note(self, **_: str) -> None:
        return None


async def echo(call: Call) -> Response:
    body = (
        call.body if call.body is None or isinstance(call.body, dict) else [call.body.reason, call.body.count]
    )
    return json_answer(200, {"given": dict(call.given), "body": body})


async def away(call: Call) -> Response:
    raise TryAgain("Postgres is away")


def operation(method: Any, path: str, name: str, **more: Any) -> Operation:
    given = {"summary": name, "action": "read own", "handle": echo, "says": {200: Says("ok")}, **more}
    return Operation(method=method, path=path, name=name, **given)


THING = Text("thing", "a thing", r"[a-z/]{1,9}", where="path")
TABLE = [
    operation("GET", "/things/{thing:path}", "showThing", reads=(THING,)),
    operation("PUT", "/things/{thing:path}", "putThing", reads=(THING,), action="administer"),
    operation("GET", "/things/fixed", "showFixed"),
    operation(
        "GET", "/things", "listThings",
        reads=(Number("limit", "how many", 1, 10, 5), Text("key", "one word", "[a-z]+", where="header")),
    ),
    operation("POST", "/things", "makeThing", body=Reason),
    operation("POST", "/things/loose", "makeLoose", body={"type": "object"}, body_required=False),
    operation("GET", "/open", "open", action=None),
    operation("GET", "/away", "away", handle=away),
]  # fmt: skip


@asynccontextmanager
async def served() -> AsyncIterator[httpx.AsyncClient]:
    async def refused(request: Request, error: Exception) -> Response:
        return await asgi._refused(request, error)

    routes = routes_of(TABLE, AccessControl(OneToken(), lambda: 2, Nobody()), body_bytes_max=200)
    app = Starlette(routes=routes, exception_handlers={HTTPException: refused})
    headers = {"authorization": f"Bearer {SECRET}"}
    transport = httpx.ASGITransport(app=app)
    async with httpx.AsyncClient(transport=transport, base_url="http://test", headers=headers) as http:
        yield http


@pytest.fixture
async def http() -> AsyncIterator[httpx.AsyncClient]:
    async with served() as client:
        yield client


def fields(answer: httpx.Response) -> set[str]:
    assert answer.status_code == 422
    return {error["field"] for error in answer.json()["errors"]}


async def test_a_wrong_method_is_told_every_method_that_is_there(http: httpx.AsyncClient) -> None:
    for method in ("DELETE", "OPTIONS", "BREW"):
        answer = await http.request(method, "/things/a")
        assert (answer.status_code, answer.headers["allow"]) == (405, "GET, HEAD, PUT")


async def test_a_store_that_is_away_is_a_503_each_time_and_few_lines_in_the_log(
    http: httpx.AsyncClient, caplog: pytest.LogCaptureFixture
) -> None:
    answers = [await http.get("/away") for _ in range(5)]
    assert [(answer.status_code, answer.headers["retry-after"]) for answer in answers] == [(503, "5")] * 5
    assert caplog.messages == ["requests not answered: 1, the last: Postgres is away"]


async def test_a_fixed_path_comes_before_one_that_takes_anything(http: httpx.AsyncClient) -> None:
    assert (await http.get("/things/fixed")).json()["given"] == {}
    assert (await http.get("/things/a/b")).json()["given"] == {"thing": "a/b"}


async def test_what_cannot_be_in_a_path_is_not_there(http: httpx.AsyncClient) -> None:
    assert (await http.get("/things/UPPER")).status_code == 404


async def test_parameters_have_their_limits_and_defaults(http: httpx.AsyncClient) -> None:
    assert (await http.get("/things")).json()["given"] == {"limit": 5}
    assert (await http.get("/things?limit=10", headers={"key": "ab"})).json()["given"] == {
        "limit": 10,
        "key": "ab",
    }
    for wrong in ("0", "11", "x", "", "1.0", "٣", "9" * 40):
        assert fields(await http.get("/things", params={"limit": wrong})) == {"limit"}
    assert fields(await http.get("/things?limit=1&limit=2&lmit=3", headers={"key": "A"})) == {
        "limit",
        "lmit",
        "key",
    }


async def test_every_wrong_field_of_a_body_is_named_at_once(http: httpx.AsyncClient) -> None:
    assert (await http.post("/things", json={"reason": "a", "count": 2})).json()["body"] == ["a", 2]
    assert fields(await http.post("/things", json={"count": "2", "raison": 1})) == {
        "reason",
        "count",
        "raison",
    }
    assert fields(await http.post("/things", json={"reason": "toolong"})) == {"reason"}


async def test_only_where_the_table_says_so_a_body_may_be_missing(http: httpx.AsyncClient) -> None:
    assert (await http.post("/things/loose")).json()["body"] == {}
    assert (await http.post("/things")).status_code == 415
    assert (
        await http.post("/things/loose", content=b"{", headers={"content-type": "text/plain"})
    ).status_code == 415


async def test_who_asks_comes_before_what_is_asked(http: httpx.AsyncClient) -> None:
    stranger = {"authorization": "Bearer nobody"}
    assert (await http.get("/things?limit=x", headers=stranger)).status_code == 401
    assert (await http.put("/things/UPPER")).status_code == 403
    assert (await http.get("/open?limit=x", headers=stranger)).status_code == 200


def test_the_document_has_every_operation_with_everything_it_says() -> None:
    paths = document(TABLE)["paths"]
    found = {(method, path) for path, there in paths.items() for method in there}
    assert found == {(one.method.lower(), one.path.replace(":path", "")) for one in TABLE}
    made = paths["/things"]["post"]
    assert set(made["responses"]) == {"200", "400", "401", "403", "408", "413", "415", "422", "429", "503"}
    assert made["requestBody"]["content"]["application/json"]["schema"] == {
        "$ref": "#/components/schemas/Reason"
    }
    assert paths["/open"]["get"]["security"] == []
    assert 404 in responses_of(TABLE[0])
