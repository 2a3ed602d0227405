"""`streamproc replay`: rebuilds views from the archive."""

import json
from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing
from functools import partial
from typing import TYPE_CHECKING, Any

import click

from streamproc.cli import output
from streamproc.cli.context import archive_settings
from streamproc.cli.progress import ProgressDisplay
from streamproc.errors import InputError, JobFailed
from streamproc.settings import Settings

if TYPE_CHECKING:
    from streamproc.operate.replay import Result

ROWS_SHOWN_MAX = 1_000
"""Rows of a table on a terminal; `--json` gives all."""


def view_names() -> tuple[str, ...]:
    """The names of all views; asked for only where they are needed, since they import the archive."""
    from projections.views import NAMES

    return NAMES


def _known(ctx: click.Context, param: click.Parameter, views: tuple[str, ...]) -> tuple[str, ...]:
    """The views as they were named. Wrong use if there is none of such a name."""
    return tuple(click.Choice(view_names()).convert(view, param, ctx) for view in views)


def _beginning_with(_ctx: click.Context, _param: click.Parameter, typed: str) -> list[str]:
    return [view for view in view_names() if view.startswith(typed)]


@click.command()
@click.argument("views", nargs=-1, metavar="[VIEW]...", callback=_known, shell_complete=_beginning_with)
@click.option(
    "--as-of",
    "as_of",
    metavar="WHEN",
    help="Print views as they were: a time (ISO 8601), a seq, or partition:seq. With --json one row a line;"
    " of several views each row is in an object that names its view.",
)
@click.option("--verify", is_flag=True, help="Compare only; exit code 1 if a live view differs from its log.")
@click.option("--back", is_flag=True, help="Put the views that the last replay replaced back in place.")
@click.option("--restart", is_flag=True, help="Begin anew, even if a replay was left half done.")
@click.option(
    "--jobs",
    type=click.IntRange(1, 64),
    default=None,
    help="Processes that build at once, then indexes at once; one per CPU by default.",
)
@output.json_option
def replay(
    views: tuple[str, ...],
    as_of: str | None,
    verify: bool,
    back: bool,
    restart: bool,
    jobs: int | None,
    as_json: bool,
) -> None:
    """Rebuild views from the archive, then swap them in one step.

    They are built beside the live ones. Without VIEW, all views. The rebuilt ones are compared with the live ones at
    the same position before they are swapped; if a view's version was raised, in the columns that both have. Readers
    never see a half-built view; projector and workers go on. A replay that was killed continues where it stopped.
    Nothing is written to the log, and nothing outside is called.

    The user of Postgres needs the right to create a schema (CREATE on the database), also for --verify and --as-of,
    which remove it again. To swap views it has to own them.

    \b
    Example:
      streamproc replay --verify
      streamproc replay payouts
      streamproc replay budgets --as-of 2026-11-01T00:00:00+05:30 --json
    """
    if sum((bool(as_of), verify, back)) > 1:
        raise InputError("--as-of, --verify and --back exclude each other")
    settings = archive_settings()
    dsn = settings.postgres_dsn.reveal()
    if as_of is not None:
        _show_past(dsn, views or view_names(), as_of, jobs or 0, as_json)
    elif back:
        _go_back(dsn, as_json)
    else:
        _rebuild(
            settings, views or view_names(), verify=verify, restart=restart, jobs=jobs or 0, as_json=as_json
        )


def _rebuild(
    settings: Settings, views: Sequence[str], *, verify: bool, restart: bool, jobs: int, as_json: bool
) -> None:
    from streamproc.operate.measured import replay_with_metrics
    from streamproc.operate.replay import replay

    job = partial(replay, settings.postgres_dsn.reveal(), views, verify=verify, restart=restart, jobs=jobs)
    with ProgressDisplay("replay", "events") as display:
        job_shown = replay_with_metrics(
            settings.data_dir, lambda on_progress: job(on_progress=on_progress), display.hear
        )
        result = output.run(job_shown)
    if as_json:
        output.say_json(_as_json(result))
    else:
        _print(result)
    wrong = [view.view for view in result.views if view.equal is False]
    uncompared = [view.view for view in result.views if view.equal is None]
    if verify and wrong:
        raise JobFailed(
            f"the live {', '.join(wrong)} differ from their log; `streamproc replay` rebuilds them"
        )
    if verify and uncompared:
        raise JobFailed(f"the live {', '.join(uncompared)} could not be compared with their log")


def _as_json(result: "Result") -> dict[str, Any]:
    import msgspec

    found: dict[str, Any] = msgspec.to_builtins(result, str_keys=True)
    return found | {"events_per_s": result.events_per_s}


def _print(result: "Result") -> None:
    said = {True: "equal", False: "DIFFERENT", None: "not compared"}
    rows = [
        (view.view, view.rows, said[view.equal], view.differing or "-", view.checksum.partition("/")[0])
        for view in result.views
    ]
    output.say_table(["VIEW", "ROWS", "LIVE WAS", "DIFFERING ROWS", "CHECKSUM"], rows, empty="no views")
    for view in result.views:
        if view.changed:
            click.echo(f"{view.view}: {view.changed}")
        for difference in view.differences:
            click.echo(
                f"{view.view} {difference.key}: live {_cut(difference.live)}, by its log {_cut(difference.rebuilt)}"
            )
    at = ", ".join(f"{partition}:{seq}" for partition, seq in result.positions.items())
    click.echo(
        f"{result.events} events in {result.seconds:.1f} s, {result.events_per_s} events/s;"
        f" compared at {at or 'nothing'}"
    )
    for note in result.notes:
        output.note(note)
    if result.swapped:
        click.echo(
            "the rebuilt views are in place; `streamproc replay --back` undoes a replay of all of them"
        )


def _cut(row: dict[str, object] | None) -> str:
    return "has no such row" if row is None else json.dumps(row, ensure_ascii=False)[:300]


def _go_back(dsn: str, as_json: bool) -> None:
    from streamproc.operate.replay import go_back

    views = output.run(go_back(dsn))
    if as_json:
        output.say_json({"swapped_back": views})
    else:
        click.echo(f"back in place: {', '.join(views)}")


async def _say_rows(rows: AsyncIterator[dict[str, Any]], of: str) -> OSError | None:
    """Print each row as a line of JSON, within an object that names its view if `of` does; the error of stdout, if it
    takes no more."""
    async for row in rows:
        try:
            click.echo(output.json_text({"view": of, "row": row} if of else row))
        except OSError as problem:
            return problem
    return None


async def _first_rows(
    rows: AsyncIterator[dict[str, Any]], names: Sequence[str], view: str
) -> list[list[object]]:
    """The cells of the first ROWS_SHOWN_MAX rows, with a note where there are more."""
    shown: list[list[object]] = []
    async for row in rows:
        if len(shown) >= ROWS_SHOWN_MAX:
            output.note(f"{view}: the first {ROWS_SHOWN_MAX} rows; --json prints all")
            break
        shown.append([row[name] for name in names])
    return shown


def _show_past(dsn: str, views: Sequence[str], as_of: str, jobs: int, as_json: bool) -> None:
    from streamproc.operate.builders import built_as_of
    from streamproc.operate.past import columns_of, rows_of, targets_of

    async def body() -> None:
        targets = await targets_of(dsn, as_of)
        cut_off: OSError | None = None  # inside, it would be taken for one of Postgres's
        tables: list[tuple[str, list[str], list[list[object]]]] = []
        with ProgressDisplay("replay", "events") as display:
            async with built_as_of(dsn, targets, jobs=jobs, on_progress=display.hear) as place:
                display.end()
                for view in views:
                    names = await columns_of(place, view)
                    async with aclosing(rows_of(place, view)) as rows:  # an open cursor would keep the place
                        if as_json:
                            cut_off = await _say_rows(rows, view if len(views) > 1 else "")
                        else:
                            tables.append((view, names, await _first_rows(rows, names, view)))
                    if cut_off is not None:
                        break
        if cut_off is not None:
            raise cut_off
        for view, names, shown in tables:
            if len(views) > 1:
                click.echo(f"{view}:")
            output.say_table([n.upper() for n in names], shown, empty=f"{view} was empty then")

    output.run_or_undo(body())
