"""`streamproc dead`: entries that could not be handled."""

from typing import TYPE_CHECKING, Any

import click

from streamproc.cli import output, person
from streamproc.cli.context import ask_site, operator_settings
from streamproc.errors import JobFailed

if TYPE_CHECKING:
    from streamproc.operate.site import Site

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
    from streamproc.operate import dead as operate

    async def listed(site: "Site") -> tuple[list[dict[str, Any]], int]:
        rows = await operate.list_letters(site, partition=partition, limit=limit)
        return rows, await operate.count_letters(site, partition=partition)

    rows, count = ask_site(listed)
    if count > len(rows):
        output.note(
            f"there are {count - len(rows)} more, newer ones: --limit {LIMIT_MAX} shows so many of each partition"
        )
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
    """Show a dead letter: its group, payout, entry and problem.

    \b
    Example:
      streamproc dead show 0:1700000000000-0
    """
    from streamproc.operate import dead as operate

    shown = ask_site(lambda site: operate.show_letter(site, id))
    if as_json:
        output.say_json(shown)
        return
    for name in ("id", "at", "group", "entry", "payout", "problem", "meta", "unreadable", "raw"):
        if shown.get(name):
            click.echo(f"{name:8} {shown[name]}")
    output.say_json(shown.get("events", []))


@dead.command()
@click.argument("ids", metavar="ID...", nargs=-1, required=True)
@_by
@_why
@output.json_option
def redrive(ids: tuple[str, ...], by: str, why: str, as_json: bool) -> None:
    """Give dead letters back to their groups.

    Fix the cause first. Only the group that failed handles the entry again; if it fails again, the entry becomes a dead
    letter again. Who did it, and why, is recorded in the log. If an ID is not, or no longer, a dead letter, the others
    are still given back and the exit code is 1. With --json, several IDs give a list.

    \b
    Example:
      streamproc dead redrive 0:1700000000000-0 --why "the bank is back"
      streamproc dead redrive $(streamproc dead list --json | jq -r '.[].id') --why "the token is renewed"
    """
    settings = operator_settings()
    from streamproc.operate import dead as operate

    for id in ids:
        operate.stream_id(id)  # a wrong one is refused before any is given back
    done: list[dict[str, str]] = []
    problems: list[str] = []

    async def give_back(site: "Site") -> None:
        for id in ids:
            try:
                recorded = await operate.redrive(site, id, person.attribution(by, why))
                done.append({"id": id, "recorded": recorded})
            except JobFailed as problem:
                problems.append(str(problem))

    try:
        ask_site(give_back, settings)
    finally:
        _say_redriven(done, as_json=as_json, many=len(ids) > 1)
    if problems:
        raise JobFailed("\n".join(problems))


def _say_redriven(done: list[dict[str, str]], *, as_json: bool, many: bool) -> None:
    if as_json and (many or done):
        output.say_json(done if many else done[0])
    elif not as_json:
        for one in done:
            click.echo(f"{one['id']} is given back to its group (recorded as {one['recorded']})")


@dead.command()
@click.argument("id")
@click.option(
    "--yes", is_flag=True, help="Do not ask for confirmation. Without a terminal it is never asked."
)
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

    if not yes:
        output.confirm(f"Discard dead letter {id}?")

    freed = ask_site(lambda site: operate.discard(site, id, person.attribution(by, why)), settings)
    if as_json:
        output.say_json({"id": id, "discarded": True, "freed_paise": freed})
    else:
        click.echo(f"{id} is discarded" + (f"; {rupees(freed)} is no longer reserved" if freed else ""))
