"""Ports for servers in tests: no two test processes on this machine get the same one.

If a port only had to be free, two test processes could get the same one before either listens on it. So each process
has its own block of ports for as long as it lives, and takes them in turn.
"""

import functools
import itertools
import socket
from collections.abc import Iterator

from streamproc.ports import PORTS, port_is_free

FIRST = 10_000
"""Below the ports that the product chooses (streamproc/ports.py) and those of outgoing connections."""
BLOCK, BLOCKS = 200, 50
"""Ports per process, and processes. A process uses few at once, so a port is reused long after its server ended."""

assert PORTS[0] >= FIRST + BLOCK * BLOCKS


def free_port() -> int:
    """A loopback port on which nobody listens, and which no other test process gets."""
    _, ports = _own_block()
    for port in itertools.islice(ports, BLOCK):
        if port_is_free("127.0.0.1", port):
            return port
    raise OSError(f"all {BLOCK} ports of this process are in use")


@functools.cache
def _own_block() -> tuple[socket.socket, Iterator[int]]:
    """The ports of this process, and its socket at the first of them, which keeps them until the process ends.

    No file does: other users, and whose temporary files are elsewhere, would have others.
    """
    for first in range(FIRST, FIRST + BLOCK * BLOCKS, BLOCK):
        lock = socket.socket()
        try:
            lock.bind(("127.0.0.1", first))
        except OSError:
            lock.close()
            continue
        return lock, itertools.cycle(range(first + 1, first + BLOCK))
    raise OSError(f"all {BLOCKS} blocks of ports are taken by test processes")
