"""Wrong use of the command line: arguments that are blank or not UTF-8 are refused, and every refusal is one line."""

from pathlib import Path
from typing import Any

import click
from click.exceptions import NoArgsIsHelpError

from streamproc.cli.output import visible
from streamproc.domain.plain import is_text


class Text(click.ParamType[Any]):
    """UTF-8 text: anything else could not be sent on. With `says_something` not blank either: an unset variable of a
    script is no id, and would be looked for as one."""

    name = "text"

    def __init__(self, *, says_something: bool) -> None:
        self._says_something = says_something

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """The same text; a refusal that names its option if it is not UTF-8, or blank."""
        if isinstance(value, str) and not is_text(value):
            self.fail("it is not UTF-8 text", param, ctx)
        if self._says_something and not value.strip():
            self.fail("it is blank", param, ctx)
        return value


class NewFile(click.Path):
    """A file to write. `-` is refused: who gives it means stdout, and a key or token would lie in a file named `-`."""

    def __init__(self) -> None:
        super().__init__(path_type=Path)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """The path; a refusal that names its option if it is `-`."""
        if str(value) == "-":
            self.fail("what is written goes to a file, not to stdout; name one", param, ctx)
        return super().convert(value, param, ctx)


def require_text(command: click.Command) -> None:
    """Make every text option and argument of this command, and of those below it, refuse what is no text.

    One that is blank is refused too, except for what may be so by default, and what has checks of its own.
    """
    for param in command.params:
        if param.type is click.STRING:
            has_checks = param.callback is not None or param.multiple
            param.type = Text(says_something=not has_checks and not isinstance(param.default, str))
    for below in getattr(command, "commands", {}).values():
        require_text(below)


def line_of(problem: click.ClickException) -> str:
    """What is wrong, in one line that names the command for more; a command without arguments shows its help."""
    if isinstance(problem, NoArgsIsHelpError):
        return problem.format_message()
    said = visible(" ".join(problem.format_message().split())).rstrip(".")
    context = problem.ctx if isinstance(problem, click.UsageError) else None
    if context is None:
        return f"streamproc: {said}"
    return f"{context.command_path}: {said}; see {context.command_path} --help"
