"""Parsers of settings that are URLs: each returns the value, or raises ValueError that says what is allowed.

No message repeats the value: a wrong one may be a secret pasted into the wrong place.
"""

import os
import re
from collections.abc import Callable
from urllib.parse import SplitResult, parse_qs, unquote, urlsplit, urlunsplit

from streamproc.secret import Secret

PORT_MAX = 65_535
SOCKET_PATH_MAX = 107
"""Bytes of a Unix socket's path. The kernel takes no more, and no connection to it would ever come about."""
_NODE = r"(?:[^\s:,@\[\]]+|\[[0-9a-fA-F:.]+\])(?::[0-9]{1,5})?"
"""A host with or without a port; an IPv6 address is in brackets."""
_HOST_NAME = re.compile(r"(?:[A-Za-z0-9._-]+|\[[0-9a-fA-F:.]+\])(?::[0-9]{1,5})?")
_NODES = re.compile(rf"{_NODE}(?:,{_NODE})*")
_REDIS_OPTIONS = frozenset(
    {
        "client_name",
        "db",
        "health_check_interval",
        "protocol",
        "socket_connect_timeout",
        "socket_timeout",
        "ssl_ca_certs",
        "ssl_ca_data",
        "ssl_min_version",
        "ssl_ca_path",
        "ssl_cert_reqs",
        "ssl_certfile",
        "ssl_check_hostname",
        "ssl_keyfile",
    }
)
"""What a Redis URL may have after its `?`. No password: only one before the `@` is hidden when the URL is shown."""


def redis_url(raw: str) -> str:
    """Where Redis is, or the nodes of a cluster."""
    parts = _split(raw)
    if parts.scheme in ("redis+cluster", "rediss+cluster"):
        nodes = parts.netloc.rpartition("@")[2]
        ports = [int(port) for port in re.findall(r":([0-9]+)(?=,|$)", nodes)]
        well = _NODES.fullmatch(nodes) and all(0 < port <= PORT_MAX for port in ports)
        if not well or parts.path not in ("", "/", "/0"):
            raise ValueError(
                "must name a cluster's nodes as redis+cluster://host:port,host:port and no database"
            )
    elif parts.scheme not in ("redis", "rediss", "unix"):
        raise ValueError("must start with redis://, rediss://, unix:// or redis+cluster://")
    elif parts.scheme == "unix" and len(os.fsencode(unquote(parts.path))) > SOCKET_PATH_MAX:
        raise ValueError(f"must name a socket whose path has at most {SOCKET_PATH_MAX} bytes")
    elif parts.scheme != "unix" and not (
        _has_port(parts) and re.fullmatch(r"(?:/[0-9]{0,5}/?)?", parts.path)
    ):
        raise ValueError("must be redis://host:port or redis://host:port/database, which is a number")
    unknown = sorted(set(parse_qs(parts.query, keep_blank_values=True)) - _REDIS_OPTIONS)
    if unknown:
        raise ValueError(f"may have only {', '.join(sorted(_REDIS_OPTIONS))} after its ?")
    return raw


def parts_of(url: str) -> SplitResult:
    """The parts of a URL that may name several hosts. ValueError where it is no URL.

    `urlsplit` of Pythons since 2025, and of Debian 12, refuses an IPv6 address after the first host, which libpq takes.
    """
    scheme, mark, rest = url.partition("://")
    netloc = re.split(r"[/?#]", rest, maxsplit=1)[0]
    who, at, hosts = netloc.rpartition("@")
    if "," not in hosts:
        return urlsplit(url)
    return urlsplit(f"{scheme}{mark}{who}{at}{rest[len(netloc) :]}")._replace(netloc=netloc)


def _split(raw: str) -> SplitResult:
    try:
        return parts_of(raw)
    except ValueError:  # its text contains the value
        raise ValueError("is no URL") from None


def _has_port(parts: SplitResult) -> bool:
    """Whether a URL's port is valid or left out."""
    try:
        return parts.port != 0
    except ValueError:
        return False


def dsn(raw: str) -> Secret:
    """Where Postgres is. All of it is a secret, since it often has a password."""
    parts = _split(raw)
    if parts.scheme not in ("postgres", "postgresql"):
        raise ValueError("must start with postgresql://")
    hosts = parts.netloc.rpartition("@")[2]  # several are possible, each with a port
    if hosts and not _NODES.fullmatch(hosts):
        raise ValueError("must name its server as host:port, the port a number")
    return Secret(raw)


def http_url(path: str = "") -> Callable[[str], str]:
    """A URL of an outside system; *path* is added if the operator named only the host."""

    def parse(raw: str) -> str:
        parts = _split(raw)
        is_whole = parts.scheme in ("http", "https") and parts.hostname and _has_port(parts)
        if not is_whole or parts.query or parts.fragment:
            raise ValueError("must be an http:// or https:// URL without query or fragment")
        if parts.username or parts.password:
            raise ValueError("must not carry a user name or password: secrets have variables of their own")
        return urlunsplit(parts._replace(path=parts.path.rstrip("/") or path))

    return parse


def words(raw: str) -> tuple[str, ...]:
    """Words separated by commas or line ends."""
    return tuple(part.strip() for part in raw.replace("\n", ",").split(",") if part.strip())


def host_names(raw: str) -> tuple[str, ...]:
    """Hosts as a `Host` header names them; without a port, for any."""
    found = words(raw)
    if not all(_HOST_NAME.fullmatch(name) for name in found):
        raise ValueError("must be hosts as pay.example.com or pay.example.com:8443, comma separated")
    return found


def origins(raw: str) -> tuple[str, ...]:
    """Web origins whose pages may call the API."""
    for origin in (found := words(raw)):
        parts = _split(origin)
        if (
            parts.scheme not in ("http", "https")
            or not parts.netloc
            or origin != f"{parts.scheme}://{parts.netloc}"
        ):
            raise ValueError("must be origins as https://console.example.com, comma separated")
    return found


def file_or_url(raw: str) -> str:
    """A path, or a URL of an outside system."""
    return http_url()(raw) if "://" in raw else raw
