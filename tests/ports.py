"""Ports for what tests start: no two test processes on this machine are given the same one.

A port that is only free at the moment may be given to two of the processes that test at once, before either listens on
it. So each has a block of its own for as long as it lives, and goes through it from one end to the other.
"""

import fcntl
import functools
import itertools
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from streamproc import processes

FIRST = 10_000
"""Below those that the product chooses (streamproc/processes.py), and those of outgoing connections."""
BLOCK, BLOCKS = 200, 50
"""Ports of one process: more than it has in use at once, so that one comes again long after its server ended."""
LOCKS = Path(tempfile.gettempdir()) / f"streamproc-test-ports-{os.getuid()}"

assert processes._PORTS[0] >= FIRST + BLOCK * BLOCKS


def free_port() -> int:
    """A port of the loopback that nobody listens on, and that no other test process is given."""
    _, ports = _mine()
    for port in itertools.islice(ports, BLOCK):
        if processes.port_is_free("127.0.0.1", port):
            return port
    raise OSError(f"all {BLOCK} ports of this process are in use")


@functools.cache
def _mine() -> tuple[IO[str], Iterator[int]]:
    """This process's block, and the lock that keeps it until the process ends."""
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
    raise OSError(f"{BLOCKS} test processes have all blocks of ports; see {LOCKS}")
