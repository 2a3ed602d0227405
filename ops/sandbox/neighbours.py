"""Faults that every neighbour of the bank can have: slow, down, or throttling."""

import asyncio
from typing import Literal, TypeAlias

from starlette.responses import JSONResponse, Response

Availability: TypeAlias = Literal["ok", "timeout", "500", "429"]
NO_ANSWER_S = 120.0
"""How long `timeout` keeps a caller waiting before it gets a 504."""
SLOW_MAX_MS = 120_000


async def fault_response(availability: Availability, slow_ms: int) -> Response | None:
    """The answer of a service that is down, or None if it should answer normally; after `slow_ms` either way."""
    await asyncio.sleep(min(slow_ms, SLOW_MAX_MS) / 1000)
    if availability == "timeout":
        await asyncio.sleep(NO_ANSWER_S)
        return Response(status_code=504)
    if availability == "500":
        return JSONResponse({"error": {"code": 500, "message": "Internal error", "status": "INTERNAL"}}, 500)
    if availability == "429":
        error = {"code": 429, "message": "Quota exceeded", "status": "RESOURCE_EXHAUSTED"}
        return JSONResponse({"error": error}, 429)
    return None
