"""How commands print: JSON for machines, tables for people; and how a coroutine is run to its end."""

import io
import json
import os
import signal
import sys
from collections.abc import Coroutine, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import click

from streamproc.domain.plain import HARMFUL, plain
from streamproc.errors import InputError

T = TypeVar("T")

PIPE_COLUMNS = 100_000
"""Width of a table that is not on a terminal: no cell is folded there, so that `grep` works."""

DUMB = frozenset({"dumb", "unknown"})
"""What TERM says on a terminal that only writes one line after another, as in an editor's shell."""

json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON for machines.")


def run(work: Coroutine[Any, Any, T]) -> T:
    """Run a command's coroutine; Ctrl-C ends it."""
    import asyncio

    try:
        return asyncio.run(work)
    except KeyboardInterrupt:
        raise click.Abort from None


def run_or_undo(work: Coroutine[Any, Any, T]) -> T:
    """As `run`; SIGTERM, and SIGHUP where it is heard, end it as Ctrl-C does, so that nothing is left half done.
    The same signal once more ends it even within a write to a disk that hangs. Elsewhere than in the main thread
    nothing is changed, as asyncio does with Ctrl-C."""
    import asyncio
    import threading

    from streamproc.processes import stop_numbers

    before: dict[int, Any] = {}
    numbers = stop_numbers() if threading.current_thread() is threading.main_thread() else ()

    async def stoppable() -> T:
        loop, task = asyncio.get_running_loop(), asyncio.current_task()
        assert task is not None

        def end(number: int, _frame: object) -> None:
            signal.signal(number, signal.default_int_handler)
            loop.call_soon_threadsafe(task.cancel)

        for number in {*numbers} - {signal.SIGINT}:  # of which `run` has its own
            # The loop's own would wait for the loop, which waits for the disk.
            before[number] = signal.signal(number, end)
        return await work

    try:
        return run(stoppable())
    except asyncio.CancelledError:
        raise click.Abort from None
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def confirm(question: str) -> None:
    """Ask on the terminal; anything but yes ends the command. Raises InputError if the answer is not UTF-8.

    Where there is no terminal nobody is asked, and the command goes on: a script means what it runs.
    """
    if sys.stdin is None or not sys.stdin.isatty():
        return
    try:
        click.confirm(question, abort=True, err=True)
    except UnicodeDecodeError as problem:
        raise InputError("the answer is not UTF-8 text; answer y, or give --yes") from problem


def say_json(value: object) -> None:
    """Print one JSON document on stdout."""
    click.echo(json_text(value, indent=2))


def json_text(value: object, *, indent: int | None = None) -> str:
    """JSON that is safe on a terminal: only characters that a terminal would obey instead of showing are escaped."""
    text = json.dumps(value, ensure_ascii=False, indent=indent)
    # Line ends belong to the layout: within strings they are escaped already.
    return HARMFUL.sub(lambda char: char[0] if char[0] == "\n" else json.dumps(char[0])[1:-1], text)


def visible(text: str) -> str:
    """A line without characters that a terminal would obey (escapes, text direction); blanks stay."""
    return " ".join(plain(word) for word in text.split(" "))


def say_table(columns: Sequence[str], rows: Iterable[Sequence[object]], *, empty: str) -> None:
    """Print a table, or `empty` if there are no rows."""
    from rich.table import Table
    from rich.text import Text

    found = list(rows)
    if not found:
        click.echo(empty)
        return
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        table.add_column(column, overflow="fold")
    for row in found:
        # Text, not str: values from outside may look like markup, or turn a terminal's text around.
        table.add_row(*(Text("-" if cell is None else visible(str(cell))) for cell in row))
    say_drawn(table)


def say_drawn(shown: object) -> None:
    """What rich draws. Written by click: rich itself ends the program with 1 where the reader had enough (`| head`)."""
    from rich.console import Console

    if sys.stdout is None:
        return  # closed before we began, and click says nothing either
    console = Console(width=None if on_terminal() else PIPE_COLUMNS, highlight=False)
    with console.capture() as drawn:
        console.print(shown)
    click.echo(drawn.get(), file=sys.stdout, nl=False)


def on_terminal() -> bool:
    """Whether somebody looks at stdout."""
    return sys.stdout is not None and sys.stdout.isatty()


def can_redraw() -> bool:
    """Whether stdout is a terminal that can show one screen over another; rich draws none on one that cannot."""
    return on_terminal() and os.environ.get("TERM", "").lower() not in DUMB


def coloured(text: str, colour: str) -> str:
    """The text in a colour, where the terminal has colours and NO_COLOR does not forbid them, as rich does it too."""
    return click.style(text, fg=colour) if can_redraw() and not os.environ.get("NO_COLOR") else text


def cells(row: Mapping[str, object], names: Sequence[str]) -> list[object]:
    """The values of a row in the order of its columns."""
    return [row.get(name) for name in names]


def age(ms: int | None) -> str | None:
    """An age for people, in its two largest units."""
    if ms is None:
        return None
    seconds, parts = ms // 1000, list[str]()
    for unit, size in (("d", 86_400), ("h", 3_600), ("m", 60), ("s", 1)):
        if seconds >= size or (unit == "s" and not parts):
            parts.append(f"{seconds // size}{unit}")
            seconds %= size
    return " ".join(parts[:2])


STDERR = 2
"""The last of the three descriptors that a process begins with."""


def escape_unencodable() -> None:
    """Escape, as stderr does, what stdout's encoding cannot express (as on a terminal set to ASCII)."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")


def reserve_descriptors() -> None:
    """Where stdin, stdout or stderr were closed before we began (`2>&-`), nothing is read or written instead.

    Else the next socket would get their number, and whatever is printed to that. stdout stays None: who prints asks.
    """
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= STDERR:
        os.set_inheritable(descriptor, True)
    os.close(descriptor)
    if sys.stderr is None:
        sys.stderr = os.fdopen(STDERR, "w", encoding="utf-8", closefd=False)


def abandon_stdout() -> None:
    """The reader of our pipe has gone: keep Python from complaining again at exit."""
    sys.stdout = Path(os.devnull).open("w", encoding="utf-8")  # noqa: SIM115  # lives as long as the process


def note(text: str) -> None:
    """Print on stderr what may be missing in an answer, so that stdout has the answer only."""
    if text:
        click.echo(f"note: {text}", err=True)
