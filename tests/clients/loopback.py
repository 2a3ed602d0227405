"""A scripted HTTP server on 127.0.0.1: it answers with bytes, hangs, or hangs up, and remembers what it was asked."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from typing import NamedTuple
from urllib.parse import parse_qs, urlsplit

from msgspec.json import encode

from tests.hurry import pass_at_once


class Asked(NamedTuple):
    method: str
    target: str
    headers: dict[str, str]
    body: bytes

    @property
    def path(self) -> str:
        return urlsplit(self.target).path

    @property
    def query(self) -> dict[str, str]:
        return {name: values[0] for name, values in parse_qs(urlsplit(self.target).query).items()}


Script = Callable[[Asked], Awaitable[bytes | None]]
"""The raw response, or None: hang up without one."""


class Loopback:
    def __init__(self, script: Script) -> None:
        self.script = script
        self.asked: list[Asked] = []
        self.url = ""

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                asked = await _read(reader)
                self.asked.append(asked)
                answer = await self.script(asked)
                if answer is None:
                    break
                writer.write(answer)
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()


@asynccontextmanager
async def loopback(script: Script) -> AsyncIterator[Loopback]:
    served = Loopback(script)
    tasks: set[asyncio.Task[None]] = set()

    def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.create_task(served._serve(reader, writer))
        tasks.add(task)

    server = await asyncio.start_server(accept, "127.0.0.1", 0)
    served.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    try:
        yield served
    finally:
        server.close()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _read(reader: asyncio.StreamReader) -> Asked:
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
    method, target, _ = head[0].split(" ")
    headers = {
        name.lower(): value.strip() for name, _, value in (line.partition(":") for line in head[1:] if line)
    }
    body = await reader.readexactly(int(headers.get("content-length", "0")))
    return Asked(method, target, headers, body)


def response(status: int, body: bytes = b"", **headers: str) -> bytes:
    lines = [f"HTTP/1.1 {status} Whatever", f"content-length: {len(body)}"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    return "\r\n".join([*lines, "", ""]).encode() + body


def always(status: int, body: object = b"", **headers: str) -> Script:
    raw = body if isinstance(body, bytes) else encode(body)

    async def script(_asked: Asked) -> bytes:
        return response(status, raw, **headers)

    return script


def in_turn(*answers: bytes | None) -> Script:
    """Each request gets the next answer; the last one is repeated."""
    left = list(answers)

    async def script(_asked: Asked) -> bytes | None:
        return left.pop(0) if len(left) > 1 else left[0]

    return script


NO_ANSWERS: Sequence[Script] = (
    always(403),
    always(429),
    always(500),
    always(503, b"<html>"),
    always(302, location="https://elsewhere.example/"),
    in_turn(None),
    always(200, b""),
    always(200, b"<html>"),
    always(200, []),
)
"""What no JSON API's client takes for an answer."""


async def hang(_asked: Asked) -> bytes | None:
    await asyncio.get_running_loop().create_future()
    return None


def silent_for(seconds: float) -> Script:
    """Each request is taken, and then nothing comes until so many seconds have passed, which they do at once."""

    async def script(asked: Asked) -> bytes | None:
        pass_at_once(seconds)
        return await hang(asked)

    return script


class HandClock:
    """Seconds that pass when the test says so."""

    def __init__(self) -> None:
        self.now_s = 1_000.0

    def __call__(self) -> float:
        return self.now_s
