"""`streamproc log` and `streamproc groups`: the log as it is, and who is how far."""

import json
from typing import TYPE_CHECKING, Any

import click

from streamproc.cli import output
from streamproc.cli.context import operator_settings

if TYPE_CHECKING:
    from streamproc.log.inspect import LogStats
    from streamproc.operate.logview import Line

TAIL_MAX = 10_000

_partition = click.option(
    "--partition", type=click.IntRange(0), default=None, help="One partition; all by default."
)


@click.group()
def log() -> None:
    """The log: what came in, what was decided, what was done."""


@log.command()
@_partition
@click.option(
    "-n", "count", type=click.IntRange(0, TAIL_MAX), default=20, show_default=True, help="How many entries."
)
@click.option("--follow", "-f", is_flag=True, help="Go on with what is appended, until Ctrl-C.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object a line.")
def tail(partition: int | None, count: int, follow: bool, as_json: bool) -> None:
    """Show the newest entries.

    \b
    Example:
      streamproc log tail -n 50 --follow
      streamproc log tail --json | jq .events[].type
    """
    settings = operator_settings()
    from streamproc.operate import logview
    from streamproc.operate.site import opened

    def say(line: "Line") -> None:
        shown = (
            json.dumps(logview.line_json(line), ensure_ascii=False) if as_json else logview.line_text(line)
        )
        click.echo(shown)

    async def body() -> None:
        async with opened(settings) as site:
            shown = await logview.tail(site, partition=partition, count=count)
            for line in shown:
                say(line)
            if follow:
                async for line in logview.follow(site, partition=partition, after=shown):
                    say(line)

    try:
        output.run(body())
    except click.Abort:
        if not follow:
            raise


@log.command()
@output.json_option
def stats(as_json: bool) -> None:
    """Show length, memory, first and last entry of each partition.

    \b
    Example:
      streamproc log stats
    """
    settings = operator_settings()
    import msgspec

    from streamproc.operate import logview
    from streamproc.operate.site import opened

    async def body() -> "list[LogStats]":
        async with opened(settings) as site:
            return await logview.stats(site)

    rows: list[dict[str, Any]] = [msgspec.to_builtins(row) for row in output.run(body())]
    if as_json:
        output.say_json(rows)
        return
    names = ("partition", "length", "memory_bytes", "first", "last", "timers", "dead")
    output.say_table(
        [n.upper() for n in names], [output.cells(row, names) for row in rows], empty="no partitions"
    )


@click.command()
@output.json_option
def groups(as_json: bool) -> None:
    """Show each consumer group: how far behind, what it holds, how many work for it.

    LAG entries were not read yet, PENDING are in a worker's hands, DEFERRED of them wait for their next attempt;
    OLDEST_MS is the age of the oldest. Exit code 1 where a group is missing.

    \b
    Example:
      streamproc groups --json
    """
    settings = operator_settings()
    from streamproc.errors import JobFailed
    from streamproc.operate import groups as operate
    from streamproc.operate.site import opened

    async def body() -> list[dict[str, Any]]:
        async with opened(settings) as site:
            return await operate.groups(site)

    rows = output.run(body())
    if as_json:
        output.say_json(rows)
    else:
        names = ("partition", "group", "lag", "pending", "deferred", "oldest_ms", "consumers")
        output.say_table(
            [n.upper() for n in names], [output.cells(row, names) for row in rows], empty="no groups"
        )
    missing = sorted({row["group"] for row in rows if row.get("missing")})
    if missing:
        raise JobFailed(
            f"consumer groups are missing: {', '.join(missing)}; `streamproc doctor` says what to do"
        )
