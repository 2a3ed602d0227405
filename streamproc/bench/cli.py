"""`streamproc bench ...`: measure on servers of its own, print a table or JSON."""

import json
import sys
from contextlib import nullcontext

import click

from streamproc.bench.job import PAYOUTS_MAX

PAYOUTS_MIN = 1_000
"""Fewer are over before the clock has said anything."""
ROUNDS_MAX = 100


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
@click.option("--json", "as_json", is_flag=True, help="Print JSON for machines.")
def floor(payouts: int, rounds: int, audit: bool, as_json: bool) -> None:
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
    from streamproc.bench.report import document

    console = Console(stderr=True)
    with console.status("starting servers") if sys.stderr.isatty() else nullcontext() as status:
        # asyncio's own loop: uvloop cannot start a child as another user, which Postgres under root needs.
        said = status.update if status is not None else lambda _: None
        found = document(asyncio.run(measure(payouts, rounds, audit=audit, said=said)))
    if as_json:
        click.echo(json.dumps(found, ensure_ascii=False, indent=2))
    else:
        _print(found)


def _print(found: dict[str, object]) -> None:
    from rich.console import Console
    from rich.table import Table

    from streamproc.bench.report import headline, table

    columns, rows = table(found)
    printed = Table(box=None, pad_edge=False, header_style="bold")
    for number, column in enumerate(columns):
        printed.add_column(column, justify="left" if number == 0 else "right")
    for row in rows:
        printed.add_row(*("-" if cell is None else str(cell) for cell in row))
    Console(highlight=False).print(printed)
    for line in headline(found):
        click.echo(line)
