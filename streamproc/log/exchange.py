"""Sends one command and takes its answer, on a connection that redis-py has opened, without redis-py's own reading.

redis-py gives each command a retry, a stream with a buffer of its own, two timeouts and six coroutines. A payout that
comes alone costs some five commands, and most of its time was this. Here a command is one write, its answer is taken by
one callback, and both have one deadline. After an answer that came late, was given up, or that nobody had asked for,
the connection is not used again: the next answer could be another question's.
"""

import asyncio
from typing import Any

import hiredis
from redis._parsers import BaseParser
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import InvalidResponse
from redis.exceptions import TimeoutError as RedisTimeoutError

_MORE = object()
"""What the parser returns while an answer is incomplete."""


class Exchange(asyncio.Protocol):
    """The protocol of one connection, one question at a time. It replaces the protocol that opened the connection."""

    def __init__(self, transport: asyncio.Transport) -> None:
        self.transport = transport
        self._opened_by = transport.get_protocol()
        self._loop = asyncio.get_running_loop()
        self._parser = hiredis.Reader(
            protocolError=InvalidResponse, replyError=BaseParser.parse_error, notEnoughData=_MORE
        )
        self._answer: asyncio.Future[Any] | None = None
        self._ended = ""
        transport.set_protocol(self)

    @property
    def is_quiet(self) -> bool:
        """Whether a question can be asked: the server is there, and has said nothing since its last answer."""
        return not self._ended and self._answer is None and not self.transport.is_closing()

    async def ask(self, command: bytes, within_s: float | None) -> Any:
        """Write a packed command and wait for its answer; an error reply is returned, not raised.

        Raises redis's ConnectionError and TimeoutError. After these, and when it is cancelled, the connection is to be
        closed.
        """
        if self._ended:
            raise RedisConnectionError(self._ended)
        if self._answer is not None:
            raise RuntimeError("a question is asked before the last one was answered")
        self._answer = answer = self._loop.create_future()
        late = None if within_s is None else self._loop.call_later(within_s, self._is_late)
        try:
            self.transport.write(command)
            return await answer
        except (OSError, RuntimeError) as problem:
            # RuntimeError: uvloop's word for a transport that its peer has reset since the last answer.
            raise RedisConnectionError(f"{type(problem).__name__} while writing to socket") from problem
        finally:
            self._answer = None
            if late is not None:
                late.cancel()

    def data_received(self, data: bytes) -> None:
        """Some bytes of an answer."""
        answer = self._answer
        if answer is None or answer.done():
            self._end(RedisConnectionError("the server said what nobody was waiting for"))
            return
        try:
            self._parser.feed(data)
            reply = self._parser.gets()
        except InvalidResponse as problem:
            self._end(problem)
            return
        if reply is _MORE:
            return
        if self._parser.has_data():
            self._end(RedisConnectionError("the server said more than it was asked"))
        else:
            answer.set_result(reply)

    def connection_lost(self, exc: Exception | None) -> None:
        """The connection ended; so does the question that waits for an answer."""
        self._end(RedisConnectionError("Connection closed by server." if exc is None else type(exc).__name__))
        self._opened_by.connection_lost(exc)  # wakes whoever waits for the close

    def _is_late(self) -> None:
        if self._answer is None or self._answer.done():
            return  # the loop stood still: answer and deadline came in the same iteration
        self._end(RedisTimeoutError("Timeout reading from socket"))

    def _end(self, problem: Exception) -> None:
        self._ended = self._ended or str(problem)
        if self._answer is not None and not self._answer.done():
            self._answer.set_exception(problem)
        self.transport.abort()
