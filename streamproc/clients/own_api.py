"""Our own HTTP API, as any client sees it. Each call brings its caller's token, and none is kept here.

    ApiAnswer        the API answered, whatever the status: a 401 or a 503 also states its reason
    TryAgain         nothing was sent
    OutcomeUnknown   it may have been carried out, and no usable answer came back

There is no breaker and no pace: the API itself says when there are too many calls (429, 503), and the caller is told.
"""

import asyncio
import time
from collections.abc import Mapping
from typing import Any

import httpx
import msgspec
from msgspec import Struct

from streamproc.clients.http import OutcomeUnknown, is_loopback, no_cookies, retry_after_s
from streamproc.errors import InputError, TryAgain

CALL_S_MAX = 15.0
"""For one call; the API itself answers within 10 s, if only with a 503."""
CONNECT_S_MAX = 5.0
"""The part of it for connecting: a call whose handshake takes longer would hardly succeed in time."""
CONNECTIONS_MAX = 64
"""Calls at once; callers must keep to it, since another call would spend its own time waiting."""
KEEP_ALIVE_S = 3.0
"""Life of an idle connection: the API closes it after 5 s, and a request sent just then is lost."""
ANSWER_BYTES_MAX = 1024 * 1024
"""A page of 100 holds has some 100 kB, a payout's events some 20 kB."""

_NOT_SENT = (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout)
_CANNOT_BE_SENT = (httpx.InvalidURL, httpx.UnsupportedProtocol, httpx.LocalProtocolError, UnicodeEncodeError)


class ApiAnswer(Struct, frozen=True):
    """What the API answered: a status and a JSON object."""

    status: int
    body: dict[str, Any]
    after_s: float | None = None
    """Seconds to wait before asking again, if it said so."""


class OwnApi:
    """The API behind a base URL. Close it with `aclose`."""

    def __init__(self, url: str) -> None:
        self.url = url
        self._http = httpx.AsyncClient(
            base_url=url,
            follow_redirects=False,  # it would take the token elsewhere
            timeout=httpx.Timeout(CALL_S_MAX, connect=CONNECT_S_MAX),
            limits=httpx.Limits(max_connections=CONNECTIONS_MAX, keepalive_expiry=KEEP_ALIVE_S),
            cookies=no_cookies(),
            # Uncompressed, since a limit on compressed bytes limits nothing.
            headers={"user-agent": "streamproc mcp", "accept-encoding": "identity"},
            trust_env=not is_loopback(url),
        )

    async def aclose(self) -> None:
        """Close the connections; a call in flight fails."""
        await self._http.aclose()

    async def call(
        self,
        method: str,
        path: str,
        *,
        token: str,
        params: Mapping[str, str | int] | None = None,
        headers: Mapping[str, str] | None = None,
        body: Mapping[str, Any] | None = None,
    ) -> ApiAnswer:
        """One call with this token. Raises TryAgain, OutcomeUnknown; InputError for values that no request can hold."""
        sent = {"authorization": f"Bearer {token}", **(headers or {})}
        try:
            request = self._http.build_request(method, path, params=params, headers=sent, json=body)
        except (ValueError, RecursionError) as problem:
            raise InputError(
                "the arguments cannot be sent as JSON, which has no NaN, no Infinity and no half of a surrogate pair;"
                " nor may they nest too deep"
            ) from problem
        try:
            async with asyncio.timeout(CALL_S_MAX):
                response = await self._http.send(request, stream=True)
                try:
                    return await _read(response)
                finally:
                    await response.aclose()
        except _CANNOT_BE_SENT as problem:
            raise InputError(f"this cannot be sent as a request: {type(problem).__name__}") from problem
        except _NOT_SENT as problem:
            raise TryAgain(f"the API cannot be reached: {type(problem).__name__}") from problem
        except TimeoutError as problem:
            raise OutcomeUnknown(f"the API gave no answer within {CALL_S_MAX:g} s") from problem
        except (httpx.HTTPError, AttributeError) as problem:  # the latter as in `OutboundClient._send`
            raise OutcomeUnknown(f"the API gave no answer: {type(problem).__name__}") from problem


async def _read(response: httpx.Response) -> ApiAnswer:
    found = bytearray()
    async for chunk in response.aiter_raw():
        found += chunk
        if len(found) > ANSWER_BYTES_MAX:
            raise OutcomeUnknown(f"the API's answer is over {ANSWER_BYTES_MAX} bytes")
    if 300 <= response.status_code < 400:
        raise OutcomeUnknown(
            f"HTTP {response.status_code}, which streamproc's API never answers: check its URL"
        )
    try:
        body = msgspec.json.decode(bytes(found), type=dict[str, Any])
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise OutcomeUnknown(
            f"HTTP {response.status_code}, and no JSON object: is that streamproc's API?"
        ) from None
    return ApiAnswer(
        response.status_code, body, retry_after_s(response.headers.get("retry-after"), time.time())
    )
