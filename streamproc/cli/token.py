"""`streamproc token`: who may use the HTTP API, for what, and for how long."""

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, cast

import click

from streamproc.cli import output, person
from streamproc.cli.context import ask_site, operator_settings
from streamproc.cli.wrong_use import NewFile
from streamproc.errors import InputError, JobFailed

if TYPE_CHECKING:
    from streamproc.domain.events import TokenScope
    from streamproc.operate.tokens import NewToken

_by = person.by_option("Who does it.", required=False)


@click.group()
def token() -> None:
    """HTTP API tokens: for agents, viewers, approvers and admins."""


@token.command()
@click.argument("name")
@click.option(
    "--scope",
    required=True,
    type=click.Choice(["agent", "viewer", "approver", "admin"]),
    help="agent: request payouts, see its own. viewer: see all. approver: also answer holds. admin: also set policies.",
)
@click.option("--agent", default="", metavar="ID", help="The agent whose token it is; for scope agent.")
@click.option(
    "--account",
    default="",
    metavar="ACC",
    help="The agent's account; STREAMPROC_RAZORPAY_ACCOUNT_ID by default.",
)
@click.option(
    "--reviewer",
    default="",
    metavar="NAME",
    help="For approver and admin: the policies' reviewer who answers holds with it; the token's name by default.",
)
@click.option(
    "--expires",
    default="90d",
    show_default=True,
    metavar="TIME",
    help="How long it is valid, such as 30m, 12h or 90d.",
)
@click.option(
    "--out",
    type=NewFile(),
    default=None,
    metavar="FILE",
    help="Write the token to FILE, a new one that only you can read, and do not print it.",
)
@_by
@output.json_option
def create(
    name: str,
    scope: str,
    agent: str,
    account: str,
    reviewer: str,
    expires: str,
    out: Path | None,
    by: str,
    as_json: bool,
) -> None:
    """Create the token NAME and print it, or write it to FILE.

    This happens once: only its hash is kept.

    \b
    Example:
      streamproc token create procurement --scope agent --agent procurement-bot --out procurement.token
      streamproc token create asha-laptop --scope approver --reviewer asha --out asha.token
    """
    settings = operator_settings()
    from streamproc.operate import tokens

    expires_s = tokens.validity_s(expires)
    kind = cast("TokenScope", scope)
    if kind == "agent":
        account = account or settings.razorpay_account_id

    spec = tokens.TokenSpec(
        name=name, scope=kind, agent=agent, account=account, reviewer=reviewer, expires_s=expires_s
    )

    def make() -> "NewToken":
        return ask_site(
            lambda site: tokens.create(
                site, spec, person.attribution(by), pays_from=settings.razorpay_account_id
            ),
            settings,
            run=output.run_or_undo,
        )

    until = _make_and_show(make, name, out, as_json=as_json)
    if out is not None and as_json:
        output.say_json({"name": name, "file": str(out), "expires_at": until})
    elif not as_json:
        where = "it is not shown again" if out is None else f"it is in {out}"
        click.echo(f"token {name} is good until {until}; {where}", err=True)


def _make_and_show(make: "Callable[[], NewToken]", name: str, out: Path | None, *, as_json: bool) -> str:
    """Make a token, and print its secret or write it to `out`; until when it is good.

    Raises InputError, before it is made, where the secret could not be shown; JobFailed where that failed afterwards.
    """
    from streamproc.domain.shown import iso

    made: NewToken | None = None
    try:
        with nullcontext(_stdout()) if out is None else _new_file(out) as place:
            made = make()
            until = iso(made.event.expires_at)
            if as_json and out is None:
                output.say_json({"name": name, "token": made.secret, "expires_at": until})
            else:
                click.echo(made.secret, file=place)
    except OSError as problem:
        if made is None:
            raise
        if out is None:
            output.abandon_stdout()
        raise JobFailed(
            f"token {name} was made and its secret is lost, since {out or 'stdout'} could not be written"
            f" ({problem.strerror}): run `streamproc token revoke {name}`, and make another"
        ) from problem
    return until


def _stdout() -> IO[str]:
    """stdout, for printing the secret. Raises InputError if it is closed, before a secret is made."""
    if sys.stdout is None:
        raise InputError("stdout is closed: nobody would see the token; give --out FILE")
    return sys.stdout


@contextmanager
def _new_file(path: Path) -> Iterator[IO[str]]:
    """A new file that only its owner can read, synced at the end; removed if anything fails.

    Raises InputError, before anything is done, if it cannot be made.
    """
    try:
        file = os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8")
    except FileExistsError as problem:
        raise InputError(f"{path} is there already, and is not overwritten") from problem
    except OSError as problem:
        raise InputError(f"{path} cannot be written: {problem.strerror}") from problem
    try:
        with file:
            yield file
            file.flush()
            os.fsync(file.fileno())
    except BaseException:
        path.unlink(missing_ok=True)
        raise


@token.command("list")
@output.json_option
def list_(as_json: bool) -> None:
    """List the tokens, revoked and expired ones too.

    \b
    Example:
      streamproc token list
    """
    from streamproc.domain.shown import iso_or_none
    from streamproc.operate import tokens

    found = ask_site(tokens.listed)
    if as_json:
        output.say_json({"items": [tokens.token_json(one, what) for one, what in found]})
        return
    rows: list[tuple[Any, ...]] = [
        (
            *(one.name, one.scope, one.agent or "-", one.account or "-"),
            *(one.person if one.may("review") else "-", what, iso_or_none(one.expires_at)),
        )
        for one, what in found
    ]
    output.say_table(
        ("NAME", "SCOPE", "AGENT", "ACCOUNT", "REVIEWER", "STATE", "EXPIRES"),
        rows,
        empty="there are no tokens",
    )


@token.command()
@click.argument("name")
@_by
@output.json_option
def revoke(name: str, by: str, as_json: bool) -> None:
    """Revoke the token NAME: the next request with it is refused.

    A request under way is refused too if its body takes 1 s or longer.

    \b
    Example:
      streamproc token revoke procurement
    """
    from streamproc.operate import tokens

    changed = ask_site(lambda site: tokens.revoke(site, name, person.attribution(by)))
    if as_json:
        output.say_json({"name": name, "state": "revoked", "changed": changed})
        return
    click.echo(f"token {name} {'is revoked' if changed else 'was revoked already'}")
