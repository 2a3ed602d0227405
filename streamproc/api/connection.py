"""One client's connection: how much it may send before it is known, and how long it may take.

uvicorn's protocol limits neither a request's head, nor requests that wait behind another, nor the time of a client
that says nothing or reads nothing. Whoever reaches the port could fill memory and sockets with that, without a token.
How many connections there may be is in `connection_limit.py`.
"""

import asyncio
from http import HTTPStatus
from typing import Any, Final, cast

import httptools
import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle
from uvicorn.server import ServerState

from streamproc.api.connection_limit import ConnectionLimit
from streamproc.api.gathering import Gathering
from streamproc.ingress.deadline import Deadline, Deadlines
from streamproc.ingress.problems import PROBLEM_JSON, problem_body
from streamproc.ingress.refusals import ThrottledWarning

KEEP_ALIVE_S: Final = 5
"""An idle connection is closed after this: uvicorn's own default, with which proxies and the bank can deal."""
HEAD_BYTES_MAX: Final = 64 * 1024
"""Request line and headers, and again a body's trailers; the largest honest ones are some kB."""
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


class _Dropped(list[tuple[bytes, bytes]]):
    """Where the parser puts a body's trailers. uvicorn would add them to the request's headers, as which they must not
    pass: a proxy in front has looked at the headers only."""

    def append(self, _trailer: tuple[bytes, bytes]) -> None:
        """Keep nothing."""


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
        limit: ConnectionLimit,
        refused: ThrottledWarning,
    ) -> None:
        self._event_loop = _loop or asyncio.get_running_loop()
        timers: Any = _Loop(self._event_loop, times.idle)
        super().__init__(config, server_state, app_state, timers)
        self._times, self._limit, self._refusals = times, limit, refused
        self._head_deadline: Deadline | None = None
        self._send_deadline: Deadline | None = None
        self._partial_head: Any = None
        """The scope of a request whose head has not arrived whole; None if there is none."""
        self._partial_bytes = 0
        """Bytes read of that head after the read in which it began."""
        self._check_size = False
        """Whether the head in hand may be over the limit: only what came in several reads, or in a large one."""
        self._went_on = False
        """Whether the last read ended a head, or held some of a body."""
        self._trailer_bytes = 0
        """Bytes read after a whole head in reads that held nothing of a body: trailers, or what extends a chunk."""
        self._stopped_reading = False
        """What still comes is dropped: the answers in hand are the last ones."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """A client is connected."""
        gathering: Any = Gathering(
            cast("asyncio.Transport", transport), self._event_loop, self._start_send_deadline
        )
        super().connection_made(gathering)
        self._head_deadline = self._times.head.call(self._head_timed_out, self._event_loop)
        if not self._limit.join(self):
            self.make_room()

    def connection_lost(self, exc: Exception | None) -> None:
        """It is closed."""
        self._limit.leave(self)
        self._cancel_head_deadline()
        self._cancel_send_deadline()
        self._partial_head = None
        gathering: Any = self.transport
        gathering.forget()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """The next bytes of a client."""
        if self._stopped_reading:
            return
        self._unset_keepalive_if_required()
        before = self._partial_head
        self._check_size = before is not None or len(data) > HEAD_BYTES_MAX
        self._went_on = False
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade:  # no other protocol is spoken: the request is answered as it is
            self._stop_reading()
        except httptools.HttpParserError:
            if not self._stopped_reading:
                self._refuse(400, "this is no HTTP/1.1 request")
        else:
            self._check_head_size(before, len(data))
            self._check_trailer_size(len(data))
        self._update_head_deadline()

    def eof_received(self) -> bool:  # type: ignore[override]  # asyncio allows it
        """The client sends nothing more, and may still read: what it has asked for is answered before we close. True:
        the transport is left to us; it would drop what is not sent yet."""
        last = self._last_cycle()
        is_cut_off = last is not None and last.more_body
        if last is None or last.response_complete or is_cut_off:
            self.transport.close()
        else:
            self._stop_reading()
        return True

    def on_headers_complete(self) -> None:
        """A head is whole. Raises _Refused, which stops the parser, after it has refused the request."""
        if len(self.pipeline) >= BEHIND_MAX:
            self._stop_reading()
            raise _Refused
        if self._check_size and _size(self.url, self.headers) > HEAD_BYTES_MAX:
            self._refuse_head_size()
            raise _Refused
        super().on_headers_complete()
        self.headers, self._went_on = _Dropped(), True

    def on_body(self, body: bytes) -> None:
        """Some of a body."""
        self._went_on = True
        super().on_body(body)

    def on_response_complete(self) -> None:
        """A request is answered; the next one of this client, if it waits already, begins."""
        self._limit.answered(self)
        super().on_response_complete()

    def waits_for_client(self) -> bool:
        """Whether it is the client's turn: to ask, to send the rest, or to read what was answered."""
        if self._send_deadline is not None:
            return True
        last = self._last_cycle()
        return not self.pipeline and (last is None or last.response_complete or last.more_body)

    def make_room(self) -> None:
        """Close it now, unanswered: other clients need its place."""
        self._stopped_reading = True
        self.transport.abort()

    def pause_writing(self) -> None:
        """More waits for the client than the transport wants to hold."""
        super().pause_writing()
        self._start_send_deadline()

    def resume_writing(self) -> None:
        """The client reads."""
        super().resume_writing()
        if not self.transport.is_closing():
            self._cancel_send_deadline()

    # ---- a head: its size and its time ----

    def _check_head_size(self, before: Any, read: int) -> None:
        """After each read: a head that goes on and on is refused before it is whole."""
        last = self._last_cycle()
        is_whole = last is not None and last.scope is self.scope
        self._partial_head = None if is_whole else self.scope
        self._partial_bytes = self._partial_bytes + read if self._partial_head is before else 0
        if self._partial_head is not None and self._partial_bytes > HEAD_BYTES_MAX:
            self._refuse_head_size()

    def _check_trailer_size(self, read: int) -> None:
        """After each read: the parser keeps a trailer until it is whole, and would do so for ever."""
        is_trailer = self._partial_head is None and not self._went_on
        self._trailer_bytes = self._trailer_bytes + read if is_trailer else 0
        if self._trailer_bytes > HEAD_BYTES_MAX:
            self._refuse(431, f"the request's trailers are over {HEAD_BYTES_MAX} bytes")

    def _update_head_deadline(self) -> None:
        """A client of whom nothing is in hand has HEAD_READ_S_MAX to ask for something, however it drips."""
        last = self._last_cycle()
        if last is not None and not last.response_complete:
            self._cancel_head_deadline()
        elif self._head_deadline is None and not self.transport.is_closing():
            self._head_deadline = self._times.head.call(self._head_timed_out, self._event_loop)

    def _cancel_head_deadline(self) -> None:
        if self._head_deadline is not None:
            self._head_deadline.cancel()
            self._head_deadline = None

    def _head_timed_out(self) -> None:
        self._head_deadline = None
        if self.transport.is_closing():
            return
        if self._partial_head is None:  # it said nothing, or sends a body that nobody waits for
            self.transport.close()
        else:
            self._refuse(408, f"the request's head did not arrive within {HEAD_READ_S_MAX:g} s")

    # ---- refusals ----

    def _refuse_head_size(self) -> None:
        self._refuse(431, f"the request's head is over {HEAD_BYTES_MAX} bytes")

    def _refuse(self, status: int, detail: str) -> None:
        """Answer with a problem and close; without that answer where it would come before those to earlier requests."""
        self._refusals.count()
        self._stop_reading()
        last = self._last_cycle()
        in_hand = None if last is None or last.response_complete else last
        if in_hand is not None and not in_hand.more_body:
            return
        if in_hand is None or not (self.pipeline or in_hand.response_started):
            body = problem_body(status, detail)
            head = b"HTTP/1.1 %d %s\r\ncontent-type: %s\r\ncontent-length: %d\r\nconnection: close\r\n\r\n"
            phrase = HTTPStatus(status).phrase.encode("ascii")
            self.transport.write(head % (status, phrase, PROBLEM_JSON, len(body)) + body)
        self.transport.close()

    def _stop_reading(self) -> None:
        """Answer the requests whose heads are whole, and no later ones."""
        self._stopped_reading = True
        if (last := self._last_cycle()) is not None:
            last.keep_alive = False

    def _last_cycle(self) -> RequestResponseCycle | None:
        """The last request whose head is whole, answered or not. None: there was none yet."""
        return self.cycle

    # ---- a client that does not read ----

    def _start_send_deadline(self) -> None:
        if self._send_deadline is None:
            self._send_deadline = self._times.sending.call(self._send_timed_out, self._event_loop)

    def _cancel_send_deadline(self) -> None:
        if self._send_deadline is not None:
            self._send_deadline.cancel()
            self._send_deadline = None

    def _send_timed_out(self) -> None:
        self._send_deadline = None
        self.transport.abort()


def _size(url: bytes, headers: list[tuple[bytes, bytes]]) -> int:
    """Bytes of a head's target, names and values; separators and the version are left out."""
    return len(url) + sum(len(name) + len(value) for name, value in headers)
