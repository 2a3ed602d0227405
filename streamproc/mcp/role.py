"""Puts `streamproc mcp` together: the API's client, the tools, and one of the two transports."""

import asyncio
import logging
from contextlib import aclosing

from streamproc.clients.own_api import OwnApi
from streamproc.drain import requests_s
from streamproc.mcp.calls import Calls
from streamproc.mcp.http import allowed, serve_http, token_of
from streamproc.mcp.server import server_of
from streamproc.mcp.stdio import serve_stdio
from streamproc.settings import Settings

log = logging.getLogger(__name__)


async def run_stdio(settings: Settings, url: str, token: str, stopping: asyncio.Event) -> None:
    """Serve one client over stdin and stdout, with one token."""
    async with aclosing(OwnApi(url)) as api:
        log.info("MCP is spoken over stdin and stdout; the API is %s", url)
        calls = Calls(api, public_url=settings.public_url, stopping=stopping)
        await serve_stdio(
            server_of(calls, lambda _context: token), stopping, drain_s=requests_s(settings.drain_s)
        )


async def run_http(settings: Settings, url: str, stopping: asyncio.Event) -> None:
    """Serve clients over HTTP, each with its own token."""
    async with aclosing(OwnApi(url)) as api:
        log.info("the API is %s", url)
        calls = Calls(api, public_url=settings.public_url, stopping=stopping)
        await serve_http(
            server_of(calls, token_of),
            stopping,
            host=settings.host,
            port=settings.mcp_port,
            guard=allowed(settings.host, settings.public_url, settings.mcp_hosts),
            body_bytes_max=settings.body_limit,
            drain_s=requests_s(settings.drain_s),
        )
