"""One client's connection: how much it may send before it is known, and how long it may take.

uvicorn's protocol limits neither a request's head, nor requests that wait behind another, nor the time of a client
that says nothing or reads nothing. Whoever reaches the port could fill memory and sockets with that, without a token.
"""

import asyncio
from http import HTTPStatus
from typing import Any, Final, cast

import httptools
import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle
from uvicorn.server import ServerState

from streamproc.api.gathering import Gathering
from streamproc.ingress.deadline import Deadline, Deadlines
from streamproc.ingress.problems import PROBLEM_JSON, problem_body
from streamproc.ingress.refusals import ThrottledWarning

KEEP_ALIVE_S: Final = 5
"""An idle connection is closed after this: uvicorn's own default, with which proxies and the bank can deal."""
HEAD_BYTES_MAX: Final = 64 * 1024
"""Request line and headers; the largest honest ones are some kB."""
HEAD_READ_S_MAX: Final = 10.0
"""As long as a body may take. A new connection that says nothing for so long is closed too."""
BEHIND_MAX: Final = 64
"""Requests that wait behind one that is not answered yet. No client of ours sends any; each takes some 2 kB."""
SEND_S_MAX: Final = 30.0
"""So long a client may read nothing of what waits for it, or take to read the last of it."""


class Times:
    """The deadlines of all connections of a server, each kind on one timer."""

    def __init__(self) -> None:
        self.idle = Deadlines(KEEP_ALIVE_S)
        self.head = Deadlines(HEAD_READ_S_MAX)
        self.sending = Deadlines(SEND_S_MAX)


class _Loop:
    """What uvicorn's protocol uses of the loop: tasks, and after each answer a timer that closes an idle connection."""

    def __init__(self, loop: asyncio.AbstractEventLoop, idle: Deadlines) -> None:
        self.create_task = loop.create_task
        self._loop, self._idle = loop, idle

    def call_later(self, after_s: float, back: Any) -> Deadline | asyncio.TimerHandle:
        """A timer; those of uvicorn's keep-alive are all alike, and share one."""
        if after_s == self._idle.after_s:
            return self._idle.call(back, self._loop)
        return self._loop.call_later(after_s, back)


class _Refused(Exception):
    """Ends the parser's work on what was read."""


class Protocol(HttpToolsProtocol):
    """uvicorn's own protocol, over a gathering transport, with cheap timers and with limits."""

    def __init__(
        self,
        config: uvicorn.Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
        *,
        times: Times,
        refused: ThrottledWarning,
    ) -> None:
        self._real_loop = _loop or asyncio.get_running_loop()
        timers: Any = _Loop(self._real_loop, times.idle)
        super().__init__(config, server_state, app_state, timers)
        self._times, self._refusals = times, refused
        self._waits_for_head: Deadline | None = None
        self._waits_for_reader: Deadline | None = None
        self._begun: Any = None
        """The scope of a head that has not arrived whole."""
        self._more_of_head = 0
        """Bytes read for it after the read in which it began."""
        self._may_be_long = False
        self._is_deaf = False
        """Nothing that comes is looked at any more: the answers in hand are the last ones."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """A client is connected."""
        gathering: Any = Gathering(cast("asyncio.Transport", transport), self._real_loop, self._closing)
        super().connection_made(gathering)
        self._waits_for_head = self._times.head.call(self._head_is_late, self._real_loop)

    def connection_lost(self, exc: Exception | None) -> None:
        """It is closed."""
        self._head_is_there()
        self._reader_is_there()
        self._begun = None
        gathering: Any = self.transport
        gathering.forget()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """The next bytes of a client."""
        if self._is_deaf:
            return
        self._unset_keepalive_if_required()
        before = self._begun
        self._may_be_long = before is not None or len(data) > HEAD_BYTES_MAX
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade:  # no other protocol is spoken: the request is answered as it is
            self._hear_no_more()
        except httptools.HttpParserError:
            if not self._is_deaf:
                self._refuse(400, "this is no HTTP/1.1 request")
        else:
            self._look_at_head(before, len(data))
        self._look_at_time()

    def on_headers_complete(self) -> None:
        """A head is whole. Raises _Refused, which stops the parser, after it has refused the request."""
        if len(self.pipeline) >= BEHIND_MAX:
            self._hear_no_more()
            raise _Refused
        if self._may_be_long and _size(self.url, self.headers) > HEAD_BYTES_MAX:
            self._refuse_long()
            raise _Refused
        super().on_headers_complete()

    def pause_writing(self) -> None:
        """More waits for the client than the transport wants to hold."""
        super().pause_writing()
        self._wait_for_reader()

    def resume_writing(self) -> None:
        """The client reads."""
        super().resume_writing()
        if not self.transport.is_closing():
            self._reader_is_there()

    # ---- a head: its size and its time ----

    def _look_at_head(self, before: Any, read: int) -> None:
        """After each read: a head that goes on and on is refused before it is whole."""
        newest = self._newest()
        is_whole = newest is not None and newest.scope is self.scope
        self._begun = None if is_whole else self.scope
        self._more_of_head = self._more_of_head + read if self._begun is before else 0
        if self._begun is not None and self._more_of_head > HEAD_BYTES_MAX:
            self._refuse_long()

    def _look_at_time(self) -> None:
        """A client of whom nothing is in hand has HEAD_READ_S_MAX to ask for something, however it drips."""
        newest = self._newest()
        if newest is not None and not newest.response_complete:
            self._head_is_there()
        elif self._waits_for_head is None and not self.transport.is_closing():
            self._waits_for_head = self._times.head.call(self._head_is_late, self._real_loop)

    def _head_is_there(self) -> None:
        if self._waits_for_head is not None:
            self._waits_for_head.cancel()
            self._waits_for_head = None

    def _head_is_late(self) -> None:
        self._waits_for_head = None
        if self.transport.is_closing():
            return
        if self._begun is None:  # it said nothing, or sends a body that nobody waits for
            self.transport.close()
        else:
            self._refuse(408, f"the request's head did not arrive within {HEAD_READ_S_MAX:g} s")

    # ---- refusals ----

    def _refuse_long(self) -> None:
        self._refuse(431, f"the request's head is over {HEAD_BYTES_MAX} bytes")

    def _refuse(self, status: int, detail: str) -> None:
        """Answer what is no request of ours, unless answers in hand would come after that, and close."""
        self._refusals.count()
        self._hear_no_more()
        newest = self._newest()
        in_hand = None if newest is None or newest.response_complete else newest
        if in_hand is not None and not in_hand.more_body:
            return
        if in_hand is None or not (self.pipeline or in_hand.response_started):
            body = problem_body(status, detail)
            head = b"HTTP/1.1 %d %s\r\ncontent-type: %s\r\ncontent-length: %d\r\nconnection: close\r\n\r\n"
            phrase = HTTPStatus(status).phrase.encode("ascii")
            self.transport.write(head % (status, phrase, PROBLEM_JSON, len(body)) + body)
        self.transport.close()

    def _hear_no_more(self) -> None:
        """The newest request whose answer is in hand is the last one of this connection."""
        self._is_deaf = True
        if (newest := self._newest()) is not None:
            newest.keep_alive = False

    def _newest(self) -> RequestResponseCycle | None:
        """The last request whose head is whole; answered or not. None: there was none yet."""
        return self.cycle

    # ---- a client that does not read ----

    def _closing(self) -> None:
        """It is closed as soon as all is sent, and that ends too."""
        self._wait_for_reader()

    def _wait_for_reader(self) -> None:
        if self._waits_for_reader is None:
            self._waits_for_reader = self._times.sending.call(self._reads_nothing, self._real_loop)

    def _reader_is_there(self) -> None:
        if self._waits_for_reader is not None:
            self._waits_for_reader.cancel()
            self._waits_for_reader = None

    def _reads_nothing(self) -> None:
        self._waits_for_reader = None
        self.transport.abort()


def _size(url: bytes, headers: list[tuple[bytes, bytes]]) -> int:
    """Bytes of a head, without what is alike in all of them."""
    return len(url) + sum(len(name) + len(value) for name, value in headers)
