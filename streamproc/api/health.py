"""`/healthz` and `/readyz` in the route table, and what they report."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, Final, Literal, TypeAlias

from msgspec import Struct
from starlette.responses import Response

from streamproc.api.answers import JSON, json_answer
from streamproc.api.operations import Call, Operation, Says

ALIVE: Final = b'{"status":"alive"}'
"""What `/healthz` answers, of whatever process: it still answers, and nothing else was asked."""
READY_S_MAX = 3.0
"""Longest wait for all checks; after that the answer is 503."""


class Check(Struct, frozen=True):
    """One dependency. `detail` is for an operator and holds no secret."""

    name: str
    ok: bool
    detail: str = ""
    required: bool = True
    """Whether this role is useless without it. Postgres is not required for webhooks."""


Ready: TypeAlias = Callable[[], Awaitable[list[Check]]]
"""Asks every dependency; answers within seconds, and reports a failure rather than raising it."""


class Alive(Struct, frozen=True):
    """The process answers."""

    status: Literal["alive"]


class Readiness(Struct, frozen=True):
    """Each dependency by name."""

    status: Literal["ready", "not ready"]
    checks: list[Check]


def health_operations(ready: Ready) -> list[Operation]:
    """The routes."""
    # Requests that come meanwhile share one answer: they need no token, and must not make the dependencies look slow.
    probe: asyncio.Task[list[Check]] | None = None

    async def alive(_call: Call) -> Response:
        return Response(ALIVE, media_type=JSON)

    async def readyz(_call: Call) -> Response:
        nonlocal probe
        if probe is None or probe.done():
            probe = asyncio.create_task(_asked(ready), name="readyz")
        return _readiness(await asyncio.shield(probe))

    return [
        Operation(
            method="GET", path="/healthz", name="isAlive", summary="The process is alive; nothing else is asked",
            action=None, handle=alive, says={200: Says("Alive", Alive)},
        ),
        Operation(
            method="GET", path="/readyz", name="isReady", summary="Each dependency, asked now",
            action=None, handle=readyz,
            says={200: Says("Ready", Readiness), 503: Says("Not ready", Readiness)},
        ),
    ]  # fmt: skip


async def _asked(ready: Ready) -> list[Check]:
    try:
        async with asyncio.timeout(READY_S_MAX):
            return await ready()
    except TimeoutError:
        return [Check("ready", False, f"no answer within {READY_S_MAX:g} s")]


def _readiness(checks: list[Check]) -> Response:
    is_ready = all(check.ok or not check.required for check in checks)
    said: dict[str, Any] = {"status": "ready" if is_ready else "not ready", "checks": checks}
    return json_answer(200 if is_ready else 503, said)
