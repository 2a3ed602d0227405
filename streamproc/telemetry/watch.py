"""Where the running code says what happened. Nobody listens until a role turns it on: then one `if` is all it costs.

Places that many packages share call these functions and know nothing of Prometheus or OpenTelemetry. Nothing here
raises for what it is told, and nothing here waits.
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
"""Calls kept of one payout's handling, or of one batch; later ones are only counted."""


class Server(NamedTuple):
    """Where an outside system is."""

    address: str
    port: int
    base: str
    """What the paths of its calls are below: an address without who logs in and without a query."""


class Call(NamedTuple):
    """Something that was waited for. Times are ns since 1970 by this host's clock."""

    what: str
    """`barrier`, or the system that was called."""
    detail: str
    """The method and the path, which holds no secret."""
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
    """From now on this process counts, and traces where there is somebody who takes that."""
    _State.meters, _State.tracer, _State.failed = meters, tracer, False


def turn_off() -> None:
    """Nobody listens any more."""
    _State.meters = _State.tracer = None


def meters() -> "Meters | None":
    """What counts in this process; None where nobody listens."""
    return _State.meters


@contextmanager
def unharmed() -> Iterator[None]:
    """What is only told of must not stop what it tells of: a defect here is said once, and the work goes on."""
    try:
        yield
    except Exception:  # the batch is committed; a worker that dies of its metrics decides nothing
        if not _State.failed:
            _State.failed = True
            log.exception("metrics or traces are not complete any more: telling of a batch failed")


def tracer() -> "Tracer | None":
    """What takes this process's spans; None where nobody does."""
    return _State.tracer


def keep(calls: list[Call]) -> None:
    """From here on, in this task and those it starts, calls are put into `calls` unless `keeping` says otherwise."""
    _calls.set(calls)


def called_by(traceparent: str) -> None:
    """What is appended from here on, in this task, was asked for by a request with this trace context (W3C)."""
    _caller.set(traceparent)


def with_caller(m: bytes) -> bytes:
    """An entry's metadata with the trace context of whoever asked for it; unchanged where nobody traces."""
    if _State.tracer is None or not (caller := _caller.get()):
        return m
    return m[:-1] + b',"trace":"' + caller.encode() + b'"}'


@contextmanager
def keeping(calls: list[Call]) -> Iterator[None]:
    """What is called within is also put into `calls`: those of one payout, or of a batch."""
    token = _calls.set(calls)
    try:
        yield
    finally:
        _calls.reset(token)


class Called:
    """Around one call to an outside system. `outcome` may be set within; an exception sets it by its kind."""

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
        _told(self._what, self._detail, self.outcome, self._begun_ns, self._server)


def outcome_of(kind: type[BaseException]) -> str:
    """`put_off` for what is tried again, `unknown` where the answer was lost, else `failed`; a stop is `cancelled`."""
    if issubclass(kind, TryAgain):
        return "put_off" if kind is TryAgain else "unknown"
    return "failed" if issubclass(kind, Exception) else "cancelled"


def _told(what: str, detail: str, outcome: str, begun_ns: int, server: Server | None) -> None:
    if _State.meters is None:
        return
    ended_ns = time_ns()
    _State.meters.waited(what, outcome, (ended_ns - begun_ns) / 1e9)
    calls = _calls.get()
    if calls is not None and len(calls) < CALLS_MAX:
        calls.append(Call(what, detail, outcome, begun_ns, ended_ns, server))


def appended(producer: str, new: int, known: int, begun_ns: int) -> None:
    """A producer's deliveries were appended, or were known already."""
    if _State.meters is not None:
        _State.meters.appended(producer, new, known, (time_ns() - begun_ns) / 1e9)


def notified(kind: str, channel: str) -> None:
    """People were told something that no entry of the log asked for: a digest."""
    if _State.meters is not None:
        _State.meters.notifications.labels(kind, channel).inc()


def polled(*, good: bool) -> None:
    """A pass over the bank's list came to its end, or failed."""
    if _State.meters is not None:
        _State.meters.polls.labels("good" if good else "failed").inc()


def taken_up(group: str, how: str, entries: int) -> None:
    """A consumer took up entries that were in somebody's hands: `claim`, `retry` or `own`."""
    if _State.meters is not None:
        _State.meters.taken_up.labels(group, how).inc(entries)
