"""Ports for servers in tests: no two test processes on this machine get the same one.

If a port only had to be free, two test processes could get the same one before either listens on it. So each process
has its own block of ports for as long as it lives, and takes them in turn.
"""

import fcntl
import functools
import itertools
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from streamproc.ports import PORTS, port_is_free

FIRST = 10_000
"""Below the ports that the product chooses (streamproc/ports.py) and those of outgoing connections."""
BLOCK, BLOCKS = 200, 50
"""Ports per process, and processes. A process uses few at once, so a port is reused long after its server ended."""
LOCKS = Path(tempfile.gettempdir()) / f"streamproc-test-ports-{os.getuid()}"

assert PORTS[0] >= FIRST + BLOCK * BLOCKS


def free_port() -> int:
    """A loopback port on which nobody listens, and which no other test process gets."""
    _, ports = _own_block()
    for port in itertools.islice(ports, BLOCK):
        if port_is_free("127.0.0.1", port):
            return port
    raise OSError(f"all {BLOCK} ports of this process are in use")


@functools.cache
def _own_block() -> tuple[IO[str], Iterator[int]]:
    """The ports of this process, and the lock that keeps them until the process ends."""
    LOCKS.mkdir(exist_ok=True)
    for number in range(BLOCKS):
        lock = (LOCKS / str(number)).open("w")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.close()
            continue
        first = FIRST + number * BLOCK
        return lock, itertools.cycle(range(first, first + BLOCK))
    raise OSError(f"all {BLOCKS} blocks of ports are taken by test processes; see {LOCKS}")
