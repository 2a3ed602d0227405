"""The functions by which code reports to metrics and traces. Until a role turns them on they cost one `if`.

Code that many packages share calls these functions and knows nothing of Prometheus or OpenTelemetry. They neither raise
nor wait.
"""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from time import time_ns
from typing import TYPE_CHECKING, NamedTuple

from streamproc.errors import TryAgain

if TYPE_CHECKING:
    from streamproc.telemetry.metrics import Meters
    from streamproc.telemetry.spans import Tracer

CALLS_MAX = 64
"""Calls kept for one payout's handling, or for one batch; later ones are only counted."""


class Server(NamedTuple):
    """An outside system's address."""

    address: str
    port: int
    base: str
    """The URL that precedes the paths of its calls, without login and query."""


class Call(NamedTuple):
    """A wait for something outside. Times are ns since 1970 by this host's clock."""

    what: str
    """`barrier`, or the system that was called."""
    detail: str
    """Method and path, without secrets."""
    outcome: str
    begun_ns: int
    ended_ns: int
    server: Server | None = None


log = logging.getLogger(__name__)


class _State:
    meters: "Meters | None" = None
    tracer: "Tracer | None" = None
    failed: bool = False


_calls: ContextVar[list[Call] | None] = ContextVar("streamproc_calls", default=None)


_caller: ContextVar[str] = ContextVar("streamproc_caller", default="")


def turn_on(meters: "Meters", tracer: "Tracer | None" = None) -> None:
    """From now on this process counts, and traces if it has a tracer."""
    _State.meters, _State.tracer, _State.failed = meters, tracer, False


def turn_off() -> None:
    """Stop counting and tracing."""
    _State.meters = _State.tracer = None


def meters() -> "Meters | None":
    """This process's meters; None if they are off."""
    return _State.meters


@contextmanager
def unharmed() -> Iterator[None]:
    """Keeps a defect in telemetry from stopping the work: it is logged once."""
    try:
        yield
    except Exception:  # the batch is committed, and a worker must not die of its metrics
        if not _State.failed:
            _State.failed = True
            log.exception("metrics or traces are incomplete from now on: reporting a batch failed")


def tracer() -> "Tracer | None":
    """This process's tracer; None if there is none."""
    return _State.tracer


def collect_calls(calls: list[Call]) -> None:
    """Collect calls in `calls` from here on, in this task and those it starts, except within `collecting_calls`."""
    _calls.set(calls)


def called_by(traceparent: str) -> None:
    """Set the trace context (W3C) of the request that caused what this task appends from here on."""
    _caller.set(traceparent)


def with_caller(m: bytes) -> bytes:
    """An entry's metadata with the trace context of the request that caused it; unchanged without tracing."""
    if _State.tracer is None or not (caller := _caller.get()):
        return m
    return m[:-1] + b',"trace":"' + caller.encode() + b'"}'


@contextmanager
def collecting_calls(calls: list[Call]) -> Iterator[None]:
    """Also collect the calls within this context in `calls`: those of one payout, or of a batch."""
    token = _calls.set(calls)
    try:
        yield
    finally:
        _calls.reset(token)


class Called:
    """Context of one call to an outside system. `outcome` may be set within; an exception sets it by its kind."""

    __slots__ = ("_begun_ns", "_detail", "_server", "_what", "outcome")

    def __init__(self, what: str, detail: str = "", server: Server | None = None) -> None:
        self._what, self._detail, self._server = what, detail, server
        self.outcome = "ok"

    def __enter__(self) -> "Called":
        self._begun_ns = time_ns()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None:
            self.outcome = outcome_of(kind)
        _note_call(self._what, self._detail, self.outcome, self._begun_ns, self._server)


def outcome_of(kind: type[BaseException]) -> str:
    """`put_off` if it is tried again, `unknown` if the answer was lost, `cancelled` at a stop, else `failed`."""
    if issubclass(kind, TryAgain):
        return "unknown" if kind.may_be_done else "put_off"
    return "failed" if issubclass(kind, Exception) else "cancelled"


def _note_call(what: str, detail: str, outcome: str, begun_ns: int, server: Server | None) -> None:
    if _State.meters is None:
        return
    ended_ns = time_ns()
    _State.meters.waited(what, outcome, (ended_ns - begun_ns) / 1e9)
    calls = _calls.get()
    if calls is not None and len(calls) < CALLS_MAX:
        calls.append(Call(what, detail, outcome, begun_ns, ended_ns, server))


def appended(producer: str, new: int, known: int, begun_ns: int) -> None:
    """Report that a producer's deliveries were appended, or were known already."""
    if _State.meters is not None:
        _State.meters.appended(producer, new, known, (time_ns() - begun_ns) / 1e9)


def notified(kind: str, channel: str) -> None:
    """Report a message to people that no log entry caused: a digest."""
    if _State.meters is not None:
        _State.meters.notifications.labels(kind, channel).inc()


def polled(*, good: bool) -> None:
    """Report that a pass over the bank's list was completed, or failed."""
    if _State.meters is not None:
        _State.meters.polls.labels("good" if good else "failed").inc()


def taken_up(group: str, how: str, entries: int) -> None:
    """Report that a consumer took up pending entries: `claim` or `retry`."""
    if _State.meters is not None:
        _State.meters.taken_up.labels(group, how).inc(entries)
