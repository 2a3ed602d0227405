"""The command line: thin commands, one module for each noun. What they do is in `streamproc.app` and `operate`.

    exit 0   done
    exit 1   the job failed, or its answer is no
    exit 2   wrong use: an option, a file or a setting is wrong
    exit 130 Ctrl-C, before the command began (streamproc/__main__.py)

An error is one clear line on stderr. Heavy modules are imported inside the commands, so that `--help` is quick.
"""

import logging
import sys
from collections.abc import Sequence
from typing import Any

import click

from streamproc import __version__
from streamproc.cli import output
from streamproc.cli.audit import audit
from streamproc.cli.dead import dead
from streamproc.cli.doctor import doctor
from streamproc.cli.explain import explain
from streamproc.cli.freeze import freeze, unfreeze
from streamproc.cli.hold import hold
from streamproc.cli.lazy import LazyGroup
from streamproc.cli.log import groups, log
from streamproc.cli.logline import log_to_stderr
from streamproc.cli.mcp import mcp
from streamproc.cli.pay import pay
from streamproc.cli.policy import policy
from streamproc.cli.reconcile import reconcile
from streamproc.cli.recover import recover
from streamproc.cli.replay import replay
from streamproc.cli.roles import migrate, poller, projector, sandbox, serve, up, worker
from streamproc.cli.token import token
from streamproc.cli.top import top
from streamproc.cli.wrong_use import line_of, require_text
from streamproc.errors import NO_ROOM, ConfigError, InputError, StreamprocError, first_of_ours

WRONG_USE, FAILED = 2, 1


class Root(click.Group):
    """The command group. A reader that closes our pipe early (`streamproc log tail | head`) is no failure."""

    def make_context(self, *given: Any, **more: Any) -> click.Context:
        """Read the command line; `--help` and `--version` speak here."""
        try:
            return super().make_context(*given, **more)
        except BrokenPipeError:
            output.abandon_stdout()
            raise click.exceptions.Exit(0) from None

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command."""
        try:
            return super().invoke(ctx)
        except BrokenPipeError:
            output.abandon_stdout()
            return 0


@click.group(cls=Root, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="streamproc")
def cli() -> None:
    """Govern the payouts of AI agents: an event log, a pipeline of consumers, an audit trail.

    Start everything on this machine with `streamproc up`; other commands find the running system through
    STREAMPROC_DATA_DIR, or through STREAMPROC_REDIS_URL and STREAMPROC_POSTGRES_DSN.
    """
    log_to_stderr(logging.WARNING)


for command in (
    *(up, serve, worker, poller, projector, mcp, sandbox, migrate, doctor),
    *(pay, policy, token, freeze, unfreeze, hold, explain, audit),
    *(replay, recover, reconcile, log, groups, dead, top),
    LazyGroup("bench", "streamproc.cli.bench:bench", "Measure the engine."),
):
    cli.add_command(command)
require_text(cli)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one command and exit with its code."""
    output.reserve_descriptors()
    sys.exit(run(arguments))


def run(arguments: Sequence[str] | None = None) -> int:
    """Run one command; its exit code. Defects are not caught: they show a traceback and exit 1."""
    output.escape_unencodable()
    try:
        code = int(cli.main(arguments, prog_name="streamproc", standalone_mode=False) or 0)
        if sys.stdout is not None:  # None: it was closed before we began
            sys.stdout.flush()
        return code
    except click.exceptions.Abort:
        click.echo("streamproc: stopped by the user", err=True)
        return FAILED
    except click.ClickException as problem:
        click.echo(line_of(problem), err=True)
        return problem.exit_code
    except OSError as problem:
        if problem.filename is not None or problem.errno not in NO_ROOM:
            raise
        output.abandon_stdout()
        click.echo(f"streamproc: the answer cannot be written: {problem.strerror}", err=True)
        return FAILED
    except StreamprocError as problem:
        return _refuse(problem)
    except BaseExceptionGroup as problems:
        named = first_of_ours(problems)
        if named is None or problems.split(StreamprocError)[1] is not None:  # a defect is never hidden
            raise
        return _refuse(named)


def _refuse(problem: StreamprocError) -> int:
    click.echo("\n".join(output.visible(line) for line in f"streamproc: {problem}".split("\n")), err=True)
    return WRONG_USE if isinstance(problem, ConfigError | InputError) else FAILED
