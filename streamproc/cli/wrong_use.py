"""Wrong use of the command line: text that is none is refused where it comes in, and every refusal is one line."""

from typing import Any

import click
from click.exceptions import NoArgsIsHelpError

from streamproc.cli.output import visible
from streamproc.domain.plain import is_text


class Text(click.ParamType[Any]):
    """Text of UTF-8: what is none cannot be sent on."""

    name = "text"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """The same text, or the refusal that names its option."""
        if isinstance(value, str) and not is_text(value):
            self.fail("it is not UTF-8 text", param, ctx)
        return value


def take_text_alone(command: click.Command) -> None:
    """Let every option and argument that takes text, of this command and those below it, take nothing else."""
    for param in command.params:
        if param.type is click.STRING:
            param.type = Text()
    for below in getattr(command, "commands", {}).values():
        take_text_alone(below)


def line_of(problem: click.ClickException) -> str:
    """What is wrong, in one line with the command that says more; asked nothing, a command shows its help instead."""
    if isinstance(problem, NoArgsIsHelpError):
        return problem.format_message()
    said = visible(" ".join(problem.format_message().split())).rstrip(".")
    context = problem.ctx if isinstance(problem, click.UsageError) else None
    if context is None:
        return f"streamproc: {said}"
    return f"{context.command_path}: {said}; see {context.command_path} --help"
