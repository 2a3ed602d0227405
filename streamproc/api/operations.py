"""The route table: every operation of the HTTP API as data, from which routes and `/openapi.json` are made.

A module adds routes by a function that returns operations, which `streamproc/app.py` joins:

    def freeze_operations(freezes: Freezes) -> list[Operation]:
        async def put(call: Call) -> Response:
            await freezes.put(call.text("scope"), call.token.attribution(call.body.why))
            return json_answer(200, {...})

        return [
            Operation(
                method="PUT", path="/v1/freezes/{scope}", name="freeze", summary="Stop all payouts of a scope",
                action="administer",                       # domain/tokens.py; None: no token is asked for
                reads=(Text("scope", where="path", pattern="...", means="what is frozen"),),
                body=Freeze,                               # a Struct, or the JSON schema of an object
                says={200: Says("it is frozen", Frozen)},  # statuses of this operation alone; see `responses_of`
                handle=put,
            )
        ]

Before `handle` is called, the token is known to be valid, within its rate, and of a scope that allows `action`;
parameters and body are read and within the table's limits. Only the handler knows whether the token may touch *this*
resource: another agent's is 404, as if it did not exist. A handler raises `Refusal`, or errors of log or archive (503).
"""

import re
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp

from streamproc.domain.tokens import Action, Token

Method: TypeAlias = Literal["GET", "POST", "PUT", "PATCH", "DELETE"]
Where: TypeAlias = Literal["path", "query", "header"]
Schema: TypeAlias = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Text:
    """A text parameter that must match a pattern. What does not match is 404 in a path, and 422 elsewhere."""

    name: str
    means: str
    pattern: str
    where: Where = "query"
    required: bool = False

    def schema(self) -> Schema:
        """Its JSON schema."""
        return {"type": "string", "pattern": f"^(?:{self.pattern})$"}

    def read(self, raw: str) -> str:
        """The value. Raises ValueError that says what it must be."""
        if not re.fullmatch(self.pattern, raw):
            raise ValueError(f"must be {self.means}")
        return raw


@dataclass(frozen=True, slots=True)
class Number:
    """A whole-number parameter within limits."""

    name: str
    means: str
    least: int
    most: int
    default: int
    where: Where = "query"
    required: bool = False

    def schema(self) -> Schema:
        """Its JSON schema."""
        return {"type": "integer", "minimum": self.least, "maximum": self.most, "default": self.default}

    def read(self, raw: str) -> int:
        """The value. Raises ValueError that says what it must be."""
        digits = re.fullmatch(r"-?[0-9]{1,18}", raw, re.ASCII)
        if digits is None or not self.least <= int(raw) <= self.most:
            raise ValueError(f"must be a whole number from {self.least} to {self.most}")
        return int(raw)


Parameter: TypeAlias = Text | Number


@dataclass(frozen=True, slots=True)
class Says:
    """What a status means. `shape`: a Struct or JSON schema of the body; None: a problem, and below 400 any JSON."""

    means: str
    shape: Any = None
    headers: Mapping[str, str] = field(default_factory=dict)
    """Headers by name, each with its meaning."""
    media: tuple[str, ...] = ()
    """Content types, if the body is not JSON alone."""


@dataclass(frozen=True, slots=True)
class Call:
    """One request as read by the table: its token, parameters and body."""

    request: Request
    caller: Token | None
    given: Mapping[str, str | int]
    body: Any = None
    """A Struct, or a dict if the table has a JSON schema."""

    @property
    def token(self) -> Token:
        """The caller's token."""
        assert self.caller is not None, "an operation without an action has no token"
        return self.caller

    def text(self, name: str) -> str:
        """A text parameter; empty if it was not given."""
        return str(self.given.get(name, ""))

    def number(self, name: str) -> int:
        """A number parameter, or its default."""
        return int(self.given[name])


Handler: TypeAlias = Callable[[Call], Awaitable[Response]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Operation:
    """One method of one path. `path` is Starlette's: `{agent:path}` where a value may hold slashes."""

    method: Method
    path: str
    name: str
    """The operation's id: a verb and its object, unique."""
    summary: str
    action: Action | None
    handle: Handler | None = None
    raw: ASGIApp | None = None
    """Instead of `handle`: an application that does everything itself, as for webhooks, which verify raw bytes."""
    reads: tuple[Parameter, ...] = ()
    body: Any = None
    body_required: bool = True
    """If False, a missing body counts as an empty object."""
    says: Mapping[int, Says]

    def __post_init__(self) -> None:
        assert (self.handle is None) != (self.raw is None), f"{self.name}: either handle or raw"
        in_path = set(re.findall(r"\{([a-z_]+)(?::path)?\}", self.path))
        assert in_path == {one.name for one in self.reads if one.where == "path"}, self.name


def responses_of(operation: Operation) -> dict[int, Says]:
    """All answers of an operation by status: its own, and those that the framework gives (401, 429 and so on)."""
    if operation.raw is not None or operation.action is None:
        return dict(operation.says)
    common = {
        401: Says(
            "No token, or one that is unknown, expired or revoked", headers={"WWW-Authenticate": "Bearer"}
        ),
        403: Says("The token's scope does not allow this"),
        422: Says("Wrong parameters or fields; `errors` has each with its problem"),
        429: Says(
            "The token asked too often", headers={"Retry-After": "Seconds until the next request is taken"}
        ),
        503: Says(
            "Too many ask or change the same, or log or archive cannot be asked now; ask again, with the same"
            " Idempotency-Key",
            headers={"Retry-After": "Seconds"},
        ),
    }
    if any(one.where == "path" for one in operation.reads):
        common[404] = Says("It is not there, or is another agent's")
    if operation.body is not None:
        common |= {
            400: Says("The body is not a JSON object that names each field once"),
            408: Says("The body did not arrive in time"),
            413: Says("The body is over the limit"),
            415: Says("The body's Content-Type is not application/json"),
        }
    return dict(sorted((common | dict(operation.says)).items()))
