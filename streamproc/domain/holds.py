"""Holds as people use them: pages, a position in their order, and what became of an answer. Pure."""

import base64
import binascii
import re
from typing import Literal, TypeAlias

from msgspec import Struct

from streamproc.domain.facts import Decision, RefusalKind
from streamproc.domain.payouts import PayoutRecord

Action: TypeAlias = Literal["approve", "reject"]

_POSITION = re.compile(r"([0-9]{1,16}):([A-Za-z0-9_]{1,64})")


class Position(Struct, frozen=True, order=True):
    """A hold's position in the order of all, the longest waiting first. It stays valid when that hold has ended. Times
    in µs."""

    received_at: int
    payout: str

    def cursor(self) -> str:
        """The position as callers get it: opaque, and safe in a URL."""
        return base64.urlsafe_b64encode(f"{self.received_at}:{self.payout}".encode()).decode().rstrip("=")


def position_of(record: PayoutRecord) -> Position:
    """A payout's position."""
    return Position(record.received_at, record.payout)


def position_at(cursor: str) -> Position:
    """The position of a cursor. Raises ValueError if we did not make it."""
    try:
        text = base64.b64decode(cursor + "=" * (-len(cursor) % 4), altchars=b"-_", validate=True).decode(
            "ascii"
        )
    except (binascii.Error, ValueError):
        text = ""
    found = _POSITION.fullmatch(text)
    if found is None or (position := Position(int(found[1]), found[2])).cursor() != cursor:
        raise ValueError("is no cursor that an answer gave as `next`")
    return position


class HeldPage(Struct, frozen=True):
    """Held payouts in order. `next` None: there are no more. `note`: what may be missing, and why."""

    items: list[PayoutRecord]
    next: Position | None
    note: str = ""


class Outcome(Struct, frozen=True):
    """A reviewer's answer that counted. `needed`: approvals still missing, if nothing is decided yet."""

    payout: str
    entry: str
    needed: int
    decision: Decision | None
    reason: str
    by: str = ""


class NotCounted(Struct, frozen=True):
    """A reviewer's answer that did not count; `problem` says why."""

    payout: str
    entry: str
    kind: RefusalKind
    problem: str


class NotHandled(Struct, frozen=True):
    """A reviewer's answer that is recorded, but that no worker has handled yet."""

    payout: str
    entry: str
    problem: str


Answered: TypeAlias = Outcome | NotCounted | NotHandled
