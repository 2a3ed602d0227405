"""Connecting to a Postgres of several hosts, `postgresql://user@a:5432,b:5432/name?target_session_attrs=read-write`.

The driver gives all hosts one limit together, so a first host that hangs, or whose machine is gone, uses it up and the
second is never asked. Here each has its share.
"""

import asyncio
import logging
from typing import Any
from urllib.parse import SplitResult, parse_qs, urlencode, urlsplit, urlunsplit

import asyncpg

from streamproc.setting_urls import parts_of

CHOSEN_AMONG_ALL = frozenset({"prefer-standby"})
"""Values of target_session_attrs by which the driver must see all hosts before it chooses."""
_AWAY = (
    *(OSError, asyncpg.InternalClientError, asyncpg.PostgresConnectionError),
    *(asyncpg.CannotConnectNowError, asyncpg.TooManyConnectionsError),
)
"""Errors of a host after which the next one is asked."""


def _is_no_given_up_connection(record: logging.LogRecord) -> bool:
    """Leaves out the driver's errors about a connection that Ctrl-C has it give up while it asks for TLS: the server's
    answer comes late, or the connection's end is told to a future that nobody has begun to await."""
    problem = record.exc_info[1] if record.exc_info else None
    said = record.getMessage()
    late = isinstance(problem, asyncio.InvalidStateError) and "TLSUpgradeProto" in said
    ended = isinstance(problem, ConnectionError) and said.startswith("Future exception was never retrieved")
    return not (late or ended)


logging.getLogger("asyncio").addFilter(_is_no_given_up_connection)


async def connect(dsn: str, *, timeout: float, **options: Any) -> asyncpg.Connection:
    """A connection to the first host of the DSN that answers, within `timeout` s for all of them.

    Raises what the last host's attempt raised; at once if a host answers and refuses (a wrong password).
    """
    each = single_hosts(dsn)
    *first, last = each
    for one in first:
        try:
            return await asyncpg.connect(one, timeout=timeout / len(each), **options)
        except _AWAY:
            continue
    return await asyncpg.connect(last, timeout=timeout / len(each), **options)


async def primaries(dsn: str, *, timeout: float) -> list[str]:
    """The hosts of the DSN that accept writes, each asked within `timeout` s; others, and those that are away, are left
    out. More than one: the old primary was not stopped, and each session may reach another archive."""

    async def asked(one: str) -> str:
        try:
            db = await asyncpg.connect(one, timeout=timeout, target_session_attrs="read-write")
            await db.close(timeout=timeout)
        except (*_AWAY, asyncpg.PostgresError):
            return ""
        parts = urlsplit(one)
        host, port = (parse_qs(parts.query).get(name, [""])[-1] for name in ("host", "port"))
        return parts.netloc.rpartition("@")[2] or f"{host}:{port}"

    each = single_hosts(dsn)
    return [found for found in await asyncio.gather(*map(asked, each)) if found] if len(each) > 1 else []


def single_hosts(dsn: str) -> list[str]:
    """The DSN for each of its hosts, in order; itself where it has one, or where all must be seen to choose."""
    parts = parts_of(dsn)
    asked = parse_qs(parts.query, keep_blank_values=True)
    if CHOSEN_AMONG_ALL & {*asked.get("target_session_attrs", [])}:
        return [dsn]
    user, at, hosts = parts.netloc.rpartition("@")
    if hosts:
        return [urlunsplit(parts._replace(netloc=f"{user}{at}{host}")) for host in hosts.split(",")]
    return _of_query(dsn, parts, asked)


def _of_query(dsn: str, parts: SplitResult, asked: dict[str, list[str]]) -> list[str]:
    """The same where the hosts are given as `?host=a,b&port=1,2`."""
    hosts = asked.pop("host", [""])[-1].split(",")
    ports = asked.pop("port", [""])[-1].split(",")
    if len(ports) == 1:
        ports *= len(hosts)
    if len(hosts) == 1 or len(hosts) != len(ports):  # of other numbers the driver says what is wrong
        return [dsn]
    rest = [(name, value) for name, values in asked.items() for value in values]
    found = [[("host", host), ("port", port)] for host, port in zip(hosts, ports, strict=True)]
    return [
        urlunsplit(parts._replace(query=urlencode([*[(n, v) for n, v in where if v], *rest])))
        for where in found
    ]
