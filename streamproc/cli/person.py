"""`--by` and `--why`: who does something and why, the same for every command."""

import getpass
import os
import pwd
import socket
from collections.abc import Callable
from typing import Any

import click

from streamproc.domain.attribution import Attribution, read_name, read_reason
from streamproc.domain.plain import clean
from streamproc.errors import InputError

LOGIN_CHARS_MAX = 64
"""Of a login that is recorded: twice what Linux allows."""
HOST_CHARS_MAX = 64
"""Of a host's name, as Linux limits it."""

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


def attribution(by: str, why: str = "") -> Attribution:
    """What is done by a command of this shell."""
    return Attribution(by, shell(), why)


def shell() -> str:
    """Where a command is given: login and host of its process, `cli:asha@laptop`. Two names from one shell show by it.

    A claim like the name itself: whoever has the shell may have other logins, and writes to Redis as they like.
    """
    try:
        login = pwd.getpwuid(os.getuid()).pw_name  # not LOGNAME or USER, which one sets by typing them
    except KeyError:  # in a container whose passwd file lacks the user
        login = f"uid-{os.getuid()}"
    return f"cli:{clean(login, LOGIN_CHARS_MAX)}@{clean(socket.gethostname(), HOST_CHARS_MAX)}"


def _who(_: click.Context, param: click.Parameter, given: str) -> str:
    return read_name(given, called=param.opts[0])


def _who_or_login(context: click.Context, param: click.Parameter, given: str | None) -> str:
    if given is not None:
        return _who(context, param, given)
    try:
        return getpass.getuser()
    except (KeyError, OSError) as problem:  # in a container whose passwd file lacks the user
        raise InputError("this user has no login name: say who does it with --by NAME") from problem


def _why(_: click.Context, param: click.Parameter, given: str) -> str:
    return read_reason(given, called=param.opts[0])


def _why_or_nothing(context: click.Context, param: click.Parameter, given: str) -> str:
    return _why(context, param, given) if given else ""
