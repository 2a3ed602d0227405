"""`streamproc bench ...`: measure on servers of its own, print a table or JSON."""

import json
import sys
from collections.abc import Sequence
from contextlib import nullcontext

import click

from streamproc.bench.job import CONSUMERS, CONSUMERS_MAX, PAYEES, PAYEES_MAX, PAYOUTS_MAX

PAYOUTS_MIN = 1_000
"""Fewer are over before the clock has said anything."""
ROUNDS_MAX = 100
REPLAYED_MAX = 2_000_000
"""Payouts of a history that is replayed: 20 million events, some 8 GB of log in Valkey."""


@click.group()
def bench() -> None:
    """Measure speed on servers made for it.

    Valkey and Postgres are started from wheels in a temporary directory and removed afterwards; the servers that
    STREAMPROC_REDIS_URL and STREAMPROC_POSTGRES_DSN name are never touched.
    """


@bench.command()
@click.option("--payouts", type=click.IntRange(PAYOUTS_MIN, PAYOUTS_MAX), default=20_000, show_default=True)
@click.option("--rounds", type=click.IntRange(1, ROUNDS_MAX), default=5, show_default=True)
@click.option(
    "--audit/--no-audit", default=False, show_default=True, help="Write the audit to Postgres as well."
)
@click.option(
    "--payees",
    type=click.IntRange(0, PAYEES_MAX),
    default=PAYEES,
    show_default=True,
    help="Fund accounts that take turns; 0: every payout goes to a new one.",
)
@click.option(
    "--consumers",
    type=click.IntRange(1, CONSUMERS_MAX),
    default=CONSUMERS,
    show_default=True,
    help="Of the engine, in its one worker process: as `worker --concurrency`.",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON for machines.")
def floor(payouts: int, rounds: int, audit: bool, payees: int, consumers: int, as_json: bool) -> None:
    """Compare the engine with a hand-written worker that does the same job.

    Both sides take turns on this machine; one more round is made first and not counted. Exit code 1 when a side
    comes to wrong outcomes.

    \b
    Example:
      streamproc bench floor --payouts 20000 --rounds 5 --audit
    """
    import asyncio

    from rich.console import Console

    from streamproc.bench.contest import measure
    from streamproc.bench.report import document, headline, table

    console = Console(stderr=True)
    with console.status("starting servers") if sys.stderr.isatty() else nullcontext() as status:
        # asyncio's own loop: uvloop cannot start a child as another user, which Postgres under root needs.
        said = status.update if status is not None else lambda _: None
        measuring = measure(payouts, rounds, audit=audit, payees=payees, consumers=consumers, said=said)
        found = document(asyncio.run(measuring))
    if as_json:
        click.echo(json.dumps(found, ensure_ascii=False, indent=2))
    else:
        _print(*table(found), headline(found))


@bench.command()
@click.option("--payouts", type=click.IntRange(PAYOUTS_MIN, REPLAYED_MAX), default=20_000, show_default=True)
@click.option("--rounds", type=click.IntRange(1, ROUNDS_MAX), default=3, show_default=True)
@click.option("--json", "as_json", is_flag=True, help="Print JSON for machines.")
def replay(payouts: int, rounds: int, as_json: bool) -> None:
    """Measure the loading of the archive and the rebuilding of all views.

    Beside them, in the same run, a projector that folds one event in each transaction; and the builders' memory for
    this history and for one of a tenth. Exit code 1 when something does not come to what it must.

    \b
    Example:
      streamproc bench replay --payouts 200000 --rounds 1
    """
    import asyncio

    from rich.console import Console

    from streamproc.bench.replaying import measure
    from streamproc.bench.report import replay_document, replay_headline, replay_table

    console = Console(stderr=True)
    with console.status("starting servers") if sys.stderr.isatty() else nullcontext() as status:
        # asyncio's own loop: uvloop cannot start a child as another user, which Postgres under root needs.
        said = status.update if status is not None else lambda _: None
        found = replay_document(asyncio.run(measure(payouts, rounds, said=said)))
    if as_json:
        click.echo(json.dumps(found, ensure_ascii=False, indent=2))
    else:
        _print(*replay_table(found), replay_headline(found))


def _print(columns: Sequence[str], rows: Sequence[Sequence[object]], lines: Sequence[str]) -> None:
    from rich.console import Console
    from rich.table import Table

    printed = Table(box=None, pad_edge=False, header_style="bold")
    for number, column in enumerate(columns):
        printed.add_column(column, justify="left" if number == 0 else "right")
    for row in rows:
        printed.add_row(*("-" if cell is None else str(cell) for cell in row))
    Console(highlight=False).print(printed)
    for line in lines:
        click.echo(line)
