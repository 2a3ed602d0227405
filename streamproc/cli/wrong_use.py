"""Wrong use of the command line: arguments that are not UTF-8 are refused, and every refusal is one line."""

from typing import Any

import click
from click.exceptions import NoArgsIsHelpError

from streamproc.cli.output import visible
from streamproc.domain.plain import is_text


class Text(click.ParamType[Any]):
    """UTF-8 text: anything else could not be sent on."""

    name = "text"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """The same text; a refusal that names its option if it is not UTF-8."""
        if isinstance(value, str) and not is_text(value):
            self.fail("it is not UTF-8 text", param, ctx)
        return value


def require_utf8(command: click.Command) -> None:
    """Make every text option and argument of this command, and of those below it, refuse anything but UTF-8."""
    for param in command.params:
        if param.type is click.STRING:
            param.type = Text()
    for below in getattr(command, "commands", {}).values():
        require_utf8(below)


def line_of(problem: click.ClickException) -> str:
    """What is wrong, in one line that names the command for more; a command without arguments shows its help."""
    if isinstance(problem, NoArgsIsHelpError):
        return problem.format_message()
    said = visible(" ".join(problem.format_message().split())).rstrip(".")
    context = problem.ctx if isinstance(problem, click.UsageError) else None
    if context is None:
        return f"streamproc: {said}"
    return f"{context.command_path}: {said}; see {context.command_path} --help"
