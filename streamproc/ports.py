"""Ports of this machine: whether one is free, sockets that listen on one, and one that nobody else takes meanwhile."""

import contextlib
import errno
import random
import socket
from collections.abc import Iterator, Sequence
from typing import Any

from streamproc.errors import ConfigError

PORTS = (20_000, 32_000)
"""Where ports are chosen: below Linux's range for outgoing connections, which could take the chosen one."""
_PORT_TRIES = 100
_NOT_HERE = {errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL}
"""Errors of an address whose family the kernel lacks, or that no interface here has."""


def port_is_free(host: str, port: int) -> bool:
    """Whether *port* can be listened on now; sockets in TIME_WAIT do not count."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError:
            return False
    return True


@contextlib.contextmanager
def bound(host: str, port: int, prefix: str, port_name: str = "PORT") -> Iterator[list[socket.socket]]:
    """Sockets that listen on the port at every address of *host* that this machine has, for a server.

    Raises ConfigError, naming *prefix*HOST and the port's variable, if that is not possible.
    """
    with contextlib.ExitStack() as stack:
        try:
            found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
            sockets = _all_bound(stack, [(one[0], one[4]) for one in dict.fromkeys(found)])
        except (OSError, UnicodeError) as problem:
            # UnicodeError comes for a host with an empty or too long label.
            why = getattr(problem, "strerror", None) or "it is no host name"
            raise ConfigError(
                f"port {port} of {host} cannot be listened on: {why}; set {prefix}{port_name} or {prefix}HOST to others"
            ) from problem
        yield sockets


def _all_bound(
    stack: contextlib.ExitStack, addresses: Sequence[tuple[int, tuple[Any, ...]]]
) -> list[socket.socket]:
    sockets, missing = list[socket.socket](), OSError()
    for address in addresses:
        try:
            sockets.append(stack.enter_context(_bound(*address)))
        except OSError as problem:
            # `localhost` is ::1 too even if no interface has that, as in a container without IPv6.
            if problem.errno not in _NOT_HERE:
                raise
            missing = problem
    if not sockets:
        raise missing
    return sockets


def _bound(family: int, address: tuple[Any, ...]) -> socket.socket:
    made = socket.socket(family, socket.SOCK_STREAM)
    try:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)  # IPv4 has its own socket
        made.bind(address)
        made.listen()  # if only bound, a second process could bind the same port and would get no connection
    except BaseException:
        made.close()
        raise
    return made


@contextlib.contextmanager
def reserved_port() -> Iterator[int]:
    """A loopback port that nothing listens on, for one server. Until the end nobody else gets it here, in no process: a
    port that was only free could be taken before the server listens. Raises OSError after many busy ones."""
    for _ in range(_PORT_TRIES):
        port = random.randrange(*PORTS)
        with socket.socket() as held:
            try:
                held.bind(("127.0.0.1", port))  # refused where another socket has it, if only bound
            except OSError:
                continue
            # From now on a server that has this option too, as all of ours have, may listen beside it.
            held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            yield port
            return
    raise OSError(f"no free port found in {PORTS[0]}..{PORTS[1]}")
