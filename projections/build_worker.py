"""A builder as a process: `python -m projections.build_worker`, with its share as one JSON line on stdin.

The DSN comes on stdin too, since a process list shows arguments. It answers with a JSON line for each segment. If it
cannot go on, it ends with exit code 1 and a line that says why.
"""

import resource
import sys
from collections.abc import Callable

import asyncpg
import msgspec
import uvloop
from msgspec import Struct

from projections.heads import Moved
from projections.rebuild import SEGMENT_ROWS, Slice, build_slice
from projections.views import BY_NAME, NAMES
from streamproc.archive.store import AWAY
from streamproc.errors import StreamprocError, named
from streamproc.gc_tuning import tune_for_one_job


class Order(Struct, frozen=True):
    """What to build."""

    dsn: str
    schema: str
    share: Slice
    segment_rows: int = SEGMENT_ROWS
    views: tuple[str, ...] = NAMES


class Report(Struct, frozen=True, omit_defaults=True):
    """A line of a builder: its position, the events since the last line and its peak memory; or why it ends."""

    partition: int
    slice: int
    seq: int = 0
    events: int = 0
    peak_kb: int = 0
    problem: str = ""


def main() -> int:
    """Build the share that stdin names."""
    order = msgspec.json.decode(sys.stdin.buffer.readline(), type=Order)
    share = order.share

    def report(seq: int = 0, events: int = 0, problem: str = "") -> None:
        peak_kb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        line = msgspec.json.encode(Report(share.partition, share.slice, seq, events, peak_kb, problem))
        sys.stdout.buffer.write(line + b"\n")
        sys.stdout.buffer.flush()

    try:
        uvloop.run(_build(order, report))
    except (StreamprocError, Moved) as problem:
        report(problem=str(problem))
        return 1
    except (*AWAY, asyncpg.PostgresError) as problem:  # a full disk, a server that stops: in one line
        report(problem=f"Postgres: {named(problem)}")
        return 1
    return 0


async def _build(order: Order, report: Callable[[int, int], None]) -> None:
    tune_for_one_job()
    views = [BY_NAME[name] for name in order.views]
    await build_slice(
        order.dsn, order.schema, order.share, report, segment_rows=order.segment_rows, views=views
    )


if __name__ == "__main__":
    sys.exit(main())
