"""View `budgets`: paise reserved and committed per window, from the log's reservations and settlements."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TypeAlias

import asyncpg

from projections.fold import Step
from streamproc.archive.sql import statements
from streamproc.archive.text import text_key
from streamproc.domain import events as e
from streamproc.errors import LogBroken

NAME = "budgets"
VERSION = 1
READS: frozenset[type[e.Fact]] = frozenset({e.BudgetReserved, e.PayoutSettled})

Key: TypeAlias = tuple[str, str]
"""Scope and window."""

_SQL = statements("projections", "budgets.sql")


@dataclass(slots=True)
class WindowChange:
    """What steps add to one window. `limit_paise` is the limit that the last reservation, in entry `limit_seq`, saw."""

    limit_paise: int | None = None
    limit_seq: int = 0
    reserved: int = 0
    committed: int = 0


class Charged:
    """What the steps of a segment add to each window."""

    def __init__(self) -> None:
        self.found: dict[Key, WindowChange] = {}
        self._named: dict[Key, WindowChange] = {}
        """The same, by names as events have them, before they are cut."""
        self._first = self._last = ""

    def add(self, steps: Iterable[Step]) -> None:
        """As `fold.Accumulator`. Raises LogBroken for an impossible settlement."""
        found, named = self.found, self._named
        for step in steps:
            event = step.event
            self._first, self._last = self._first or step.entry, step.entry
            # By exact type: isinstance of a Struct goes through its metaclass, and this runs for every event.
            if type(event) is e.BudgetReserved:
                for use in event.windows:
                    change = named.get((use.scope, use.window)) or _of(found, named, use.scope, use.window)
                    change.limit_paise, change.limit_seq = use.limit, step.seq
                    change.reserved += event.amount
            elif type(event) is e.PayoutSettled:
                reserved, committed = _settled_amounts(step, event)
                for scope, window in event.windows:
                    change = named.get((scope, window)) or _of(found, named, scope, window)
                    change.reserved += reserved
                    change.committed += committed

    async def write(self, db: asyncpg.Connection, partition: int) -> None:
        """As `fold.Accumulator`. Raises LogBroken if a window would fall below zero."""
        if not self.found:
            return
        rows = [
            (*key, change.limit_paise, change.limit_seq, change.reserved, change.committed)
            for key, change in sorted(self.found.items())
        ]
        after = await db.fetch(_SQL["add"], partition, *map(list, zip(*rows, strict=True)))
        for row in after:
            if row["reserved"] < 0 or row["committed"] < 0:
                raise LogBroken(
                    f"entries {self._first} to {self._last} settle more than the window {row['scope']}"
                    f" {row['window_name']} holds: reserved {row['reserved']}, committed {row['committed']}"
                )
        self.found, self._named, self._first, self._last = {}, {}, "", ""


begin = Charged


def _of(
    found: dict[Key, WindowChange], named: dict[Key, WindowChange], scope: str, window: str
) -> WindowChange:
    # As stored: cut for the index, so two long names may become one.
    change = named[scope, window] = found.setdefault((text_key(scope), text_key(window)), WindowChange())
    return change


def _settled_amounts(step: Step, event: e.PayoutSettled) -> tuple[int, int]:
    """What a settlement adds to reserved and to committed, given the reservation's state before."""
    before = step.before.reservation if step.before else None
    held = before.state if before else "nothing"
    charged, fees = (before.fees, event.fees if before.count_fees else 0) if before else (0, 0)
    match held, event.settlement:
        case "reserved", "committed":
            return -event.amount, event.amount + fees
        case "reserved", "released":
            return -event.amount, 0
        case "committed", "released":  # reversed after it was processed
            return 0, -event.amount - charged
        case "committed", "committed" if fees > charged:  # fees that the bank named later
            return 0, fees - charged
    raise LogBroken(
        f"event {step.id}: payout {step.payout} is {event.settlement}, but its reservation was already {held}"
    )
