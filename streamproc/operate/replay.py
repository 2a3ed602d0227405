"""Replay: views built anew from the archive beside the live ones, compared with them at one position, and swapped.

    shadow schema <- builders (processes) <- archive        live views go on meanwhile
    shadow == live at one entry?  ->  swap in one transaction; the old ones stay in `<schema>_previous`

A replay writes nothing to the log and calls nobody. It may be killed anywhere: the live views are touched by the swap
alone, and the next replay goes on building where the killed one stopped.
"""

import asyncio
import time
from collections.abc import Sequence
from contextlib import AsyncExitStack
from functools import partial

import asyncpg
from msgspec import Struct

from projections import compare
from projections.dependents import refuse_what_would_be_lost
from projections.heads import open_heads, outdated_views
from projections.rebuild import (
    archive_ends,
    drop_schema,
    finish_build,
    plan_build,
    resumable,
    take_replay_lock,
)
from projections.runner import Runner, catch_up
from projections.schema import enter_schema
from projections.swap import swap
from projections.views import NAMES
from streamproc.archive.disowned import disowned_in
from streamproc.archive.store import connection, errors_as_job_failed, snapshot, transaction
from streamproc.errors import JobFailed
from streamproc.operate.builders import JobProgress, OnProgress, build, default_jobs

COMPARE_WAIT_S = 60.0
"""How long the live views may take to come to where the rebuilt ones are; longer, and they stand still."""
COMPARE_OUTDATED_WAIT_S = 5.0
"""The same where views are another version's: only a projector of that version, in an upgrade, still moves them."""
COMPARE_POLL_S = 0.1
UNTOUCHED = "nothing was swapped"


class ViewResult(Struct, frozen=True):
    """One view: what the rebuilt one holds, and whether the live one held the same. `equal` None: not compared.

    `changed`: what a new version of the view made other; then only the columns that both have were compared.
    """

    view: str
    rows: int
    checksum: str
    equal: bool | None
    differing: int = 0
    differences: list[compare.Difference] = []
    changed: str = ""


class Result(Struct, frozen=True):
    """What a replay found and did."""

    views: list[ViewResult]
    positions: dict[int, int]
    swapped: bool
    events: int
    seconds: float
    peak_kb: int
    notes: list[str]

    @property
    def events_per_s(self) -> int:
        """Events folded each second while building."""
        return int(self.events / self.seconds) if self.seconds > 0 else 0


async def replay(
    dsn: str,
    views: Sequence[str] = NAMES,
    *,
    verify: bool = False,
    restart: bool = False,
    jobs: int = 0,
    on_progress: OnProgress = lambda _: None,
) -> Result:
    """Rebuild all views, compare `views` with the live ones and, unless `verify`, put them in their place.

    Raises JobFailed where an entry cannot be folded, an invariant does not hold, or another replay runs.
    """
    jobs = jobs or default_jobs()
    progress = JobProgress()

    def begin_stage(stage: str) -> None:
        progress.stage = stage
        on_progress(progress)

    with errors_as_job_failed(UNTOUCHED):
        async with AsyncExitStack() as stack:
            db = await stack.enter_async_context(connection(dsn, name="streamproc replay", job=True))
            rebuilt = await stack.enter_async_context(connection(dsn, name="streamproc replay", job=True))
            home = str(await db.fetchval("SELECT current_schema()"))
            await take_replay_lock(db, home)
            shadow = f"{home}_shadow"
            if not verify:  # now, and not when all is built; the swap asks again
                await refuse_what_would_be_lost(db, home, NAMES)
            ends = await archive_ends(db)
            plan = None if restart else await resumable(rebuilt, shadow, ends)
            if plan is None:
                plan = await plan_build(rebuilt, shadow, ends, jobs)
            elif any(share.done_seq for share in plan):
                progress.notes.append("went on with a build that was left half done")
            await build(dsn, shadow, plan, jobs, progress, on_progress)
            begin_stage("indexes")
            await finish_build(rebuilt, dsn, shadow, jobs)
            # What came meanwhile too: an entry that cannot be folded fails this, and not only the live views later.
            await _bring_to(dsn, db, rebuilt, {end.partition: end.seq for end in await archive_ends(db)})
            begin_stage("comparing")
            found, at = await _compared(dsn, db, rebuilt, views, progress)
            broken = await compare.violations(rebuilt)
            if broken:
                raise JobFailed(
                    f"the rebuilt views contradict themselves, nothing was swapped: {'; '.join(broken)}"
                )
            if not verify:
                begin_stage("swapping")
                await _swap(dsn, db, rebuilt, home, shadow, views, progress)
            else:
                await drop_schema(db, shadow)
            return Result(
                found, at, not verify, progress.events, progress.seconds, progress.peak_kb, progress.notes
            )


# ---- comparing and swapping -------------------------------------------------------------


async def _compared(
    dsn: str, db: asyncpg.Connection, rebuilt: asyncpg.Connection, views: Sequence[str], progress: JobProgress
) -> tuple[list[ViewResult], dict[int, int]]:
    """Bring the rebuilt views to where the live ones are in one snapshot, and look at both."""
    present = [view for view in views if await db.fetchval("SELECT to_regclass($1) IS NOT NULL", view)]
    missing = sorted(set(views) - set(present))
    if missing:
        progress.notes.append(f"there is no live {', '.join(missing)}: not compared")
    wait_s = COMPARE_OUTDATED_WAIT_S if present and await outdated_views(db) else COMPARE_WAIT_S
    if present and await _caught_up(db, rebuilt, present, wait_s):
        async with snapshot(dsn, name="streamproc replay") as live:
            at = await compare.positions(live, present)
            await _bring_to(dsn, db, rebuilt, at)
            async with transaction(rebuilt):
                found = [
                    await _compare_one(live if view in present else None, rebuilt, view) for view in views
                ]
            return found, at
    if present:
        progress.notes.append(f"the live views stand still behind the archive for {wait_s:g} s: not compared")
    found = [await _compare_one(None, rebuilt, view) for view in views]
    return found, await compare.positions(rebuilt, NAMES)


async def _caught_up(
    db: asyncpg.Connection, rebuilt: asyncpg.Connection, views: Sequence[str], wait_s: float
) -> bool:
    """Wait until the live views are where the rebuilt ones are, or further."""
    wanted = await compare.positions(rebuilt, NAMES)
    deadline = time.monotonic() + wait_s
    while time.monotonic() < deadline:
        live = await compare.positions(db, views)
        if all(live.get(partition, 0 if seq == 0 else -1) >= seq for partition, seq in wanted.items()):
            return True
        await asyncio.sleep(COMPARE_POLL_S)
    return False


async def _bring_to(
    dsn: str, source: asyncpg.Connection, rebuilt: asyncpg.Connection, at: dict[int, int]
) -> None:
    for partition, seq in at.items():
        heads = await open_heads(rebuilt, partition)
        if heads.seq < seq:
            runner = Runner(rebuilt, partition, heads, disowned=disowned_in(dsn, partition))
            await catch_up(runner, source, partition, seq)


async def _compare_one(live: asyncpg.Connection | None, rebuilt: asyncpg.Connection, view: str) -> ViewResult:
    whole = await compare.checksum(rebuilt, view)
    if live is None:
        return ViewResult(view, whole.rows, whole.checksum, None)
    shapes = await compare.shapes(live, rebuilt, view)
    columns = shapes.both if shapes.changed else []
    if not set(await compare.key_of(live, view)) <= set(shapes.both):
        return ViewResult(view, whole.rows, whole.checksum, None, changed=shapes.changed)
    wanted = await compare.checksum(rebuilt, view, columns) if columns else whole
    if await compare.checksum(live, view, columns) == wanted:
        return ViewResult(view, whole.rows, whole.checksum, True, changed=shapes.changed)
    count, shown = await compare.differences(live, rebuilt, view, columns)
    return ViewResult(view, whole.rows, whole.checksum, False, count, shown, shapes.changed)


async def _swap(
    dsn: str,
    db: asyncpg.Connection,
    rebuilt: asyncpg.Connection,
    home: str,
    shadow: str,
    views: Sequence[str],
    progress: JobProgress,
) -> None:
    ahead = await _is_ahead(db, rebuilt)
    chosen = NAMES if ahead else views
    if ahead and set(views) != set(NAMES):
        progress.notes.append(
            "the live views are behind the archive or not all there: all views were swapped"
        )
    await swap(db, home, shadow, chosen, partial(_bring_to, dsn, db, rebuilt))


async def _is_ahead(db: asyncpg.Connection, rebuilt: asyncpg.Connection) -> bool:
    """Whether the live views cannot come to where the rebuilt ones are: then one alone cannot be exchanged."""
    wanted, live = await compare.positions(rebuilt, NAMES), await compare.positions(db, NAMES)
    return any(live.get(partition, -1) < seq for partition, seq in wanted.items())


async def go_back(dsn: str) -> list[str]:
    """Put the views that the last swap replaced back in place, brought up to date; the names of those views."""
    with errors_as_job_failed(UNTOUCHED):
        async with (
            connection(dsn, name="streamproc replay", job=True) as db,
            connection(dsn, name="streamproc replay", job=True) as earlier,
        ):
            home = str(await db.fetchval("SELECT current_schema()"))
            await take_replay_lock(db, home)
            previous = f"{home}_previous"
            if not await db.fetchval("SELECT to_regnamespace($1) IS NOT NULL", f'"{previous}"'):
                raise JobFailed("there is nothing to go back to: no replay has swapped any views")
            await enter_schema(earlier, previous)
            kept = [
                row["view"]
                for row in await earlier.fetch("SELECT DISTINCT view FROM view_heads ORDER BY view")
            ]
            if sorted(kept) != sorted(NAMES):
                raise JobFailed(
                    f"the last replay swapped {', '.join(kept)} only; going back needs all views: replay them instead"
                )

            level = partial(_bring_to, dsn, db, earlier)
            if gone := [name for name in NAMES if not await db.fetchval("SELECT to_regclass($1)", name)]:
                raise JobFailed(f"there is no live {', '.join(gone)} to go back from: replay first")
            await level(await compare.positions(db, NAMES))
            await swap(db, home, previous, NAMES, level)
            return kept
