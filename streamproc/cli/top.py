"""`streamproc top`: the running system on one screen, as it is now."""

import asyncio
import signal
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from typing import TYPE_CHECKING

import click

from streamproc.cli import output
from streamproc.cli.context import ask_site, operator_settings

if TYPE_CHECKING:
    from streamproc.operate.top import Frame

INTERVAL_S = 2.0


@click.command()
@click.option("--once", is_flag=True, help="Show it once and end; always so without a terminal.")
@click.option(
    "--interval",
    type=click.FloatRange(0.5, 3_600),
    default=INTERVAL_S,
    show_default=True,
    metavar="SECONDS",
    help="Time between two looks.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object a line, for machines.")
def top(once: bool, interval: float, as_json: bool) -> None:
    """Show decisions, holds, budgets and lag, live until Ctrl-C.

    Without a live terminal (a pipe, TERM=dumb) they are shown once. A store that is unavailable is named in one line
    and tried again; with --once the exit code is then 1. Rates are those of the last ten seconds, decisions those of
    the last minute. Budgets are the fullest windows of agents, each with the limit in force.

    \b
    Example:
      streamproc top
      streamproc top --once --json | jq .decisions_per_s
    """
    settings = operator_settings()
    if once or not (as_json or output.can_redraw()):
        from streamproc.errors import JobFailed
        from streamproc.operate.top import Frame, look

        found = ask_site(lambda site: look(site, settings.timezone), settings)
        _print(Frame(found, ""), as_json)
        if found.problem:
            raise JobFailed(f"not all of it is known: {found.problem}")
        return
    asyncio.run(_follow(interval, as_json))


def _print(frame: "Frame", as_json: bool) -> None:
    from streamproc.operate.top import look_json

    if as_json:
        shown = (
            {"problem": frame.problem}
            if frame.look is None
            else look_json(frame.look) | {"problem": frame.problem}
        )
        click.echo(output.json_text(shown))
        return
    from streamproc.cli.top_screen import screen

    output.say_drawn(screen(frame))


async def _follow(interval_s: float, as_json: bool) -> None:
    """Refresh until a signal comes. Whatever ends it, the terminal is restored."""
    from streamproc.operate.top import frames

    async with _until_signal() as over, aclosing(frames(operator_settings, interval_s, over)) as looks:
        if as_json:
            async for frame in looks:
                _print(frame, as_json)
            return
        from rich.console import Console
        from rich.live import Live
        from rich.text import Text

        from streamproc.cli.top_screen import screen

        console = Console(highlight=False)
        # Without its refresh thread: the screen changes only after a look.
        with Live(Text("looking …"), console=console, screen=True, auto_refresh=False) as live:
            async for frame in looks:
                live.update(screen(frame, interval_s), refresh=True)


@asynccontextmanager
async def _until_signal() -> AsyncIterator[asyncio.Event]:
    """An event that SIGINT and SIGTERM set; they also cancel what the body awaits, which is no failure."""
    over, loop, me = asyncio.Event(), asyncio.get_running_loop(), asyncio.current_task()
    assert me is not None

    def end() -> None:
        # The event too: in Python 3.11 redis-py may swallow a cancellation.
        over.set()
        me.cancel()

    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, end)
    try:
        yield over
    except asyncio.CancelledError:
        if not over.is_set():
            raise
        me.uncancel()
    finally:
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.remove_signal_handler(number)
