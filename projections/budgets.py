"""View `budgets`: paise reserved and committed per window, as the log's reservations and settlements say."""

from collections.abc import Iterable, Mapping, Sequence
from typing import TypeAlias

import asyncpg
from msgspec import Struct

from projections.fold import Step, text_key
from streamproc.archive.sql import statements
from streamproc.domain import events as e
from streamproc.errors import LogBroken

Key: TypeAlias = tuple[str, str]
"""Scope and window."""

_SQL = statements("projections", "budgets.sql")


class Use(Struct, frozen=True):
    """One window. `limit_paise` is the limit that the last reservation saw; None is no limit."""

    limit_paise: int | None = None
    reserved: int = 0
    committed: int = 0


def keys(steps: Iterable[Step]) -> set[Key]:
    """The windows that the steps touch."""
    return {key for step in steps for key in _windows(step.event)}


def fold(uses: Mapping[Key, Use], steps: Iterable[Step]) -> dict[Key, Use]:
    """The windows that the steps touch, after them. Raises LogBroken where a settlement cannot be."""
    now = dict(uses)
    for step in steps:
        event = step.event
        if type(event) is e.BudgetReserved:
            limits = [window.limit for window in event.windows]
            for key, limit in zip(_windows(event), limits, strict=True):
                now[key] = _plus(now.get(key, Use()), limit, event.amount)
        elif type(event) is e.PayoutSettled:
            reserved, committed = _settled_amounts(step, event)
            for key in _windows(event):
                now[key] = _moved(now.get(key, Use()), reserved, committed, step)
    return now


def _plus(use: Use, limit: int | None, amount: int) -> Use:
    return Use(limit, use.reserved + amount, use.committed)


def _settled_amounts(step: Step, event: e.PayoutSettled) -> tuple[int, int]:
    """What a settlement adds to reserved and to committed; it depends on what the reservation was before."""
    held = step.before.reservation.state if step.before and step.before.reservation else "nothing"
    match held, event.settlement:
        case "reserved", "committed":
            return -event.amount, event.amount
        case "reserved", "released":
            return -event.amount, 0
        case "committed", "released":  # reversed after it was processed
            return 0, -event.amount
    raise LogBroken(
        f"event {step.id}: payout {step.payout} is {event.settlement}, but what was held is {held}"
    )


def _moved(use: Use, reserved: int, committed: int, step: Step) -> Use:
    after = Use(use.limit_paise, use.reserved + reserved, use.committed + committed)
    if after.reserved < 0 or after.committed < 0:
        raise LogBroken(f"event {step.id} settles more than its window holds: {use} would become {after}")
    return after


def _windows(event: e.Event) -> list[Key]:
    # By exact type: isinstance of a Struct goes through its metaclass, and this runs for every event.
    if type(event) is e.BudgetReserved:
        return [(text_key(window.scope), text_key(window.window)) for window in event.windows]
    if type(event) is e.PayoutSettled:
        return [(text_key(scope), text_key(window)) for scope, window in event.windows]
    return []


async def load(db: asyncpg.Connection, partition: int, wanted: Iterable[Key]) -> dict[Key, Use]:
    """These windows, as far as they are known."""
    scopes, windows = zip(*sorted(wanted), strict=True)
    rows = await db.fetch(_SQL["load"], partition, scopes, windows)
    return {
        (row["scope"], row["window_name"]): Use(row["limit_paise"], row["reserved"], row["committed"])
        for row in rows
    }


async def write(db: asyncpg.Connection, partition: int, steps: Sequence[Step]) -> None:
    """Bring the view up to date with `steps`."""
    touched = keys(steps)
    if not touched:
        return
    uses = fold(await load(db, partition, touched), steps)
    rows = [(*key, use.limit_paise, use.reserved, use.committed) for key, use in sorted(uses.items())]
    await db.execute(_SQL["upsert"], partition, *map(list, zip(*rows, strict=True)))
