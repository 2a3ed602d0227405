"""`streamproc bench ...`: measure on servers that it starts, print a table or JSON."""

import sys
from collections.abc import Callable, Coroutine, Sequence
from contextlib import nullcontext
from typing import Any, TypeVar

import click

from streamproc.bench.job import CONSUMERS, CONSUMERS_MAX, PAYEES, PAYEES_MAX, PAYOUTS_MAX
from streamproc.cli import output
from streamproc.errors import InputError

F = TypeVar("F", bound=Callable[..., Any])
T = TypeVar("T")

PAYOUTS_MIN = 1_000
"""A run of fewer payouts is too short to be measured."""
ROUNDS_MAX = 100
RATE_MAX = 20_000
"""Payouts per second: more than the driver can send from one core."""
SECONDS_MAX = 600
ENTRIES_MAX, SCALE_PARTITIONS_MAX, AGENTS_MAX = 10_000_000, 16, 100_000
WORKERS_MAX = 8
"""Worker processes, and consumers in each. More than there are cores only wait for each other."""
REPLAYED_MAX = 2_000_000
"""Payouts in the history that is replayed: 20 million events, about 8 GB of log in Valkey."""


def _number(name: str, least: int, most: int, default: int, text: str) -> Callable[[F], F]:
    return click.option(
        f"--{name}", type=click.IntRange(least, most), default=default, show_default=True, help=text
    )


@click.group()
def bench() -> None:
    """Measure speed, on servers started for it.

    Valkey and Postgres are started from wheels in a temporary directory and removed afterwards. The servers in
    STREAMPROC_REDIS_URL and STREAMPROC_POSTGRES_DSN are never touched.
    """


@bench.command()
@_number("payouts", PAYOUTS_MIN, PAYOUTS_MAX, 20_000, "Payouts of a round.")
@_number("rounds", 1, ROUNDS_MAX, 5, "Rounds; the median counts.")
@click.option(
    "--audit/--no-audit", default=False, show_default=True, help="Also write the audit to Postgres."
)
@_number("payees", 0, PAYEES_MAX, PAYEES, "Fund accounts, paid in turn; 0: every payout goes to a new one.")
@_number(
    *("consumers", 1, CONSUMERS_MAX, CONSUMERS),
    "Consumers in the engine's one worker process, as in `worker --concurrency`; also FastStream's subscribers.",
)
@click.option(
    "--whole",
    is_flag=True,
    help="Also measure a floor that leaves behind all that the engine leaves; this is checked.",
)
@click.option(
    "--faststream",
    is_flag=True,
    help="Also measure FastStream's batch subscriber at its best (with --whole two of them); needs the extra `bench`.",
)
@click.option(
    "--faststream-typed",
    is_flag=True,
    help="Also measure its batch subscriber as it comes: typed, with its log lines; needs the extra `bench`.",
)
@click.option(
    "--faststream-usual",
    is_flag=True,
    help="Also measure FastStream as its documentation shows it, which is slow; needs the extra `bench`.",
)
@output.json_option
def floor(
    payouts: int,
    rounds: int,
    audit: bool,
    payees: int,
    consumers: int,
    whole: bool,
    faststream: bool,
    faststream_typed: bool,
    faststream_usual: bool,
    as_json: bool,
) -> None:
    """Compare the engine with a hand-written worker for the same job.

    The floor keeps one short event per payout; with --whole a second floor leaves behind all that the engine leaves.
    The sides take turns on this machine. One more round is run first as a warm-up, and not counted. The exit code is 1
    if a side's outcomes are wrong, or if it left less behind than it had to.

    \b
    Example:
      streamproc bench floor --payouts 20000 --rounds 5 --audit
      streamproc bench floor --whole --faststream
    """
    from streamproc.bench.contest import measure
    from streamproc.bench.report import document, headline, table
    from streamproc.bench.sides import asked_for

    result = document(
        _run(
            lambda announce: measure(
                payouts,
                rounds,
                audit=audit,
                payees=payees,
                consumers=consumers,
                sides=asked_for(
                    whole=whole, faststream=faststream, typed=faststream_typed, usual=faststream_usual
                ),
                announce=announce,
            )
        )
    )
    _show(result, as_json, table, headline)


@bench.command()
@_number("payouts", PAYOUTS_MIN, REPLAYED_MAX, 20_000, "Payouts of a round.")
@_number("rounds", 1, ROUNDS_MAX, 3, "Rounds; the median counts.")
@output.json_option
def replay(payouts: int, rounds: int, as_json: bool) -> None:
    """Measure loading the archive and rebuilding all views.

    The same run also measures a projector that folds one event per transaction, and the builders' memory for this
    history and for one a tenth as long. The exit code is 1 if a result is wrong.

    \b
    Example:
      streamproc bench replay --payouts 200000 --rounds 1
    """
    from streamproc.bench.replaying import measure
    from streamproc.bench.report import replay_document, replay_headline, replay_table

    result = replay_document(_run(lambda announce: measure(payouts, rounds, announce=announce)))
    _show(result, as_json, replay_table, replay_headline)


@bench.command()
@click.option(
    "--rate",
    "rates",
    type=click.IntRange(1, RATE_MAX),
    multiple=True,
    default=(500,),
    show_default=True,
    help="Payouts per second; may be given several times.",
)
@_number("seconds", 1, SECONDS_MAX, 20, "Length of a run.")
@_number("rounds", 1, ROUNDS_MAX, 1, "Rounds; the median counts.")
@_number("workers", 1, WORKERS_MAX, 1, "Worker processes.")
@_number("concurrency", 1, WORKERS_MAX, 1, "Consumers in each worker.")
@output.json_option
def latency(
    rates: tuple[int, ...], seconds: int, rounds: int, workers: int, concurrency: int, as_json: bool
) -> None:
    """Measure how long a payout waits for its decision at fixed rates.

    The load is an open loop: each payout is due at a fixed time, and its latency is counted from then, so a stall is
    charged to every payout that waits for it. The producer and the workers are the real ones. TMPDIR decides on which
    disk the log is.

    \b
    Example:
      streamproc bench latency --rate 100 --rate 500 --seconds 20
    """
    from streamproc.bench.latency import WARM_S, measure
    from streamproc.bench.report_path import latency_document, latency_headline, latency_table

    if max(rates) * (seconds + WARM_S) > PAYOUTS_MAX:
        raise InputError(
            f"--rate {max(rates)} for --seconds {seconds} and {WARM_S} to warm up are more than {PAYOUTS_MAX} payouts"
        )
    result = latency_document(
        _run(
            lambda announce: measure(
                rates, seconds, rounds, workers=workers, concurrency=concurrency, announce=announce
            )
        )
    )
    _show(result, as_json, latency_table, latency_headline)


@bench.command()
@_number("payouts", PAYOUTS_MIN, PAYOUTS_MAX, 20_000, "Payouts of a round.")
@_number("rounds", 1, ROUNDS_MAX, 3, "Rounds; the median counts.")
@_number("workers", 1, WORKERS_MAX, 1, "Worker processes.")
@_number("concurrency", 1, WORKERS_MAX, 2, "Consumers in each worker.")
@click.option(
    "--serve", is_flag=True, help="Send payouts as signed webhooks over HTTP to a real `streamproc serve`."
)
@output.json_option
def e2e(payouts: int, rounds: int, workers: int, concurrency: int, serve: bool, as_json: bool) -> None:
    """Measure the whole path at full load.

    Payouts are appended, decided, archived, chained and shown in the views. Workers and projector are the real ones.
    Payouts are sent as fast as they are decided and shown: into the log, or with --serve over HTTP. The output also has
    the CPU and memory of each process, which resource was used up, and the bytes stored per payout. The exit code is 1
    if a decision is wrong or `streamproc audit verify` finds the archive's chain broken.

    \b
    Example:
      streamproc bench e2e --payouts 50000 --workers 2
      streamproc bench e2e --serve
    """
    from streamproc.bench.report_path import whole_document, whole_headline, whole_table
    from streamproc.bench.whole_path import Crew, measure

    crew = Crew(workers, concurrency, serve)
    result = whole_document(_run(lambda announce: measure(payouts, rounds, crew=crew, announce=announce)))
    _show(result, as_json, whole_table, whole_headline)


@bench.command()
@_number("payouts", PAYOUTS_MIN, PAYOUTS_MAX, 10_000, "Payouts of a round.")
@_number("rounds", 1, ROUNDS_MAX, 5, "Rounds; the median counts.")
@output.json_option
def govern(payouts: int, rounds: int, as_json: bool) -> None:
    """Measure the decision alone, in this process.

    It is what Python does before anything is written.

    \b
    Example:
      streamproc bench govern
    """
    from streamproc.bench.pure import measure
    from streamproc.bench.report_scale import govern_document, govern_headline, govern_table

    result = govern_document(_run(lambda announce: measure(payouts, rounds, announce=announce)))
    _show(result, as_json, govern_table, govern_headline)


def _axis(name: str, most: int, what: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    return click.option(
        f"--{name}", type=click.IntRange(1, most), multiple=True, help=f"{what}; may be given several times."
    )


@bench.command()
@_axis("entries", ENTRIES_MAX, "Entries that are in the log at the start, about 1 kB of memory each")
@_axis("workers", WORKERS_MAX, "Worker processes")
@_axis("partitions", SCALE_PARTITIONS_MAX, "Partitions of the log")
@_axis("agents", AGENTS_MAX, "Agents, each with its own policy")
@_number("payouts", PAYOUTS_MIN, PAYOUTS_MAX, 2_500, "Payouts of a round.")
@_number("rounds", 1, ROUNDS_MAX, 3, "Rounds; the median counts.")
@output.json_option
def scale(payouts: int, rounds: int, as_json: bool, **axes: tuple[int, ...]) -> None:
    """Measure what a payout costs in a larger system.

    What grows is the log, or the number of workers, partitions or agents. One of them is varied at a time, and its
    values take turns. Only the options given are measured; without any, all of them, with up to a million entries in
    the log. The other values are compared with the first one.

    \b
    Example:
      streamproc bench scale
      streamproc bench scale --entries 10000 --entries 10000000
    """
    from streamproc.bench.report_scale import scale_document, scale_headline, scale_table
    from streamproc.bench.scale import AXES, measure

    chosen = {name: values for name, values in axes.items() if values} or AXES
    result = scale_document(_run(lambda announce: measure(chosen, payouts, rounds, announce=announce)))
    _show(result, as_json, scale_table, scale_headline)


def _run(measure: Callable[[Callable[[str], None]], Coroutine[Any, Any, T]]) -> T:
    """Run a measurement, showing progress on a terminal. If it is stopped, no file is left."""
    from rich.console import Console

    console = Console(stderr=True)
    with console.status("starting servers") if sys.stderr.isatty() else nullcontext() as status:
        # On asyncio's own loop, since uvloop cannot start a child as another user, as Postgres under root needs.
        return output.run_or_undo(measure(status.update if status is not None else lambda _: None))


def _show(
    result: dict[str, Any],
    as_json: bool,
    table: Callable[[dict[str, Any]], tuple[list[str], list[list[object]]]],
    headline: Callable[[dict[str, Any]], list[str]],
) -> None:
    if as_json:
        output.say_json(result)
    else:
        _print(*table(result), headline(result))


def _print(columns: Sequence[str], rows: Sequence[Sequence[object]], lines: Sequence[str]) -> None:
    from rich.table import Table

    printed = Table(box=None, pad_edge=False, header_style="bold")
    first, *others = columns
    printed.add_column(first, no_wrap=True)
    for column in others:
        printed.add_column(column, justify="right", overflow="fold")  # a figure is never cut off
    for row in rows:
        printed.add_row(*("-" if cell is None else str(cell) for cell in row))
    output.say_drawn(printed)
    for line in lines:
        click.echo(line)
