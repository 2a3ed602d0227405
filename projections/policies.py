"""View `policies`: every version of each scope's policy, who made it by which channel, and why. Rows are only added."""

import re
from collections.abc import Iterable, Sequence

import asyncpg
import msgspec

from projections.fold import Buffered, Step, moment
from streamproc.archive.text import text, text_key
from streamproc.domain import events as e

NAME = "policies"
VERSION = 3
READS: frozenset[type[e.Fact]] = frozenset({e.PolicyChanged})
COLUMNS = (
    *("partition", "scope", "version", "at", "by_whom", "why"),
    *("before", "after", "effective", "seq", "confirmed_by"),
    *("channel", "confirmed_channel"),
)

_NUL = re.compile(rb"(?<!\\)((?:\\\\)*)\\u0000")
_encode = msgspec.json.Encoder().encode


def versions(steps: Iterable[Step]) -> list[tuple[object, ...]]:
    """The rows that the steps add, in the order of COLUMNS."""
    return [_row(step, step.event) for step in steps if type(step.event) is e.PolicyChanged]


async def write(db: asyncpg.Connection, steps: Sequence[Step]) -> None:
    """Add the versions."""
    rows = versions(steps)
    if rows:
        await db.copy_records_to_table(NAME, records=rows, columns=COLUMNS)


def begin() -> Buffered:
    """A new accumulator."""
    return Buffered(write)


def _row(step: Step, event: e.PolicyChanged) -> tuple[object, ...]:
    return (
        step.partition,
        text_key(event.scope),
        event.version,
        moment(event.at),
        text(event.by),
        text(event.why),
        _json(event.before),
        _json(event.after),
        _json(event.effective),
        step.seq,
        text(event.confirmed_by),
        text(event.channel),
        text(event.confirmed_channel),
    )


def _json(fields: dict[str, object] | None) -> str | None:
    """The fields as JSON that jsonb takes: like text, it refuses U+0000."""
    if fields is None:
        return None
    data = _encode(fields)
    return (_NUL.sub(rb"\1\\ufffd", data) if b"\\u0000" in data else data).decode()
