"""`streamproc log` and `streamproc groups`: the log as it is, and how far each group is."""

from functools import partial
from typing import TYPE_CHECKING, Any

import click

from streamproc.cli import output, person
from streamproc.cli.context import ask_site, operator_settings

if TYPE_CHECKING:
    from streamproc.operate.logview import Line
    from streamproc.operate.site import Site
    from streamproc.operate.trim import LogBeginning

TAIL_MAX = 10_000
"""Entries shown at once."""

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
@click.option("--follow", "-f", is_flag=True, help="Show new entries as they come, until Ctrl-C.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object a line.")
def tail(partition: int | None, count: int, follow: bool, as_json: bool) -> None:
    """Show the newest entries.

    \b
    Example:
      streamproc log tail -n 50 --follow
      streamproc log tail --json | jq '.events[].type'
    """
    from streamproc.operate import logview

    def say(line: "Line") -> None:
        shown = (
            output.json_text(logview.line_json(line)) if as_json else output.visible(logview.line_text(line))
        )
        click.echo(shown)

    async def say_all(site: "Site") -> None:
        shown = await logview.tail(site, partition=partition, count=count)
        for line in shown:
            say(line)
        if follow:
            async for line in logview.follow(site, partition=partition, after=shown):
                say(line)

    try:
        ask_site(say_all)
    except click.Abort:
        if not follow:
            raise


@log.command()
@output.json_option
def stats(as_json: bool) -> None:
    """Show each partition's length, memory, and what keeps old entries.

    The first and the last entry are shown too. Dead letters are counted separately, with their memory: each keeps a
    copy of its entry until somebody closes it. Timers are reminders and expiries of holds, also of answered ones.

    \b
    Example:
      streamproc log stats
    """
    settings = operator_settings()
    import msgspec

    from streamproc.operate import logview
    from streamproc.operate.trim import held_text

    async def stats_of(site: "Site") -> tuple[list[dict[str, Any]], list[str]]:
        found = await logview.stats(site, settings.retention_s)
        unknown = (
            site.postgres_problem and f"{site.postgres_problem}: what holds the log's beginning is not known"
        )
        rows = [
            msgspec.to_builtins(row.size)
            | {name: getattr(row.beginning, name, None) for name in ("oldest_ms", "held_by", "held_at")}
            for row in found
        ]
        return rows, [unknown, *(row.problem for row in found)]

    rows, notes = ask_site(stats_of, settings)
    if as_json:
        output.say_json(rows)
        return
    shown = [
        row
        | {
            "oldest": output.age(row["oldest_ms"]),
            "held by": held_text(row["held_by"], row["held_at"]) if row["held_by"] else None,
        }
        for row in rows
    ]
    names = (
        *("partition", "length", "memory_bytes", "first", "last", "timers", "dead", "dead_bytes"),
        *("oldest", "held by"),
    )
    output.say_table(
        [n.upper() for n in names], [output.cells(row, names) for row in shown], empty="no partitions"
    )
    for note in notes:
        output.note(note)


@log.command()
@_partition
@click.option("--dry-run", is_flag=True, help="Only say what would be removed.")
@output.json_option
def trim(partition: int | None, dry_run: bool, as_json: bool) -> None:
    """Remove entries that nobody needs any more from Redis.

    These are entries that are archived, acknowledged by every group, and older than the retention time. The projector
    does this by itself every STREAMPROC_TRIM_INTERVAL. It says what keeps the rest: the archive, STREAMPROC_RETENTION,
    or a group. While Postgres is away nothing is trimmed: exit code 1.

    \b
    Example:
      streamproc log trim --dry-run
      streamproc log trim --json
    """
    settings = operator_settings()
    import msgspec

    from streamproc.cli.progress import ProgressDisplay
    from streamproc.operate.trim import trim_log

    async def trim_all(site: "Site") -> "list[LogBeginning]":
        with ProgressDisplay("log trim", "entries") as display:
            return await trim_log(
                site,
                retention_s=settings.retention_s,
                partition=partition,
                dry_run=dry_run,
                on_removed=partial(display.show, "trimming"),
            )

    rows = ask_site(trim_all, settings)
    if as_json:
        output.say_json(msgspec.to_builtins(rows))
        return
    for row in rows:
        click.echo(_trimmed_text(row, dry_run=dry_run))


@log.command()
@click.argument("id")
@person.by_option("Who states it, for the audit.")
@person.why_option("How that is known, for the audit.")
@click.option(
    "--no-later-version",
    is_flag=True,
    help="State that no later version wrote it, even if it looks like that.",
)
@click.option(
    "--yes", is_flag=True, help="Do not ask for confirmation. Without a terminal it is never asked."
)
@output.json_option
def disown(id: str, by: str, why: str, no_later_version: bool, yes: bool, as_json: bool) -> None:
    """State that streamproc did not write an unreadable entry.

    The statement is that no version of streamproc wrote the entry. Every reader of the log stops at an entry that
    cannot be read, because skipping a fact is how money goes missing: views stand still, `replay` and `recover` end.
    After this command all readers skip its bytes. The bytes stay in the log and in the archive, and log and audit say
    that they are skipped, who stated it and why. An entry that can be read is refused.

    \b
    Example:
      streamproc log disown 0:1700000000000-0 --by asha --why "a load test wrote to the wrong Redis"
    """
    settings = operator_settings()
    from consumers import GROUPS
    from streamproc.operate import disown as operate

    said = operate.statement(id, person.attribution(by, why), no_later_version=no_later_version)
    if not yes:
        output.confirm(f"Let everybody pass over entry {id}, which no version of streamproc wrote?")

    done = ask_site(lambda site: operate.disown(site, said, GROUPS), settings)
    if as_json:
        import msgspec

        output.say_json(msgspec.to_builtins(done))
        return
    click.echo(
        f"{done.entry} is disowned (recorded as {done.recorded}); {len(done.letters)} dead letters of it are"
        " discarded. Views that stand still at it go on within 15 s"
    )
    if done.unread:
        output.note(
            f"{', '.join(done.unread)} did not come to it yet: run this again once `streamproc groups` shows no lag,"
            " else it is set aside there, or waits for a later version"
        )


def _trimmed_text(row: "LogBeginning", *, dry_run: bool) -> str:
    from streamproc.operate.trim import held_text

    done = f"{row.to_go} entries would go" if dry_run else f"{row.removed} entries removed"
    begins = (
        f"the log begins {output.age(row.oldest_ms)} ago at {row.oldest}"
        if row.oldest_ms
        else "the log is empty"
    )
    return f"partition {row.partition}: {done}; {begins}; the rest is held by {held_text(row.held_by, row.held_at)}"


@click.command()
@output.json_option
def groups(as_json: bool) -> None:
    """Show each consumer group: its lag, pending entries, consumers.

    LAG: entries not read yet. PENDING: read by a worker, not acknowledged yet. DEFERRED: of these, how many wait for
    their next attempt. OLDEST_MS: age of the oldest. CONSUMERS: those that asked for entries in the last 10 s or hold
    some, even if they hang. Exit code 1 if a group is missing.

    \b
    Example:
      streamproc groups --json
    """
    from streamproc.errors import JobFailed
    from streamproc.operate import groups as operate

    rows = ask_site(operate.groups)
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
