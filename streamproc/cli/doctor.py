"""`streamproc doctor`: checks everything, and says what to do about what is wrong."""

import os

import click
import msgspec

from streamproc.cli import output
from streamproc.cli.context import no_system
from streamproc.errors import JobFailed
from streamproc.run_file import discover
from streamproc.settings import load


@click.command()
@output.json_option
def doctor(as_json: bool) -> None:
    """Check every dependency and setting, and say what to fix.

    Redis and how it is set, the log and its groups, Postgres and its schema, the bank's keys (one harmless look at
    the list), Safe Browsing (one harmless URL), webhook secrets, the clock. Exit code 1 if anything is bad.

    \b
    Example:
      streamproc doctor
    """
    settings = discover(load(os.environ))
    from streamproc.operate.doctor import examine

    if not settings.redis_url and not settings.postgres_dsn:
        note = no_system(settings)
        output.note(f"{note}; where one refused to start, its own last lines say why")
    checks = output.run(examine(settings))
    if as_json:
        output.say_json({"ok": all(c.status != "bad" for c in checks), "checks": msgspec.to_builtins(checks)})
    else:
        for check in checks:
            todo = f" -> {check.todo}" if check.todo and check.status != "ok" else ""
            status = output.coloured(check.status.ljust(4), _COLOURS[check.status])
            click.echo(f"{status}  {check.name}: {check.detail}{todo}")
    bad = sum(check.status == "bad" for check in checks)
    if bad:
        raise JobFailed(f"{bad} of {len(checks)} checks are bad")


_COLOURS = {"ok": "green", "bad": "red", "note": "yellow"}
