"""Budget counters of Redis held against their fold, the view `budgets`, while payouts are being decided.

A counter is charged a moment before its reservation is in the log, and the view follows the log; so a difference counts
when nothing is under way at all, or when it stays the same for longer than anything can be under way.
"""

import asyncio
from typing import Any, NamedTuple

import consumers
from streamproc.archive.lookup import folded_budgets
from streamproc.archive.text import text_key
from streamproc.domain.entry_ids import id_key
from streamproc.domain.reconciliation import Mismatch, windows_apart
from streamproc.errors import TryAgain
from streamproc.log.batch import BATCH_TIMEOUT_S
from streamproc.log.clock import clock_us
from streamproc.log.health import group_states
from streamproc.log.inspect import counted_budgets, log_stats
from streamproc.log.names import Names

LOOK_AGAIN_S = 2.0
"""Interval between looks at all counters and windows."""
VIEWS_POLL_S = 0.1
VIEWS_WAIT_S = 30.0
"""How long the view may take to show what is in the log, normally milliseconds."""


class Seen(NamedTuple):
    """How many budget windows were compared between Redis and the view, and a mismatch for each that differs."""

    windows: int
    apart: list[Mismatch]


async def windows_that_differ(
    client: Any, pool: Any, names: Names, *, claim_idle_s: float, retention_s: float
) -> Seen:
    """Compare every window of the partition. Raises TryAgain if the view cannot be asked or stands still."""
    loop = asyncio.get_running_loop()
    began, stays_s = loop.time(), claim_idle_s + 2 * BATCH_TIMEOUT_S
    suspects: dict[tuple[str, str], Mismatch] | None = None
    while True:
        is_quiet, last = await _is_quiet(client, names)
        counted = await counted_budgets(client, names)
        # As the view stores names: without what Postgres cannot hold.
        counters = {(text_key(scope), text_key(window)): held for (scope, window), held in counted.items()}
        folded = await _folded_upto(pool, names.partition, last)
        now_s = await clock_us(client) / 1e6
        apart = windows_apart(counters, folded, now_s=now_s, retention_s=retention_s)
        if is_quiet and (await _is_quiet(client, names)) == (True, last):
            return Seen(len(counters), list(apart.values()))
        same = {w: m for w, m in apart.items() if suspects is None or _gap(suspects.get(w)) == _gap(m)}
        suspects = same
        if not suspects or loop.time() - began > stays_s:
            return Seen(len(counters), list(suspects.values()))
        await asyncio.sleep(LOOK_AGAIN_S)


def _gap(found: Mismatch | None) -> tuple[int, int] | None:
    """How far a counter is above its fold."""
    if found is None:
        return None
    (ours_r, ours_c), (theirs_r, theirs_c) = (
        [int(part.split()[0]) for part in text.split(", ")] for text in (found.ours, found.theirs)
    )
    return ours_r - theirs_r, ours_c - theirs_c


async def _is_quiet(client: Any, names: Names) -> tuple[bool, str]:
    """Whether governance has nothing pending, and the log's last entry."""
    states = await group_states(client, [names.partition], (consumers.GOVERNANCE,))
    stats = await log_stats(client, names.partition)
    return all(state.lag == 0 and state.pending == 0 for state in states), stats.last


async def _folded_upto(pool: Any, partition: int, last: str) -> Any:
    """The fold up to the entry `last`, or further."""
    loop = asyncio.get_running_loop()
    end = loop.time() + VIEWS_WAIT_S
    while True:
        upto, folded = await folded_budgets(pool, partition)
        if id_key(upto) >= id_key(last):
            return folded
        if loop.time() > end:
            raise TryAgain(f"the views show partition {partition} up to {upto}, not {last}")
        await asyncio.sleep(VIEWS_POLL_S)
