"""View `beneficiaries`: pairs of fund account and vendor that were approved, and since when (rule 13)."""

from collections.abc import Iterable, Sequence
from typing import TypeAlias

import asyncpg

from projections.fold import Buffered, Step, moment
from streamproc.archive.sql import statements
from streamproc.archive.text import text_key
from streamproc.domain import events as e

NAME = "beneficiaries"
VERSION = 1
READS: frozenset[type[e.Fact]] = frozenset({e.BeneficiaryNoted})

Key: TypeAlias = tuple[str, str, str]
"""Account, fund account, vendor's host."""

_SQL = statements("projections", "beneficiaries.sql")


def noted(steps: Iterable[Step]) -> dict[Key, tuple[int, int]]:
    """When the steps note each pair first and last (µs)."""
    found: dict[Key, tuple[int, int]] = {}
    for step in steps:
        event = step.event
        if type(event) is e.BeneficiaryNoted:
            key = (text_key(event.account), text_key(event.fund_account), text_key(event.vendor))
            first, last = found.get(key, (event.at, event.at))
            found[key] = (min(first, event.at), max(last, event.at))
    return found


async def write(db: asyncpg.Connection, steps: Sequence[Step]) -> None:
    """Bring the view up to date with `steps`."""
    found = noted(steps)
    if not found:
        return
    rows = [(*key, moment(first), moment(last)) for key, (first, last) in sorted(found.items())]
    await db.execute(_SQL["add"], steps[0].partition, *map(list, zip(*rows, strict=True)))


def begin() -> Buffered:
    """A new accumulator."""
    return Buffered(write)
