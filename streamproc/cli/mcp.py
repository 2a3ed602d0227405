"""`streamproc mcp`: agents ask for payouts over MCP."""

import logging
import sys
from pathlib import Path

import click

from streamproc.cli.caller import api_url, token_of
from streamproc.cli.context import settings_with_logging
from streamproc.cli.roles import run_until_stopped
from streamproc.domain.tokens import SECRET
from streamproc.errors import ConfigError, InputError
from streamproc.run_file import discover

SDK = ("mcp", "mcp_types")
"""Top modules of the SDK. If any other module is missing, that is a defect and gets a traceback."""


@click.command()
@click.option(
    "--http",
    "over_http",
    is_flag=True,
    help="Serve over HTTP at STREAMPROC_MCP_PORT; each request brings its token.",
)
@click.option(
    "--token",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="For stdio: the file with the token; or set STREAMPROC_TOKEN.",
)
@click.option(
    "--url", default="", metavar="URL", help="The API; by default the system that the settings name."
)
def mcp(over_http: bool, token: Path | None, url: str) -> None:
    """Let agents request payouts over the Model Context Protocol.

    It is only a client of the HTTP API: a token may do here what it may do there. Without --http it serves the one
    client that started it (Claude Desktop, Cursor, VS Code) over stdin and stdout; with --http it serves many at POST
    /mcp, on STREAMPROC_HOST. Nothing here approves a payout. Needs the extra `mcp`; see docs/mcp.md.

    \b
    Example:
      STREAMPROC_TOKEN_FILE=buyer.token streamproc mcp --url https://pay.example.com
      STREAMPROC_MCP_PORT=8081 streamproc mcp --http
    """
    settings = discover(settings_with_logging(logging.INFO))
    where = api_url(settings, url)
    if over_http and token is not None:
        raise InputError("--token is for stdio: over HTTP each request brings its own")
    try:
        from streamproc.mcp import role
    except ModuleNotFoundError as problem:
        if (problem.name or "").partition(".")[0] not in SDK:
            raise
        raise ConfigError(
            "`streamproc mcp` needs the extra `mcp`: in a checkout, pip install '.[mcp]'"
        ) from problem
    if over_http:
        run_until_stopped(role.run_http, settings, where)
        return
    secret = token_of(settings, token)
    if not SECRET.fullmatch(secret):
        raise ConfigError(
            "the given token is malformed: a token is spt_ and 43 characters, as `streamproc token create` makes it"
        )
    # Python sets these to None if the descriptor was closed at the start.
    if sys.stdin is None or sys.stdout is None:
        raise ConfigError("stdin or stdout is closed, over which MCP is served: open both, or use --http")
    run_until_stopped(role.run_stdio, settings, where, secret)
