"""Which trace a payout has, and which span each step of it: known from ids alone, so nothing has to be handed on.

Every process, alert and person computes the same. A step that is told twice has the same id twice.
"""

from functools import lru_cache
from hashlib import sha256
from typing import NamedTuple

from streamproc.domain import events as e
from streamproc.domain.payouts import PayoutRecord
from streamproc.domain.states import RELEASING_STATUSES
from streamproc.domain.wire import Meta

TRACE = "streamproc/trace/v1:"
SPAN = "streamproc/span/v1:"
"""Versions of the rule: another one gives other ids."""
GOVERNED: frozenset[type[e.Fact]] = frozenset(
    {e.PayoutObserved, e.PayoutRequested, e.PayoutMalformed, e.ReviewSubmitted, e.TimerFired}
)
"""Events that producers append and governance handles, which reports their append. The projector reports that of
others."""
_KNOWN = 4096
_ZERO = bytes(16)


class Trace(NamedTuple):
    """A payout's trace and its root span, as W3C has them: 128 and 64 bits, never 0."""

    trace: int
    root: int


@lru_cache(maxsize=_KNOWN)
def trace_of(payout: str) -> Trace:
    """The trace of a payout."""
    digest = _digest(payout)
    return Trace(int.from_bytes(digest[:16]) or 1, int.from_bytes(digest[16:24]) or 1)


@lru_cache(maxsize=_KNOWN)
def trace_id(payout: str) -> str:
    """The trace of a payout in 32 hex digits, as trace viewers want it."""
    # Not by way of `trace_of`, which takes twice the time: each decision's line and each row of the audit has it.
    trace = _digest(payout)[:16]
    return trace.hex() if trace != _ZERO else f"{1:032x}"


def _digest(payout: str) -> bytes:
    return sha256((TRACE + payout).encode()).digest()


def append_span(partition: int, entry: str) -> int:
    """The append of a producer's entry."""
    return _span("append", partition, entry)


def process_span(group: str, partition: int, entry: str) -> int:
    """The handling of an entry by a group, the one that was committed."""
    return _span("process", group, partition, entry)


def aside_span(group: str, partition: int, entry: str) -> int:
    """An entry became a dead letter of a group."""
    return _span("aside", group, partition, entry)


def parent_span(partition: int, entry: str, meta: Meta, *, aside: bool = False) -> int:
    """What appended an entry: a producer, or a group's handling of the entry's cause.

    `aside`: the entry records that its cause became a dead letter, so the cause was not handled to the end.
    """
    if not meta.cause:
        return append_span(partition, entry)
    return (aside_span if aside else process_span)(meta.by, partition, meta.cause)


def step_span(of: int, name: str) -> int:
    """A step within another one."""
    return _span("step", of, name)


def _span(*parts: object) -> int:
    digest = sha256((SPAN + "/".join(map(str, parts))).encode()).digest()
    return int.from_bytes(digest[:8]) or 1


def is_notable(record: PayoutRecord | None) -> bool:
    """Whether its trace is kept whatever is sampled: it was rejected or held, or something failed."""
    return record is not None and (
        record.decision in ("REJECTED", "HELD")
        or bool(record.reviews)
        or bool(record.failure)
        or record.bypassed
        or record.maybe_sent
        or record.bank_status in RELEASING_STATUSES
    )
