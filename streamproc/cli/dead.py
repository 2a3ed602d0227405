"""`streamproc dead`: entries that could not be handled."""

from typing import Any

import click

from streamproc.cli import output, person
from streamproc.cli.context import operator_settings

LIMIT_MAX = 1_000


_by = person.by_option("Who does it.", required=False)
_why = person.why_option(required=False)


@click.group()
def dead() -> None:
    """Dead letters: entries that a group could not handle."""


@dead.command("list")
@click.option("--partition", type=click.IntRange(0), default=None, help="One partition; all by default.")
@click.option(
    "--limit",
    type=click.IntRange(1, LIMIT_MAX),
    default=100,
    show_default=True,
    help="How many to show of each partition.",
)
@output.json_option
def list_(partition: int | None, limit: int, as_json: bool) -> None:
    """List dead letters, the oldest first.

    \b
    Example:
      streamproc dead list
    """
    settings = operator_settings()
    from streamproc.operate import dead as operate
    from streamproc.operate.site import opened

    async def body() -> list[dict[str, Any]]:
        async with opened(settings) as site:
            return await operate.list_letters(site, partition=partition, limit=limit)

    rows = output.run(body())
    if as_json:
        output.say_json(rows)
        return
    names = ("id", "at", "group", "payout", "problem")
    output.say_table(
        [n.upper() for n in names], [output.cells(row, names) for row in rows], empty="no dead letters"
    )


@dead.command()
@click.argument("id")
@output.json_option
def show(id: str, as_json: bool) -> None:
    """Show a dead letter: its group and payout, its entry, what went wrong.

    \b
    Example:
      streamproc dead show 0:1700000000000-0
    """
    settings = operator_settings()
    from streamproc.operate import dead as operate
    from streamproc.operate.site import opened

    async def body() -> dict[str, Any]:
        async with opened(settings) as site:
            return await operate.show_letter(site, id)

    shown = output.run(body())
    if as_json:
        output.say_json(shown)
        return
    for name in ("id", "at", "group", "entry", "payout", "problem", "meta", "unreadable", "raw"):
        if shown.get(name):
            click.echo(f"{name:8} {shown[name]}")
    output.say_json(shown.get("events", []))


@dead.command()
@click.argument("id")
@_by
@_why
@output.json_option
def redrive(id: str, by: str, why: str, as_json: bool) -> None:
    """Give a dead letter back to its group.

    Do this after correcting what went wrong. Only that group handles the entry again; if it fails again, it becomes
    a dead letter again. Who did it, and why, is recorded in the log.

    \b
    Example:
      streamproc dead redrive 0:1700000000000-0 --why "the bank is back"
    """
    settings = operator_settings()
    from streamproc.operate import dead as operate
    from streamproc.operate.site import opened

    async def body() -> str:
        async with opened(settings) as site:
            return await operate.redrive(site, id, by=by, why=why)

    entry = output.run(body())
    if as_json:
        output.say_json({"id": id, "recorded": entry})
    else:
        click.echo(f"{id} is given back to its group (recorded as {entry})")


@dead.command()
@click.argument("id")
@click.option("--yes", is_flag=True, help="Do not ask.")
@_by
@_why
@output.json_option
def discard(id: str, yes: bool, by: str, why: str, as_json: bool) -> None:
    """Remove a dead letter for good.

    The log keeps its entry, that it was set aside, who discarded it and why. Its payout stays as it is. What was
    reserved for an intent that never came to a decision is released.

    \b
    Example:
      streamproc dead discard 0:1700000000000-0 --why "a test's payout" --yes
    """
    settings = operator_settings()
    from streamproc.domain.money import rupees
    from streamproc.operate import dead as operate
    from streamproc.operate.site import opened

    if not yes:
        output.confirm(f"Discard dead letter {id}?")

    async def body() -> int:
        async with opened(settings) as site:
            return await operate.discard(site, id, by=by, why=why)

    freed = output.run(body())
    if as_json:
        output.say_json({"id": id, "discarded": True, "freed_paise": freed})
    else:
        click.echo(f"{id} is discarded" + (f"; {rupees(freed)} are not reserved any more" if freed else ""))
