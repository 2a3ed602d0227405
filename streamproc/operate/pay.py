"""`streamproc pay`: an agent's request, sent to the HTTP API as any other client sends it."""

import asyncio
import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import msgspec
from msgspec import Struct

from streamproc.errors import InputError, JobFailed

CALL_S_MAX = 15.0
"""One request; the API itself answers within 10 s, if only to say 503."""
POLL_S = 0.1
"""Between two looks at a payout whose decision is waited for; it mostly comes within milliseconds."""
WAIT_S_MAX = 60.0
"""For the decision. A payout that waits for a person is decided too: it is HELD."""
KEY_BYTES = 16


class TakenPayout(Struct, frozen=True):
    """The payout as the API shows it, and the key that names it."""

    payout: dict[str, Any]
    key: str


class _Payout(Struct):
    """The fields of a payout that `pay` reads; without them the answer is not our API's."""

    payout: str
    decision: str | None
    reason: str
    reasons: list[str]


class _WrongField(Struct):
    field: str
    problem: str


class _Problem(Struct):
    detail: str = "no detail"
    errors: list[_WrongField] = []


def new_key() -> str:
    """An Idempotency-Key for somebody who gives none."""
    return secrets.token_hex(KEY_BYTES)


async def pay(url: str, token: str, order: dict[str, Any], *, key: str, wait: bool) -> TakenPayout:
    """Ask for a payout; with `wait` until it is decided.

    Raises InputError with each field's problem where the request is wrong, JobFailed where it is not taken.
    """
    async with _client(url, token) as http:
        answer = await _call(http, "POST", "/v1/payouts", key=key, json=order)
        shown = _read(answer, 202, key)
        return TakenPayout(await _decided(http, shown, key) if wait else shown, key)


async def _decided(http: httpx.AsyncClient, shown: dict[str, Any], key: str) -> dict[str, Any]:
    """The payout once it is decided."""
    payout, again = shown["payout"], f"The same command with --key {key} asks again"
    try:
        async with asyncio.timeout(WAIT_S_MAX):
            while shown["decision"] is None:
                await asyncio.sleep(POLL_S)
                shown = _read(await _call(http, "GET", f"/v1/payouts/{payout}"), 200)
    except TimeoutError:
        raise JobFailed(
            f"{payout} is taken, but was not decided within {WAIT_S_MAX:g} s; `streamproc groups` shows the workers."
            f" {again}"
        ) from None
    except (JobFailed, InputError) as problem:  # else whoever paid would pay a second time
        raise JobFailed(
            f"{payout} is taken, but what came of it cannot be seen: {problem}. {again}"
        ) from None
    return shown


@asynccontextmanager
async def _client(url: str, token: str) -> AsyncIterator[httpx.AsyncClient]:
    headers = {"authorization": f"Bearer {token}", "user-agent": "streamproc pay"}
    try:
        http = httpx.AsyncClient(base_url=url, headers=headers, timeout=CALL_S_MAX, trust_env=False)
    except (httpx.InvalidURL, UnicodeEncodeError) as problem:
        raise InputError(f"--url or the token cannot be sent: {type(problem).__name__}") from None
    if not http.base_url.host:
        raise InputError("--url names no host: it is like http://127.0.0.1:8080")
    async with http:
        yield http


async def _call(
    http: httpx.AsyncClient, method: str, path: str, *, key: str = "", json: object = None
) -> httpx.Response:
    try:
        return await http.request(method, path, headers={"idempotency-key": key} if key else {}, json=json)
    except (httpx.UnsupportedProtocol, httpx.LocalProtocolError) as problem:  # nothing was sent
        raise InputError(f"--url, --key or the token cannot be sent: {problem}") from None
    except httpx.HTTPError as problem:
        raise JobFailed(
            f"{http.base_url} gave no answer: {type(problem).__name__}{_not_known(key)}"
        ) from None


def _not_known(key: str) -> str:
    """What to add to an answer that does not tell whether the request with this key was taken; '' for other ones."""
    return f"; whether it was taken is not known: ask again with --key {key}" if key else ""


def _read(answer: httpx.Response, wanted: int, key: str = "") -> dict[str, Any]:
    status = answer.status_code
    try:
        body = msgspec.json.decode(answer.content, type=dict[str, Any])
        if status == wanted:
            msgspec.convert(body, _Payout)
            return body
        problem = msgspec.convert(body, _Problem)
    except msgspec.MsgspecError:
        raise JobFailed(
            f"HTTP {status}, and not what this version knows: is that streamproc's API?{_not_known(key)}"
        ) from None
    if status in (400, 413, 422):
        lines = [f"  {error.field}: {error.problem}" for error in problem.errors]
        raise InputError("\n".join([problem.detail, *lines]))
    raise JobFailed(f"HTTP {status}: {problem.detail}{_not_known(key) if status >= 500 else ''}")
