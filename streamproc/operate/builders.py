"""Builders at work: processes that fold the archive into a schema of views, `jobs` at once, and what they report.

A replay has its views built so (replay.py), and so has whoever asks for the views as they were at an earlier position.
"""

import asyncio
import os
import signal
import sys
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TypeAlias

import asyncpg
import msgspec

from projections.build_worker import Order, Report
from projections.rebuild import Slice, Target, heed_lost_client, leave_schema, plan_build, take_replay_lock
from projections.views import VIEWS, View
from streamproc import processes
from streamproc.archive.store import connection, errors_as_job_failed
from streamproc.errors import LogBroken, first_of_ours

JOBS_MAX = 64
"""Most builders at once."""
LINE_MAX = 1 << 20
"""Bytes of a builder's line; a traceback is the longest."""


@dataclass
class JobProgress:
    """How far a rebuild or a recovery is. `done` of `total` are archived entries, over all partitions of a rebuild.

    `events`: those that this run has folded, in `seconds`. `peak_kb`: the memory of the largest builder process (kB).
    """

    stage: str = "planning"
    total: int = 0
    done: int = 0
    events: int = 0
    seconds: float = 0.0
    peak_kb: int = 0
    notes: list[str] = field(default_factory=list)


OnProgress: TypeAlias = Callable[[JobProgress], None]


def default_jobs() -> int:
    """Builders at once where nobody says how many: one for each CPU, JOBS_MAX at most."""
    return min(JOBS_MAX, os.cpu_count() or 1)


async def build(
    dsn: str,
    schema: str,
    plan: Sequence[Slice],
    jobs: int,
    progress: JobProgress,
    on_progress: OnProgress,
    views: Sequence[View] = VIEWS,
) -> None:
    """Run a builder for each share that is not done, `jobs` at once."""
    progress.stage = "building"
    progress.total = sum(share.target_seq for share in plan)
    reached = {(share.partition, share.slice): share.done_seq for share in plan}
    turns, began = asyncio.Semaphore(jobs), time.monotonic()

    def hear(report: Report) -> None:
        reached[report.partition, report.slice] = max(report.seq, reached[report.partition, report.slice])
        progress.events += report.events
        progress.peak_kb = max(progress.peak_kb, report.peak_kb)
        progress.done, progress.seconds = sum(reached.values()), time.monotonic() - began
        on_progress(progress)

    async def one(share: Slice) -> None:
        async with turns:
            await _run_builder(Order(dsn, schema, share, views=tuple(view.name for view in views)), hear)
            hear(Report(share.partition, share.slice, share.target_seq))

    try:
        async with asyncio.TaskGroup() as tasks:
            for share in plan:
                if share.done_seq < share.target_seq:
                    tasks.create_task(one(share))
    except BaseExceptionGroup as problems:
        failed = first_of_ours(problems)
        if failed is None:
            raise
        raise failed from problems


async def _run_builder(order: Order, hear: Callable[[Report], None]) -> None:
    process = await processes.start(
        [sys.executable, "-m", "projections.build_worker"],
        env=os.environ,
        on_parent_death=signal.SIGKILL,
        output=asyncio.subprocess.PIPE,
        stdin=asyncio.subprocess.PIPE,
        line_max=LINE_MAX,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    other: list[str] = []
    try:
        process.stdin.write(msgspec.json.encode(order) + b"\n")
        process.stdin.close()
        problem = ""
        async for line in process.stdout:
            if not line.startswith(b'{"partition"'):
                other = [*other[-20:], line.decode(errors="replace")]
                continue
            report = msgspec.json.decode(line, type=Report)
            problem = report.problem or problem
            hear(report)
        if await process.wait() != 0:
            if problem:
                raise LogBroken(problem)
            share = f"{order.share.partition}/{order.share.slice}"
            said_last = "".join(other).strip() or "nothing"
            raise LogBroken(f"the builder of share {share} ended early; it said: {said_last}")
    finally:
        processes.kill(process)
        await process.wait()


@asynccontextmanager
async def built_as_of(
    dsn: str,
    targets: Sequence[Target],
    *,
    jobs: int = 0,
    on_progress: OnProgress = lambda _: None,
    views: Sequence[View] = VIEWS,
    purpose: str = "as_of",
    untouched: str = "nothing was changed",
) -> AsyncIterator[asyncpg.Connection]:
    """A connection to a schema that holds `views` as they were at `targets`; the schema is removed afterwards.

    There is one such schema for each `purpose` at a time. `untouched` is what a failure says of the rest.
    """
    jobs = jobs or default_jobs()
    with errors_as_job_failed(untouched):
        async with connection(dsn, name=f"streamproc {purpose}", job=True) as rebuilt:
            await heed_lost_client(rebuilt)
            home = str(await rebuilt.fetchval("SELECT current_schema()"))
            schema = f"{home}_{purpose}"
            await take_replay_lock(rebuilt, schema)
            try:
                plan = await plan_build(rebuilt, schema, targets, jobs, views)
                await build(dsn, schema, plan, jobs, JobProgress(), on_progress, views)
                yield rebuilt
            finally:
                await leave_schema(rebuilt, dsn, schema)
