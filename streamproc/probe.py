"""Waiting until a role that `up` started answers over HTTP. By hand, since only clients/ imports an HTTP client."""

import asyncio
from typing import NamedTuple

import msgspec
from msgspec import Struct

from streamproc.errors import JobFailed

READY_WAIT_S = 60.0  # a long log is read back, a schema migrated; a second start takes a few seconds
PROBE_S = 0.05  # between two looks
PROBE_WAIT_S = 5.0  # for one answer: /readyz asks every dependency
ANSWER_BYTES_MAX = 64 * 1024  # /readyz says some 100 bytes of each dependency


class _Answer(NamedTuple):
    """The status code of a GET, or why there is none; and the answer's body."""

    status: str
    body: bytes = b""


class _Check(Struct):
    name: str
    ok: bool
    detail: str
    required: bool


class _Readiness(Struct):
    """What of an answer of /readyz says why it is not ready."""

    checks: list[_Check]


def authority(host: str, port: int) -> str:
    """Host and port, as in a URL, at which a server that listens on *host* is reached from here."""
    reachable = _reachable(host)
    return f"[{reachable}]:{port}" if ":" in reachable else f"{reachable}:{port}"


def _reachable(host: str) -> str:
    """A wildcard cannot be connected to."""
    return {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104  # not a binding


async def answering(what: str, host: str, port: int, path: str) -> None:
    """Wait until a GET of *path* is answered 200. Raises JobFailed after READY_WAIT_S, with the last reason."""
    answer = _Answer("no answer")
    try:
        async with asyncio.timeout(READY_WAIT_S):
            while (answer := await _asked(host, port, path)).status != "200":
                await asyncio.sleep(PROBE_S)
    except TimeoutError as problem:
        raise JobFailed(
            f"{what} was not ready after {READY_WAIT_S:g} s: GET {path} gives {answer.status}{_why(answer.body)}"
        ) from problem


async def _asked(host: str, port: int, path: str) -> _Answer:
    try:
        async with asyncio.timeout(PROBE_WAIT_S):
            reader, writer = await asyncio.open_connection(_reachable(host), port, limit=ANSWER_BYTES_MAX)
            try:
                request = f"GET {path} HTTP/1.1\r\nHost: {authority(host, port)}\r\nConnection: close\r\n\r\n"
                writer.write(request.encode())
                words = (await reader.readline()).split()
                status = words[1].decode(errors="replace") if len(words) > 1 else "no status line"
                if status == "200":
                    return _Answer(status)
                return _Answer(status, (await _all_of(reader)).partition(b"\r\n\r\n")[2])
            finally:
                writer.close()
    except (OSError, TimeoutError) as problem:
        return _Answer(type(problem).__name__)


async def _all_of(reader: asyncio.StreamReader) -> bytes:
    """What comes until the server closes, ANSWER_BYTES_MAX at most."""
    try:
        return await reader.readexactly(ANSWER_BYTES_MAX)
    except asyncio.IncompleteReadError as all_of_it:
        return all_of_it.partial


def _why(body: bytes) -> str:
    """The checks that make it not ready, with a colon before them; empty where the answer names none."""
    try:
        checks = msgspec.json.decode(body, type=_Readiness).checks
    except (msgspec.DecodeError, RecursionError):
        return ""
    reasons = [f"{check.name}: {check.detail}" for check in checks if check.required and not check.ok]
    return ": " + "; ".join(reasons) if reasons else ""
