"""`--by` and `--why`: who does something and why, the same for every command."""

import getpass
from collections.abc import Callable
from typing import Any

import click

from streamproc.domain import attribution
from streamproc.errors import InputError

_Option = Callable[[Callable[..., Any]], Callable[..., Any]]


def by_option(text: str = "Who does it, for the audit.", *, required: bool = True) -> _Option:
    """`--by NAME`; the login name if it is neither required nor given."""
    if required:
        return click.option("--by", required=True, metavar="NAME", help=text, callback=_who)
    text = f"{text.removesuffix('.')}; your login name by default."
    return click.option("--by", default=None, metavar="NAME", help=text, callback=_who_or_login)


def why_option(text: str = "Why, for the audit.", *, name: str = "--why", required: bool = True) -> _Option:
    """`--why TEXT`; empty if it is neither required nor given."""
    if required:
        return click.option(name, required=True, metavar="TEXT", help=text, callback=_why)
    return click.option(name, default="", metavar="TEXT", help=text, callback=_why_or_nothing)


def _who(_: click.Context, param: click.Parameter, given: str) -> str:
    return attribution.who(given, called=param.opts[0])


def _who_or_login(context: click.Context, param: click.Parameter, given: str | None) -> str:
    if given is not None:
        return _who(context, param, given)
    try:
        return getpass.getuser()
    except (KeyError, OSError) as problem:  # in a container whose passwd file lacks the user
        raise InputError("this user has no login name: say who does it with --by NAME") from problem


def _why(_: click.Context, param: click.Parameter, given: str) -> str:
    return attribution.why(given, called=param.opts[0])


def _why_or_nothing(context: click.Context, param: click.Parameter, given: str) -> str:
    return _why(context, param, given) if given else ""
