"""MCP over stdin and stdout: one message a line, for clients that start us as a child.

The SDK's own transport reads in a thread that cannot be stopped: after SIGTERM the process would stay until its client
closed stdin. It also reads lines of any length, and drops pending calls when stdin ends. Here there is no thread, a
line has a limit, and pending requests are answered before the end.
"""

import asyncio
import contextlib
import logging
import os
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any, Final

import anyio
from anyio.streams.memory import MemoryObjectReceiveStream, MemoryObjectSendStream
from mcp.server import Server
from mcp.shared.dispatcher import coerce_request_id
from mcp.shared.message import SessionMessage
from mcp_types import (
    INVALID_REQUEST,
    PARSE_ERROR,
    ErrorData,
    JSONRPCError,
    JSONRPCMessage,
    JSONRPCNotification,
    JSONRPCRequest,
    JSONRPCResponse,
    RequestId,
    jsonrpc_message_adapter,
)
from pydantic import ValidationError

from streamproc.clients.json_text import names_are_unique
from streamproc.mcp.calls import CALL_LONGEST_S

LINE_BYTES_MAX: Final = 256 * 1024
"""Longest message: a request for a payout has some 2 kB, and the API takes no more than this by default."""
READ_BYTES: Final = 64 * 1024
WRITE_BYTES: Final = 4096
"""PIPE_BUF: a pipe that is ready takes this much without blocking."""
IN_HAND_MAX: Final = 256
"""Most unanswered requests; then nothing more is read until the client has read answers."""
CLOSE_S_MAX: Final = 5.0
"""For the SDK to end and the last answers to be written, once every request is answered or given up."""
log = logging.getLogger(__name__)

Incoming = MemoryObjectSendStream[SessionMessage | Exception]


class InHand:
    """Unanswered requests, by id as the SDK compares them: "7" and 7 are the same."""

    def __init__(self) -> None:
        self._ids: Counter[RequestId] = Counter()
        self._fewer = asyncio.Event()

    @property
    def number(self) -> int:
        """How many there are."""
        return self._ids.total()

    def received(self, message: JSONRPCMessage) -> None:
        """A message came in. A request that its client cancels is not answered any more."""
        if isinstance(message, JSONRPCRequest):
            self._ids[coerce_request_id(message.id)] += 1
        elif isinstance(message, JSONRPCNotification) and message.method == "notifications/cancelled":
            self._gone((message.params or {}).get("requestId"))

    def sent(self, message: JSONRPCMessage) -> None:
        """A message went out."""
        if isinstance(message, JSONRPCResponse | JSONRPCError):
            self._gone(message.id)

    async def at_most(self, number: int) -> None:
        """Wait until there are at most `number`."""
        while self.number > number:
            self._fewer.clear()
            await self._fewer.wait()

    def _gone(self, name: Any) -> None:
        if isinstance(name, int | str) and not isinstance(name, bool):
            self._ids -= Counter([coerce_request_id(name)])
        self._fewer.set()


async def serve_stdio(server: Server[Any], stopping: asyncio.Event, *, drain_s: float) -> None:
    """Serve the client at stdin and stdout until stdin ends or we are stopping.

    Requests read before are answered: after `stopping` within `drain_s`, else as each call ends.
    """
    with _own_descriptors() as (source, sink):
        incoming, read = anyio.create_memory_object_stream[SessionMessage | Exception](0)
        write, outgoing = anyio.create_memory_object_stream[SessionMessage](0)
        in_hand = InHand()
        serving = asyncio.create_task(server.run(read, write, server.create_initialization_options()))
        reading = asyncio.create_task(_read(source, incoming, write.clone(), in_hand))
        writing = asyncio.create_task(_write(sink, outgoing, in_hand))
        stop = asyncio.create_task(stopping.wait())
        try:
            await asyncio.wait({serving, reading, writing, stop}, return_when=asyncio.FIRST_COMPLETED)
            await _ended(reading)
            if not writing.done():
                await _until_answered(in_hand, stop, drain_s)
            await incoming.aclose()
            await asyncio.wait({serving, writing}, timeout=CLOSE_S_MAX)
        finally:
            for task in (serving, reading, writing, stop):
                await _ended(task)


async def _until_answered(in_hand: InHand, stop: asyncio.Task[Any], drain_s: float) -> None:
    """Wait until everything is answered, or the time for that is over."""
    answered = asyncio.create_task(in_hand.at_most(0))
    await asyncio.wait({answered, stop}, timeout=CALL_LONGEST_S, return_when=asyncio.FIRST_COMPLETED)
    if stop.done():
        await asyncio.wait({answered}, timeout=drain_s)
    await _ended(answered)


async def _ended(task: asyncio.Task[Any]) -> None:
    """Wait for the end of a task. Raises what it failed with, unless the client has gone."""
    task.cancel()
    try:
        await task
    except (BrokenPipeError, ConnectionResetError):
        log.info("the client has gone")
    except asyncio.CancelledError:
        current = asyncio.current_task()
        if current is not None and current.cancelling():
            raise


# ---- messages ----


async def _read(
    source: int, incoming: Incoming, write: MemoryObjectSendStream[SessionMessage], in_hand: InHand
) -> None:
    """Pass on each message. A line that is not one gets an error, as JSON-RPC wants it, and reading goes on."""
    async with write:
        async for line in _lines(source):
            try:
                if line is None:
                    raise ValueError(f"a message is over {LINE_BYTES_MAX} bytes")
                message = jsonrpc_message_adapter.validate_json(line, by_name=False)
                if not names_are_unique(line):
                    raise ValueError("a message names a field twice")
            except (ValidationError, ValueError) as problem:
                await write.send(SessionMessage(_no_message(problem)))
                continue
            in_hand.received(message)
            await incoming.send(SessionMessage(message))
            await in_hand.at_most(IN_HAND_MAX)


def _no_message(problem: ValueError) -> JSONRPCError:
    """The error for such a line, without the line itself, which may be anything."""
    if isinstance(problem, ValidationError):
        is_json = problem.errors(include_input=False, include_url=False)[0]["type"] != "json_invalid"
        code, text = (
            (INVALID_REQUEST, "no JSON-RPC message") if is_json else (PARSE_ERROR, "the line is no JSON")
        )
    else:
        code, text = INVALID_REQUEST, str(problem)
    log.warning("a line of stdin was refused: %s", text)
    return JSONRPCError(jsonrpc="2.0", id=None, error=ErrorData(code=code, message=text))


async def _write(sink: int, outgoing: MemoryObjectReceiveStream[SessionMessage], in_hand: InHand) -> None:
    async with outgoing:
        async for one in outgoing:
            text = one.message.model_dump_json(by_alias=True, exclude_unset=True)
            left = memoryview(f"{text}\n".encode())
            while left:
                await _ready(sink, to_write=True)
                left = left[os.write(sink, left[:WRITE_BYTES]) :]
            in_hand.sent(one.message)


# ---- bytes ----


async def _lines(source: int) -> AsyncIterator[bytes | None]:
    """Lines that are not blank; None for one over the limit, whose bytes are dropped."""
    held, too_long = bytearray(), False
    while True:
        await _ready(source, to_write=False)
        found = os.read(source, READ_BYTES)
        *whole, rest = found.split(b"\n")
        for part in whole:
            held += part
            if too_long or len(held) > LINE_BYTES_MAX:
                yield None
            elif held.strip():
                yield bytes(held)
            held, too_long = bytearray(), False
        held += rest
        if len(held) > LINE_BYTES_MAX:
            held, too_long = bytearray(), True
        if not found:
            if held.strip():
                yield bytes(held)
            return


async def _ready(descriptor: int, *, to_write: bool) -> None:
    """Wait until a descriptor can be read or written. A file always can, so this returns at once."""
    loop = asyncio.get_running_loop()
    add: Callable[..., None] = loop.add_writer if to_write else loop.add_reader
    remove: Callable[[int], bool] = loop.remove_writer if to_write else loop.remove_reader
    ready = loop.create_future()
    try:
        add(descriptor, lambda: None if ready.done() else ready.set_result(None))
    except PermissionError:  # epoll's answer for a file
        await asyncio.sleep(0)
        return
    try:
        await ready
    finally:
        remove(descriptor)


@contextlib.contextmanager
def _own_descriptors() -> Iterator[tuple[int, int]]:
    """stdin and stdout for the protocol alone: meanwhile descriptor 0 is empty, and prints to 1 go to stderr."""
    with contextlib.ExitStack() as stack:
        source, sink = os.dup(0), os.dup(1)
        nothing = os.open(os.devnull, os.O_RDONLY)
        for mine, number, instead in ((source, 0, nothing), (sink, 1, 2)):
            stack.callback(os.close, mine)
            os.dup2(instead, number)
            stack.callback(os.dup2, mine, number)
        os.close(nothing)
        yield source, sink
